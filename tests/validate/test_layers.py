"""Every mixer, spread by every strategy, on real ranks: values, gradients, FLOPs, bytes and memory, all exact."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.mixer import mixers
from costmodel.strategy import strategies
from tests.validate.cases import check_case
from tests.validate.drawing import cases
from validate.launch import RankPool

PAIRS = [
    (mixer, strategy)
    for mixer in mixers.names()
    for strategy in strategies.names()
    if any(issubclass(mixers.get(mixer).carry_for(c), strategies.get(strategy).carries) for c in (True, False))
]


@pytest.mark.slow
@pytest.mark.parametrize(("mixer", "strategy"), PAIRS)
def test_run_equals_template_and_formulas(pool: RankPool, mixer: str, strategy: str) -> None:
    @settings(max_examples=8)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        check_case(pool, data.draw(cases(mixers.get(mixer), strategies.get(strategy))))

    check()
