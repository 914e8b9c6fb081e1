"""Bytes that fused attention moves, counted by hand."""

from __future__ import annotations

from costmodel.masks import Mask
from costmodel.ops.fused_attention import Attention
from costmodel.tensor import Tensor as Traced
from costmodel.trace import Tracer, Widths


def test_values_within_keys_are_read_once() -> None:
    """One query of 2 heads against 5 keys of width 3, 2 bytes each, whose first 2 entries are the value, or are not."""
    ops, attention = Tracer(Widths(2, 4, 4), 1), Attention(Mask(), 1, 1, 4)
    q, whole, both = (Traced.new(shape, 2) for shape in ((1, 2, 1, 3), (1, 1, 5, 3), (1, 1, 5, 5)))
    apart = Traced.new((1, 1, 5, 2), 2)
    pairs = {
        "within": (whole, ops.slice(whole, 3, 0, 2), 0),
        "beside": (ops.slice(both, 3, 0, 3), ops.slice(both, 3, 3, 2), 2 * 5 * 2),
        "apart": (whole, apart, 2 * 5 * 2),
    }
    for name, (k, v, values) in pairs.items():
        outputs = ops.apply(attention, q, k, v)
        read = 2 * 2 * 3 + 2 * 5 * 3 + values
        assert attention.traffic((q, k, v), outputs) == (read, 2 * 2 * 2 + 2 * 4), name
