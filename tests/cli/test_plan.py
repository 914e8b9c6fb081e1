"""``costmodel plan``: the three questions of ``make plan``, and what their answers must satisfy."""

from __future__ import annotations

import pytest

MI = 2**20
LAYER = ("plan", "--mixer", "attention", "--seq", "1Mi", "--cluster", "4xrtx4090")


def prefill(llama: str, length: str, cluster: str, *more: str) -> tuple[str, ...]:
    return ("plan", "--model", llama, "--seq", length, "--cluster", cluster, "--pass", "prefill", *more)


def shape(value: object) -> object:
    """A document with types in place of values; of lists the first entry, of tables with open keys one entry."""
    if isinstance(value, dict):
        return {key: shape(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


PLAN = {
    "strategies": ["str"],
    "padded_length_tokens": "int",
    "busiest_over_mean_rank_seconds": "float",
    "kernels": ["str"],
    "mesh": dict.fromkeys(("data", "context", "ulysses", "tensor"), "int"),
    "context_inside_ulysses": "bool",
    "recompute": "bool",
    "sharing": "str",
    "fits": "bool",
    "seconds": "float",
    "seconds_favourable": "float",
    "seconds_unfavourable": "float",
    "extrapolated": None,
    "tokens_per_second": "float",
    "compute_seconds": "float",
    "communication_seconds": "float",
    "exposed_communication_seconds": "float",
    "bottleneck": "str",
    "busy_seconds": None,
    "bytes": "float",
    "bytes_by_kind": dict.fromkeys(
        ("parameters", "gradients", "optimizer", "activations", "cache", "working"), "float"
    ),
    "missing_bytes": "float",
    "wire_bytes": None,
    "messages": None,
}
OPEN = ("extrapolated", "busy_seconds", "wire_bytes", "messages")


def check_plan(plan: dict, extra: tuple[str, ...] = ()) -> None:
    found = shape({key: value for key, value in plan.items() if key not in (*OPEN, *extra)})
    assert found == {key: kind for key, kind in PLAN.items() if key not in OPEN}
    for key in OPEN:
        assert all(isinstance(number, float) for number in plan[key].values())
    assert set(plan["wire_bytes"]) == set(plan["messages"])


def test_the_document_keeps_its_keys(ask) -> None:
    document = ask(*LAYER)
    assert document["schema"] == "costmodel.plan/1"
    assert list(document) == ["schema", "costmodel_version", "subject", "cluster", "answers"]
    assert shape(document["subject"]) == {
        "name": "str",
        "width": "int",
        "vocabulary": "int",
        "layers": [
            {
                "mixer": "str",
                "count": "int",
                "sizes": dict.fromkeys(("D", "H", "H_kv", "d"), "int"),
                "window": "NoneType",
            }
        ],
    }
    assert set(document["cluster"]) == {
        "profile",
        "title",
        "devices",
        "usable_bytes_per_device",
        "calibrated",
        "provenance",
    }
    forward, train = document["answers"]
    assert (forward["pass"], train["pass"]) == ("forward", "train")
    assert list(forward) == [
        *("pass", "length_tokens", "cached_tokens", "batch_sequences", "causal", "documents_tokens"),
        *("dtype", "gradient", "cache_bytes_per_element", "whole_logits"),
        *("fits", "best", "frameworks"),
        *("longest_tokens_in_best", "longest_tokens_in_any", "others", "not_applicable", "advice", "plans_timed"),
        *("plans_that_fit", "search_seconds"),
    ]
    for answer in (forward, train):
        check_plan(answer["best"])
        for other in answer["others"]:
            check_plan(other, ("why_not",))


def test_one_layer_forward_and_training(ask) -> None:
    document = ask(*LAYER, "--top", "100")
    usable = document["cluster"]["usable_bytes_per_device"]
    for answer in document["answers"]:
        best, others = answer["best"], answer["others"]
        fitting = [other for other in others if other["fits"]]
        assert answer["fits"] and best["fits"]
        assert best["seconds"] <= min(other["seconds"] for other in fitting)
        assert [other["seconds"] for other in fitting] == sorted(other["seconds"] for other in fitting)
        assert all(other["bytes"] > usable and other["missing_bytes"] > 0 for other in others if not other["fits"])
        for plan in (best, *others):
            assert plan["seconds_favourable"] <= plan["seconds"] <= plan["seconds_unfavourable"]
            assert plan["bytes"] == pytest.approx(sum(plan["bytes_by_kind"].values()))
            assert plan["tokens_per_second"] == pytest.approx(MI / plan["seconds"])
            assert (
                plan["mesh"]["data"] * plan["mesh"]["context"] * plan["mesh"]["ulysses"] * plan["mesh"]["tensor"] == 4
            )
        assert answer["longest_tokens_in_best"] >= MI
        assert answer["longest_tokens_in_any"] >= answer["longest_tokens_in_best"]


def test_no_prediction_beats_the_matrix_units(ask) -> None:
    # 2 L^2 H d for half of the pairs, twice (scores and values), and 8 L D^2 for the projections (D = H d = 4096);
    # 165.2 TFLOP/s a card, of which at most 1.05 is reached: the cards boost above the clock of the datasheet.
    forward, train = ask(*LAYER)["answers"]
    flop = 2 * MI**2 * 4096 + 8 * MI * 4096**2
    assert forward["best"]["seconds"] > flop / (4 * 165.2e12 * 1.05)
    assert train["best"]["seconds"] > 3 * flop / (4 * 165.2e12 * 1.05)


def test_a_model_that_fits(ask, llama: str) -> None:
    (answer,) = ask(*prefill(llama, "1Mi", "8xh100"))["answers"]
    best = answer["best"]
    assert best["fits"] and answer["advice"] is None
    # Keys and values: 2 x 32 layers x 8 heads x 128 x 2 bytes a token, over 8 devices.
    assert best["bytes_by_kind"]["cache"] == 2 * 32 * 8 * 128 * 2 * MI / 8


def test_a_model_that_does_not_fit_gets_advice_that_holds(ask, llama: str) -> None:
    (answer,) = ask(*prefill(llama, "1Mi", "4xrtx4090"), status=1)["answers"]
    advice = answer["advice"]
    assert answer["best"] is None and not answer["fits"]
    nearest = advice["nearest"]
    assert nearest["bytes_by_kind"]["cache"] == 2 * 32 * 8 * 128 * 2 * MI / 4
    assert advice["missing_bytes"] == pytest.approx(nearest["missing_bytes"])
    longest, devices = advice["longest_tokens"], advice["smallest_cluster_devices"]
    assert 0 < longest < MI
    assert {change["what"] for change in advice["changes"]} >= {"8-bit KV cache"}
    ask(*prefill(llama, str(longest), "4xrtx4090"))
    ask(*prefill(llama, str(2 * longest), "4xrtx4090"), status=1)
    ask(*prefill(llama, "1Mi", f"{devices}xrtx4090"))
    ask(*prefill(llama, "1Mi", f"{devices // 2}xrtx4090"), status=1)


def test_an_8_bit_cache_is_half_as_large(ask, llama: str) -> None:
    (wide,) = ask(*prefill(llama, "64Ki", "8xh100"))["answers"]
    (narrow,) = ask(*prefill(llama, "64Ki", "8xh100", "--cache-bytes", "1"))["answers"]
    halves = [answer["best"]["bytes_by_kind"]["cache"] for answer in (wide, narrow)]
    assert halves[0] == 2 * halves[1]


@pytest.mark.parametrize("width", [80, 120])
def test_the_page_fits_its_width_and_says_what_matters(run, llama: str, width: int) -> None:
    page = run(*LAYER, width=width).stdout
    lines = page.splitlines()
    assert max(map(len, lines)) <= width
    assert all(line == line.rstrip() for line in lines)
    for said in ("Forward pass", "Training step", "Bottleneck", "Memory", "Longest", "other plans", "Searched"):
        assert said in page
    assert (
        "rtx4090 has numbers fitted to published runs" in " ".join(page.split())
        and "costmodel list profiles rtx4090" in page
    )
    lost = run(*prefill(llama, "1Mi", "4xrtx4090"), width=width).stdout
    for said in ("No plan fits", "Nearest", "Shorter", "More", "8-bit KV cache", "was made for 8Ki positions"):
        assert said in lost


def test_verbose_shows_every_plan_and_reason(run) -> None:
    brief, full = run(*LAYER).stdout, run(*LAYER, "--verbose").stdout
    assert len(full) > len(brief)
    assert "(--top" in brief and "(--top" not in full


def test_hyperparameters_and_width_are_taken(ask) -> None:
    document = ask(*LAYER, "--set", "heads=16", "--set", "kv_heads=4", "--width", "3072")
    (layer,) = document["subject"]["layers"]
    assert layer["sizes"] == {"D": 3072, "H": 16, "H_kv": 4, "d": 128}


def test_a_mixer_of_a_file(run, tmp_path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from costmodel.mixers.attention import Attention\n\n\n"
        "class Mine(Attention):\n    name = 'mine'\n\n\nmine = Mine()\n"
    )
    done = run("plan", "--mixer", f"{path}:mine", "--seq", "64Ki", "--cluster", "4xh100", "--pass", "forward")
    assert done.exit_code == 0
    assert "one layer of mine" in done.stdout
