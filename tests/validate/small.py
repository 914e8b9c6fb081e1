"""Every strategy with a small layer that it spreads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from costmodel.strategy import strategies
from costmodel.subject import Layer, from_mixer
from tests.validate.cases import Case


def layer(mixer: str, **sizes: int) -> Layer:
    (found,) = from_mixer(mixer, 5, **sizes).layers
    return found


GQA = layer("attention", heads=8, kv_heads=4, head_dim=2)
MHA = layer("attention", heads=8, kv_heads=8, head_dim=2)
WINDOW = layer("attention", heads=2, kv_heads=1, head_dim=2, window=3)
MLA = layer("mla", heads=2, q_rank=3, kv_rank=3, nope_dim=2, rope_dim=2, value_dim=3)
STATE = layer("gated-deltanet", heads=4, kv_heads=1, head_dim=2, value_dim=3, taps=2, chunk=2)
MATRIX = layer("resmlp")
FULL = {"causal": False}

#: For each strategy: a layer, the tokens of a rank, and what else is not as usual.
SMALL: Mapping[str, tuple[Layer, int, Mapping[str, Any]]] = {
    "all-gather": (GQA, 2, {}),
    "all-gather-latent": (MLA, 2, {}),
    "all-reduce": (layer("linear-attention", heads=2, head_dim=2, chunk=2), 2, FULL),
    "distributed-fft": (layer("hyena", channels=2, taps=2, filter_width=3, longest=1000), 8, {"kernel": "fft"}),
    "double-ring": (GQA, 4, {}),
    "gather-values": (MATRIX, 2, FULL),
    "halo": (layer("shortconv", channels=3, taps=3), 2, {}),
    "pass-q": (GQA, 2, {"phase": "forward"}),
    "pass-q-decode": (GQA, 2, {"phase": "decode", "batch": 16}),
    "pattern-exchange": (layer("longformer", heads=2, head_dim=2, side=1, globals=1), 2, FULL),
    "product-grid": (MATRIX, 2, FULL),
    "ring": (GQA, 1, {}),
    "ring-values": (MATRIX, 2, FULL),
    "select-gather": (layer("moba", heads=2, kv_heads=1, head_dim=2, block=2, chosen=3), 4, {}),
    "state-gather": (STATE, 4, {}),
    "state-pipeline": (STATE, 4, {}),
    "state-relay": (STATE, 4, {}),
    "state-serial": (layer("lstm", heads=1, head_dim=3), 2, {}),
    "state-tree": (STATE, 4, {}),
    "striped": (GQA, 2, {}),
    "tile": (GQA, 4, {}),
    "tree": (GQA, 2, {"phase": "decode"}),
    "ulysses": (MHA, 2, {}),
    "ulysses-ring": (GQA, 2, {}),
    "ulysses-zigzag": (GQA, 4, {}),
    "whole": (MHA, 2, {"batch": 2}),
    "window-halo": (WINDOW, 2, {}),
    "window-zigzag": (WINDOW, 4, {}),
    "zigzag": (GQA, 2, {}),
}


def meshes(strategy: str, ranks: int) -> list[dict[str, int]]:
    """So many ranks along the axes of a strategy, in every shape; beside each other for one that has none."""
    axes = strategies.get(strategy).axes
    if len(axes) < 2:
        return [{axes[0]: ranks} if axes else {"data": 2, "tensor": ranks // 2}]
    sizes = [size for size in range(2, ranks // 2 + 1) if ranks % size == 0]
    return [dict(zip(axes, (size, ranks // size), strict=True)) for size in sizes]


def small_case(strategy: str, mesh: Mapping[str, int], **options: Any) -> Case:
    """A strategy's layer on a mesh."""
    made, tokens, unusual = SMALL[strategy]
    cut = math.prod(size for axis, size in mesh.items() if axis != "data")
    return Case(made, strategies.get(strategy), mesh, tokens * cut, **{**options, **unusual})
