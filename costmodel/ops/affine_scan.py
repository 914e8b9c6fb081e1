"""An associative scan: a linear recurrence of numbers, all tokens at a time, in a logarithmic number of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from costmodel.dims import Dim, divide, doublings, exp2
from costmodel.ops.fourier import paired
from costmodel.ops.pointwise import broadcast
from costmodel.ops.primitive import Flops, Primitive, Reading, Spec
from costmodel.tensor import Tensor

if TYPE_CHECKING:
    from costmodel.ops.vocabulary import Vocabulary


def combinations(n: Dim) -> Dim:
    """How often two stretches of n steps are combined, n filled up to a power of two N: 2 N - 2 - log2 N.

    Each level combines N / 2 neighbours, scans these, and combines all but the first of the others with what comes
    before them: N - 1, with N halved from level to level (Blelloch 1990, CMU-CS-90-190, section 1.4, in place of whose
    second sweep is that of ``jax.lax.associative_scan``).

    >>> combinations(8), combinations(1), combinations(5)
    (11, 0, 11)
    """
    levels = doublings(n)
    return 2 * exp2(levels) - 2 - levels


@dataclass(frozen=True)
class AffineScan(Primitive):
    """y_t = a_t y_{t-1} + x_t along an axis, y before the first being 0; a may be of size 1 in other axes.

    Two steps are combined into (a' a, a' x + x'): 3 FLOP of real numbers, 6 + 8 of complex ones, the first part for
    each entry of a. The kernel goes over its operands once (Merrill & Garland 2016, NVR-2016-002).

    Attributes:
        pairs: whether numbers are complex, pairs on the last axis.
        reverse: y_t = a_t y_{t+1} + x_t.
        conjugate: with the conjugates of a.
    """

    axis: int
    pairs: bool = False
    reverse: bool = False
    conjugate: bool = False

    family = "scan"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        x, a = inputs
        shapes = [paired(t) if self.pairs else t.shape for t in (x, a)]
        broadcast(shapes)
        return (Spec(x.shape, x.width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        n = inputs[0].shape[self.axis]
        x, a = (divide(t.elements, n) for t in inputs)
        return {"elementwise": combinations(n) * (4 * x + 3 * a if self.pairs else 2 * x + a)}

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        _, a = inputs
        back = AffineScan(self.axis, self.pairs, not self.reverse, self.pairs and not self.conjugate)
        (found,) = ops.apply(back, gradients[0], _next(ops, a, self.axis, later=not self.reverse))

        def of_factors() -> Any:
            before = _next(ops, outputs[0], self.axis, later=self.reverse)
            if not self.pairs:
                return ops.sum_to(ops.mul(found, before), ops.shape(a))
            both = (before, found) if self.conjugate else (found, before)
            return ops.sum_to(ops.complex_mul(*both, conjugate=True), ops.shape(a))

        return found, of_factors


def _next(ops: Vocabulary[Any], x: Any, axis: int, later: bool) -> Any:
    """Each entry's successor along an axis (or predecessor); 0 where there is none."""
    n = ops.shape(x)[axis]
    return ops.pad(ops.slice(x, axis, 1 if later else 0, n - 1), axis, 0 if later else 1, n)
