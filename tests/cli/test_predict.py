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
