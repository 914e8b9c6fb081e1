"""Mixers side by side, on real ranks: values, gradients, FLOPs, bytes and memory, all exact."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.mixer import mixers
from costmodel.strategy import strategies
from tests.validate.cases import check_case
from tests.validate.drawing import cases
from validate.launch import RankPool


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mixer", "strategy"),
    [
        ("attention+mamba2", "whole"),
        ("attention+mamba2", "ulysses"),
        ("attention+mamba2", "ring+state-gather"),
        ("attention+shortconv", "window-halo+halo"),
        ("gated-deltanet+mla+convmixer", "state-pipeline+ring+halo"),
    ],
)
def test_run_equals_template_and_formulas(pool: RankPool, mixer: str, strategy: str) -> None:
    @settings(max_examples=3)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        check_case(pool, data.draw(cases(mixers.get(mixer), strategies.get(strategy))))

    check()
