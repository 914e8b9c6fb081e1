"""Masks: a mixer that is defined under one only is asked about under that one."""

from __future__ import annotations

from pathlib import Path

import pytest

QUESTION = ("--seq", "64Ki", "--cluster", "4xh100")


@pytest.fixture(scope="module")
def one_way(tmp_path_factory) -> str:
    path: Path = tmp_path_factory.mktemp("mixers") / "one_way.py"
    path.write_text(
        "from costmodel.mixers.attention import Attention\n\n\n"
        "class Forwards(Attention):\n    name = 'forwards'\n    causality = 'causal'\n\n\n"
        "class Both(Attention):\n    name = 'both-ways'\n    causality = 'full'\n\n\n"
        "forwards, both = Forwards(), Both()\n"
    )
    return str(path)


@pytest.mark.parametrize(("mixer", "causal"), [("forwards", True), ("both", False)])
def test_the_mask_is_the_one_that_the_mixer_is_defined_under(ask, one_way: str, mixer: str, causal: bool) -> None:
    layer = ("--mixer", f"{one_way}:{mixer}")
    (answer,) = ask("plan", *layer, *QUESTION, "--pass", "forward")["answers"]
    (found,) = ask("predict", *layer, *QUESTION, "--strategy", "ulysses")["predictions"]
    formulas = ask("formulas", *layer)
    assert answer["causal"] == found["causal"] == formulas["causal"] == causal
    flop = found["flop_by_reading_and_class"]
    assert (flop["useful"]["contraction"] < flop["dense"]["contraction"]) == causal


@pytest.mark.parametrize(
    ("mixer", "option", "said"),
    [
        ("forwards", "--full", "--full' is not valid: forwards is defined with a causal mask only"),
        ("both", "--causal", "--causal' is not valid: both-ways is defined without a causal mask only"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "predict", "every", "formulas"])
def test_the_other_mask_is_refused(run, one_way: str, mixer: str, option: str, said: str, command: str) -> None:
    arguments = {
        "plan": ["plan", *QUESTION],
        "predict": ["predict", *QUESTION, "--strategy", "ulysses"],
        "every": ["predict", *QUESTION, "--all"],
        "formulas": ["formulas"],
    }[command]
    done = run(*arguments, "--mixer", f"{one_way}:{mixer}", option)
    assert done.exit_code == 2
    assert said in done.stderr


def test_either_mask_may_be_asked_for(ask) -> None:
    layer = ("plan", "--mixer", "attention", *QUESTION, "--pass", "forward")
    causal, full = (ask(*layer, option)["answers"][0]["best"]["seconds"] for option in ("--causal", "--full"))
    assert causal < full
    assert ask(*layer)["answers"][0]["best"]["seconds"] == causal


def test_the_kernel_is_the_first_of_the_mixer(ask) -> None:
    layer = ("predict", "--mixer", "linear-attention", *QUESTION, "--strategy", "state-gather")
    (found,) = ask(*layer)["predictions"]
    assert found["kernels"] == ["chunked"]
