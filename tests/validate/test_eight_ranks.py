"""Every strategy once on eight ranks, grids in both shapes: values, gradients, FLOPs, bytes, messages, all exact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from costmodel.strategy import strategies
from tests.ranks import ranks
from tests.validate.cases import Case, check_case
from tests.validate.small import GQA, SMALL, meshes, small_case
from validate.launch import Rank, RankPool


@pytest.fixture(scope="module")
def eight() -> Iterator[RankPool]:
    with ranks(8) as started:
        started.run(ready, timeout_s=180)
        yield started


def ready(_: Rank) -> None:
    """Nothing; by then a rank has imported what it runs."""


def test_no_strategy_is_left_out() -> None:
    assert {*SMALL} == {*strategies.names()}


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "mesh"), [(name, mesh) for name in SMALL for mesh in meshes(name, 8)])
def test_on_eight_ranks(eight: RankPool, strategy: str, mesh: Mapping[str, int]) -> None:
    check_case(eight, small_case(strategy, mesh))


@pytest.mark.slow
def test_a_grid_beside_others(eight: RankPool) -> None:
    """A Ulysses axis between two others."""
    mesh = {"context": 2, "ulysses": 2, "tensor": 2}
    check_case(eight, Case(GQA, strategies.get("ulysses-zigzag"), mesh, 16, dtype="bf16"))
