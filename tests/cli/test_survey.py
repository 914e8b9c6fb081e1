"""``costmodel formulas --all``: every mixer side by side; ``make docs`` writes it to docs/mixers.md."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from costmodel import survey
from costmodel.mixer import mixers

ROOT = Path(__file__).resolve().parents[2]
SURVEY = ("formulas", "--all")


@pytest.fixture(scope="module", autouse=True)
def found_once() -> Iterator[None]:
    """All commands here show the same formulas, which take longer to find than to show."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey, "_entry", cache(survey._entry))
        yield


@pytest.fixture(scope="module")
def document(ask) -> dict[str, Any]:
    return ask(*SURVEY)


def test_every_mixer_is_in_it(document: dict[str, Any]) -> None:
    assert document["schema"] == "costmodel.survey/1"
    assert [entry["name"] for entry in document["mixers"]] == mixers.names()
    for entry in document["mixers"]:
        assert {formula["name"] for formula in entry["whole"]} >= {"weights", "peak"}
        assert entry["causal"] == (entry["causality"] != "full")
        assert (entry["state"] is None) == (not entry["causal"])
        assert (entry["strategy"] is None) == (entry["spread"] == [])


def test_every_symbol_is_explained(document: dict[str, Any]) -> None:
    functions = {"ceil": ceil, "max": max, "min": min, "log2": lambda x: x}
    for entry in document["mixers"]:
        known = {**document["symbols"], **entry["symbols"]}
        for formula in [*entry["whole"], *entry["spread"], *([entry["state"]] if entry["state"] else [])]:
            values = {name: 0 if name.startswith("rank") else 8 for name in known} | {"L": 4096}
            assert eval(formula["python"], functions, values) >= 0


def test_attention_by_hand(document: dict[str, Any]) -> None:
    (entry,) = [entry for entry in document["mixers"] if entry["name"] == "attention"]
    numbers = {"B": 2, "L": 64, "D": 32, "H": 4, "H_kv": 2, "d": 8, "P_c": 4, "s": 2, "a": 4}
    (flop,) = [formula["python"] for formula in entry["whole"] if formula["name"] == "contraction"]
    pairs, projections = 64 * 65 / 2, 2 * 64 * 32 * 8 * (4 + 4 + 2 + 2)
    assert eval(flop, {}, numbers) == 2 * (4 * pairs * 4 * 8 + projections)
    # Of keys and values, three of four parts arrive from the other ranks.
    sent = [f["python"] for f in entry["spread"] if f["part"] == "wire" and f["unit"] == "bytes"]
    assert entry["strategy"] == "all-gather"
    assert [eval(text, {}, numbers) for text in sent] == [2 * 2 * 64 * 2 * 8 * 2 * 3 / 4]
    assert eval(entry["state"]["python"], {}, numbers) == 2 * 2 * 64 * 2 * 8 * 2


@pytest.mark.parametrize("width", [80, 120])
def test_the_page(run, width: int) -> None:
    page = run(*SURVEY, width=width).stdout
    assert max(map(len, page.splitlines())) <= width
    assert all(mixers.get(name).title.split()[0] in page for name in mixers.names())


def test_latex_is_balanced(run) -> None:
    text = run(*SURVEY, "--latex").stdout
    assert text.count("{") == text.count("}")
    assert text.count(r"\begin{align*}") == text.count(r"\end{align*}") >= len(mixers.names())


def test_the_page_of_the_documentation_is_current(run) -> None:
    written = (ROOT / "docs" / "mixers.md").read_text()
    assert written == run(*SURVEY, "--markdown").stdout, "run make docs"


@pytest.mark.parametrize("more", [["--mixer", "attention"], ["--strategy", "ring"], ["--full"], ["--set", "heads=8"]])
def test_other_choices_are_refused(run, more: list[str]) -> None:
    done = run(*SURVEY, *more)
    assert done.exit_code == 2
    assert "--all" in done.stderr
