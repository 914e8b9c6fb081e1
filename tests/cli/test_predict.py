"""``costmodel predict``: one plan, several lengths, every plan."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

QUESTION = ("predict", "--mixer", "attention", "--cluster", "4xrtx4090")
CLASSES = {"contraction", "elementwise", "special", "reduction"}


def test_one_plan(ask) -> None:
    (found,) = ask(*QUESTION, "--seq", "64Ki", "--strategy", "ring")["predictions"]
    assert found["strategies"] == ["ring"]
    assert found["mesh"] == {"data": 1, "context": 4, "ulysses": 1, "tensor": 1}  # the axis takes what is left
    counted = found["flop_by_reading_and_class"]
    assert set(counted) == {"useful", "executed", "dense", "model"}
    assert all(set(classes) == CLASSES for classes in counted.values())
    # The last rank of a ring has all keys before its quarter, and half of its own: in the dense reading, all of them.
    # 4 L/4 L H d for scores and values, 8 L/4 D^2 for the projections.
    length, width = 2**16, 4096
    assert counted["dense"]["contraction"] == length**2 * width + 2 * length * width**2
    # Keys and values of a quarter, in bf16, passed on three times.
    assert found["wire_bytes"] == {"context": 3 * 2 * (length / 4) * width * 2}
    assert found["messages"] == {"context": 6}


def test_mfu_counts_masked_pairs_and_useful_does_not(ask) -> None:
    (found,) = ask(*QUESTION, "--seq", "1Mi", "--strategy", "ulysses")["predictions"]
    length, width, peak = 2**20, 4096, 4 * 165.2e12
    assert found["mfu"] == pytest.approx((4 * length**2 * width + 8 * length * width**2) / peak / found["seconds"])
    useful = 2 * length * (length + 1) * width + 8 * length * width**2
    assert found["mfu_useful"] == pytest.approx(useful / peak / found["seconds"])


def test_lengths_that_double(ask) -> None:
    found = ask(*QUESTION, "--seq", "16Ki:128Ki", "--strategy", "zigzag", "--pass", "train")["predictions"]
    assert [one["length_tokens"] for one in found] == [2**14, 2**15, 2**16, 2**17]
    seconds = [one["seconds"] for one in found]
    assert seconds == sorted(seconds)


def test_recompute_and_sharing_change_what_they_should(ask) -> None:
    def bytes_of(*more: str) -> dict[str, float]:
        document = ask(*QUESTION, "--seq", "256Ki", "--strategy", "ulysses", "--pass", "train", *more)
        held: dict[str, float] = document["predictions"][0]["bytes_by_kind"]
        return held

    plain, again = bytes_of(), bytes_of("--recompute")
    # A recomputed layer keeps its input alone: L/4 x D numbers of 2 bytes.
    assert again["activations"] == 2**18 / 4 * 4096 * 2 < plain["activations"]
    one, three = bytes_of("--sharing", "zero-1"), bytes_of("--sharing", "zero-3")
    assert one["optimizer"] == plain["optimizer"] / 4 == three["optimizer"]
    assert one["parameters"] == plain["parameters"] == 4 * three["parameters"]


def test_every_plan_agrees_with_plan(ask) -> None:
    every = ask(*QUESTION, "--seq", "256Ki", "--all")["predictions"]
    (answer,) = ask("plan", *QUESTION[1:], "--seq", "256Ki", "--pass", "forward")["answers"]
    assert len(every) == answer["plans_timed"]
    assert every[0]["seconds"] == answer["best"]["seconds"]
    assert sum(one["fits"] for one in every) == answer["plans_that_fit"]


@pytest.mark.parametrize("width", [80, 120])
def test_pages_fit_their_width(run, width: int) -> None:
    one = run(*QUESTION, "--seq", "1Mi", "--strategy", "ring", "--pass", "train", width=width).stdout
    many = run(*QUESTION, "--seq", "64k,1Mi", "--all", width=width).stdout
    assert max(len(line) for page in (one, many) for line in page.splitlines()) <= width
    assert " over" in one and "MFU" in one and "executed" in one
    assert "1Mi" in many and " over\n" in many


def test_a_strategy_for_each_kind_of_layer(ask) -> None:
    gemma = str(ROOT / "examples" / "gemma-3-12b.json")
    question = ("--model", gemma, "--seq", "128Ki", "--cluster", "8xh100", "--pass", "prefill")
    kinds = ask("plan", *question)["subject"]["layers"]
    assert [layer["window"] for layer in kinds] == [1024, None]  # sliding windows, which a ring is not for
    (found,) = ask("predict", *question[:-2], "--pass", "prefill", "--strategy", "all-gather,zigzag")["predictions"]
    assert found["strategies"] == ["all-gather", "zigzag"]


def test_padding_is_told(run, ask) -> None:
    question = *QUESTION, "--seq", "100001", "--strategy", "zigzag"
    (found,) = ask(*question)["predictions"]
    assert (found["length_tokens"], found["padded_length_tokens"]) == (100001, 100008)
    assert "100,001 tokens padded to 100,008 (+0.01%)" in " ".join(run(*question).output.split())


def test_documents_are_counted_alone(ask, run) -> None:
    """l (l + 1) / 2 pairs of each; heads are cut, so that every rank has a quarter of all."""
    width, ranks, question = 4096, 4, (*QUESTION, "--seq", "6Ki", "--strategy", "ulysses")
    (found,) = ask(*question, "--documents", "2Ki,4Ki")["predictions"]
    pairs = sum(n * (n + 1) / 2 for n in (2048, 4096))
    useful = found["flop_by_reading_and_class"]["useful"]["contraction"]
    assert useful == (4 * pairs + 8 * 6144 * width) * width / ranks
    assert found["documents_tokens"] == [2048, 4096]
    (equal,) = ask(*question, "--documents", "3")["predictions"]
    assert equal["documents_tokens"] == [2048] * 3
    assert equal["seconds"] < found["seconds"]
    assert "packed with 2 documents of 2Ki to 4Ki tokens" in " ".join(
        run(*question, "--documents", "2Ki,4Ki").output.split()
    )


def test_the_busiest_rank_of_packed_documents_sets_the_time(ask) -> None:
    """The first document fills the first half: its second rank, of four, has most."""
    question = *QUESTION, "--seq", "64Ki", "--strategy", "ring"
    (half,) = ask(*question, "--documents", "32Ki,16Ki,16Ki")["predictions"]
    (other,) = ask(*question, "--documents", "16Ki,16Ki,32Ki")["predictions"]
    width, block = 4096, 2**14
    pairs = block * block + block * (block + 1) / 2
    for found in (half, other):
        useful = found["flop_by_reading_and_class"]["useful"]["contraction"]
        assert useful == pytest.approx((4 * pairs + 8 * block * width) * width)
        assert found["busiest_over_mean_rank_seconds"] > 1.2


@pytest.mark.parametrize(
    ("given", "told"), [("5", "are not so many equal documents"), ("1Ki,2Ki", "they have the 65536")]
)
def test_documents_that_do_not_fit(run, given: str, told: str) -> None:
    result = run(*QUESTION, "--seq", "64Ki", "--strategy", "ring", "--documents", given)
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.split())
