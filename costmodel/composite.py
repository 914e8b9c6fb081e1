"""Small layers of every model, written over the vocabulary."""

from __future__ import annotations

from typing import Any, TypeVar

from costmodel.dims import product
from costmodel.documents import Packed
from costmodel.ops.mesh import Axis
from costmodel.ops.resets import Reset
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")


def rms_norm(ops: Vocabulary[T], x: T, weight: T) -> T:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, as one kernel (Zhang & Sennrich, arXiv 1910.07467)."""

    def body(ops: Vocabulary[Any], x: Any, weight: Any) -> Any:
        shape = ops.shape(x)
        mean = ops.scale(ops.sum(ops.map("square", x), (len(shape) - 1,)), 1 / shape[-1])
        return ops.mul(ops.mul(x, ops.map("rsqrt_eps", mean)), weight)

    result: T = ops.fused("rms_norm", body, x, weight)
    return result


def rope(ops: Vocabulary[T], x: T, cos: T, sin: T) -> T:
    """Rotary positions, as one kernel: x [B, H, L, d] with tables [L, d/2] (Su et al., arXiv 2104.09864).

    The two halves of d are the real and imaginary parts, as in Llama.
    """

    def body(ops: Vocabulary[Any], x: Any, cos: Any, sin: Any) -> Any:
        real, imaginary = ops.halves(x, 3)
        turned = ops.map("sub", ops.mul(real, cos), ops.mul(imaginary, sin))
        return ops.concat([turned, ops.add(ops.mul(imaginary, cos), ops.mul(real, sin))], 3)

    result: T = ops.fused("rope", body, x, cos, sin)
    return result


def swiglu(ops: Vocabulary[T], gate: T, up: T) -> T:
    """silu(gate) * up, as one kernel (Shazeer, arXiv 2002.05202)."""

    def body(ops: Vocabulary[Any], gate: Any, up: Any) -> Any:
        return ops.mul(ops.map("silu", gate), up)

    result: T = ops.fused("swiglu", body, gate, up)
    return result


def mean(ops: Vocabulary[T], x: T, axes: tuple[int, ...]) -> T:
    """Mean over axes, which stay with size 1."""
    shape = ops.shape(x)
    return ops.scale(ops.sum(x, axes), 1 / product(shape[axis] for axis in axes))


def token_shift(ops: Vocabulary[T], x: T, axis: int, line: Axis | None, packed: Packed | None = None) -> T:
    """Every token's predecessor, zeros before the first: an axis moved on by one place.

    Args:
        line: the ranks that hold the sequence one after the other, or ``None`` where it is whole.
        packed: the documents that the tokens are of, each of which has a first.
    """
    before = ops.slice(ops.halo(x, axis, 1, 0, line), axis, 0, ops.shape(x)[axis])
    return before if packed is None else ops.apply(Reset(packed, axis), before)[0]


def complex_of(ops: Vocabulary[T], real: T, imaginary: T) -> T:
    """Complex numbers [..., 2] of two parts [...]."""
    shape = ops.shape(real)
    return ops.concat([ops.reshape(part, (*shape, 1)) for part in (real, imaginary)], len(shape))


def real_part(ops: Vocabulary[T], x: T) -> T:
    """The real parts [...] of complex numbers [..., 2]; no memory moves."""
    return _part(ops, x, 0)


def imaginary_part(ops: Vocabulary[T], x: T) -> T:
    """The imaginary parts [...] of complex numbers [..., 2]; no memory moves."""
    return _part(ops, x, 1)


def _part(ops: Vocabulary[T], x: T, which: int) -> T:
    *outer, _ = ops.shape(x)
    return ops.reshape(ops.slice(x, len(outer), which, 1), tuple(outer))
