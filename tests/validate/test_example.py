"""The mixer of ``examples`` is what it says, on real ranks too."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.mixer import Mixer, mixers
from costmodel.strategy import strategies
from tests.validate.cases import check_case
from tests.validate.drawing import cases
from validate.launch import RankPool

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def mixer() -> Iterator[Mixer]:
    """The example as a registered mixer, importable by processes that start from here on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        found: Mixer = importlib.import_module("keys_as_values").keys_as_values
        patch.setitem(mixers._load(), found.name, found)
        yield found


@pytest.fixture(scope="module")
def ranks(mixer: Mixer) -> Iterator[RankPool]:
    with RankPool(4) as started:
        yield started


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["whole", "zigzag", "ulysses", "tree"])
def test_run_equals_template_and_formulas(ranks: RankPool, mixer: Mixer, strategy: str) -> None:
    @settings(max_examples=4)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        check_case(ranks, data.draw(cases(mixer, strategies.get(strategy))))

    check()
