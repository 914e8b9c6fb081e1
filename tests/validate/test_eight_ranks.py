"""Every strategy once on eight ranks, grids in both shapes: values, gradients, FLOPs, bytes, messages, all exact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from costmodel.strategy import strategies
from costmodel.subject import Layer, from_mixer
from tests.validate.cases import Case, check_case
from validate.launch import Rank, RankPool


@pytest.fixture(scope="module")
def eight() -> Iterator[RankPool]:
    with RankPool(8) as ranks:
        ranks.run(ready, timeout_s=180)
        yield ranks


def ready(_: Rank) -> None:
    """Nothing; by then a rank has imported what it runs."""


def layer(mixer: str, **sizes: int) -> Layer:
    (found,) = from_mixer(mixer, 5, **sizes).layers
    return found


GQA = layer("attention", heads=8, kv_heads=4, head_dim=2)
MHA = layer("attention", heads=8, kv_heads=8, head_dim=2)
WINDOW = layer("attention", heads=2, kv_heads=1, head_dim=2, window=3)
MLA = layer("mla", heads=2, q_rank=3, kv_rank=3, nope_dim=2, rope_dim=2, value_dim=3)
STATE = layer("gated-deltanet", heads=4, kv_heads=1, head_dim=2, value_dim=3, taps=2, chunk=2)
MATRIX = layer("resmlp")

LINE, FULL = {"context": 8}, {"causal": False}
SHAPES = {"context": 2, "ulysses": 4}, {"context": 4, "ulysses": 2}

#: For each strategy: a layer, the mesh, the tokens, and what else is not as usual.
ON_A_LINE: Mapping[str, tuple[Layer, Mapping[str, int], int, Mapping[str, Any]]] = {
    "all-gather": (GQA, LINE, 16, {}),
    "all-gather-latent": (MLA, LINE, 16, {}),
    "all-reduce": (layer("linear-attention", heads=2, head_dim=2, chunk=2), LINE, 16, FULL),
    "distributed-fft": (layer("hyena", channels=2, taps=2, filter_width=3, longest=1000), LINE, 64, {"kernel": "fft"}),
    "gather-values": (MATRIX, LINE, 16, FULL),
    "halo": (layer("shortconv", channels=3, taps=3), LINE, 16, {}),
    "pass-q": (GQA, LINE, 16, {"phase": "forward"}),
    "pass-q-decode": (GQA, LINE, 16, {"phase": "decode", "batch": 16}),
    "pattern-exchange": (layer("longformer", heads=2, head_dim=2, side=1, globals=1), LINE, 16, FULL),
    "ring": (GQA, LINE, 8, {}),
    "ring-values": (MATRIX, LINE, 16, FULL),
    "select-gather": (layer("moba", heads=2, kv_heads=1, head_dim=2, block=2, chosen=3), LINE, 32, {}),
    "state-gather": (STATE, LINE, 32, {}),
    "state-pipeline": (STATE, LINE, 32, {}),
    "state-relay": (STATE, LINE, 32, {}),
    "state-serial": (layer("lstm", heads=1, head_dim=3), LINE, 16, {}),
    "state-tree": (STATE, LINE, 32, {}),
    "striped": (GQA, LINE, 16, {}),
    "tree": (GQA, LINE, 16, {"phase": "decode"}),
    "ulysses": (MHA, {"ulysses": 8}, 16, {}),
    "whole": (MHA, {"data": 2, "tensor": 4}, 8, {"batch": 2}),
    "window-halo": (WINDOW, LINE, 16, {}),
    "window-zigzag": (WINDOW, LINE, 32, {}),
    "zigzag": (GQA, LINE, 16, {}),
}
ON_A_GRID = {
    "double-ring": (GQA, 32, {}),
    "product-grid": (MATRIX, 16, FULL),
    "tile": (GQA, 32, {}),
    "ulysses-ring": (GQA, 16, {}),
    "ulysses-zigzag": (GQA, 32, {}),
}


def test_no_strategy_is_left_out() -> None:
    assert {*ON_A_LINE} | {*ON_A_GRID} == {*strategies.names()}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ON_A_LINE)
def test_on_a_line(eight: RankPool, strategy: str) -> None:
    made, mesh, length, options = ON_A_LINE[strategy]
    check_case(eight, Case(made, strategies.get(strategy), mesh, length, **options))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ON_A_GRID)
@pytest.mark.parametrize("mesh", SHAPES, ids=lambda mesh: f"{mesh['context']}x{mesh['ulysses']}")
def test_on_a_grid(eight: RankPool, strategy: str, mesh: Mapping[str, int]) -> None:
    made, length, options = ON_A_GRID[strategy]
    check_case(eight, Case(made, strategies.get(strategy), mesh, length, **options))


@pytest.mark.slow
def test_a_grid_beside_others(eight: RankPool) -> None:
    """A Ulysses axis between two others."""
    mesh = {"context": 2, "ulysses": 2, "tensor": 2}
    check_case(eight, Case(GQA, strategies.get("ulysses-zigzag"), mesh, 16, dtype="bf16"))
