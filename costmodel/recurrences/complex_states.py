"""States that each keep a complex factor of themselves: x_t = exp(growth + i turn) x_{t-1} + u_t.

Three implementations: ``chunked`` (of each chunk a product with the powers of the factor, a triangular Toeplitz matrix
for each state; a scan over chunks), ``recurrent`` (token by token, the state on chip) and ``associative`` (all tokens
at a time, in a logarithmic number of steps).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from costmodel.carries.spectrum import counted
from costmodel.carries.state import Affine, State, Tensors
from costmodel.dims import Dim, divide
from costmodel.masks import Mask
from costmodel.ops.scan import Recurrence
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.diagonal import factor

T = TypeVar("T")

KERNELS = ("chunked", "recurrent", "associative")


@dataclass(frozen=True)
class ComplexStates(State[T]):
    """The states x after each token are the mixed values: u and x [B, H, n, 2], growth and turn [H, 1].

    Attributes:
        chunk: tokens of a chunk.
        kernel: one of ``KERNELS``.
    """

    along: ClassVar[tuple[str, ...]] = ("u",)
    of_heads: ClassVar[tuple[str, ...]] = ("growth", "turn")

    u: T
    growth: T
    turn: T
    chunk: Dim
    kernel: str = "chunked"

    def initial(self, ops: Vocabulary[T]) -> Tensors[T]:
        b, h, _, _ = ops.shape(self.u)
        return (ops.zeros((b, h, 2), "accumulate"),)

    def move(self, ops: Vocabulary[T], transition: Tensors[T], state: Tensors[T]) -> Tensors[T]:
        return (ops.complex_mul(state[0], transition[0]),)

    def transposed(self, ops: Vocabulary[T], transition: Tensors[T]) -> Tensors[T]:
        real, imaginary = ops.halves(transition[0], 2)
        return (ops.concat([real, ops.map("neg", imaginary)], 2),)

    def whole(self, ops: Vocabulary[T]) -> T:
        return ops.cast(self._from_none(ops), "model") if self.kernel == "associative" else super().whole(ops)

    def prepare(self, ops: Vocabulary[T]) -> Tensors[T]:
        """States of chunks that begin with none [B, H, N, C, 2], and each chunk's last, at accumulation precision.

        To the associative scan, all tokens are one chunk.
        """
        if self.kernel == "recurrent":
            return ()
        b, h, n, _ = ops.shape(self.u)
        if self.kernel == "associative":
            states = self._from_none(ops)
            return ops.reshape(states, (b, h, 1, n, 2)), ops.slice(states, 2, n - 1, 1)
        c = self.chunk
        cut = ops.reshape(self.u, (b, h, divide(n, c), c, 2))
        powers = ops.fused("powers of factors", _triangle, counted(ops, c), self.growth, self.turn)
        within = ops.contract("bhnjx,hijxy->bhniy", cut, powers, Mask(causal=True), "ij")
        last = ops.cast(ops.slice(within, 3, c - 1, 1), "accumulate")
        return within, ops.reshape(last, (b, h, divide(n, c), 2))

    def summary(self, ops: Vocabulary[T], prepared: Tensors[T]) -> Affine[T]:
        (state,), _ = self._scan(ops, prepared, read=False, state=self.initial(ops))
        h = ops.shape(self.growth)[0]
        decay = self._power(ops, ops.shape(self.u)[2])
        return Affine((ops.reshape(decay, (1, h, 2)),), (state,))

    def outputs(self, ops: Vocabulary[T], prepared: Tensors[T], state: Tensors[T]) -> T:
        _, (handed,) = self._scan(ops, prepared, read=True, state=state)
        if self.kernel == "recurrent":
            return handed
        b, h, n, _ = ops.shape(handed)
        chunk = ops.shape(prepared[0])[3]

        def added(ops: Vocabulary[Any], within: Any, before: Any, growth: Any, turn: Any, places: Any) -> Any:
            lags = ops.shift(places, 1)
            rate = (ops.reshape(ops.mul(x, lags), (h, 1, chunk, 1)) for x in (growth, turn))
            grown = ops.complex_mul(ops.reshape(before, (b, h, n, 1, 2)), factor(ops, *rate))
            return ops.cast(ops.add(within, grown), "model")

        places = counted(ops, chunk)
        both = ops.fused("states before", added, prepared[0], handed, self.growth, self.turn, places)
        return ops.reshape(both, ops.shape(self.u))

    def _from_none(self, ops: Vocabulary[T]) -> T:
        """States [B, H, n, 2], at accumulation precision, where there is none before, by an associative scan."""
        _, h, n, _ = ops.shape(self.u)
        factors = ops.expand(ops.reshape(self._power(ops, 1), (1, h, 1, 2)), (1, h, n, 2))
        return ops.affine_scan(ops.cast(self.u, "accumulate"), factors, 2, pairs=True)

    def _power(self, ops: Vocabulary[T], tokens: Dim) -> T:
        """What so many tokens leave of a state: complex [H, 2]."""

        def body(ops: Vocabulary[Any], growth: Any, turn: Any) -> Any:
            return factor(ops, ops.scale(growth, tokens), ops.scale(turn, tokens))

        result: T = ops.fused("power of factors", body, self.growth, self.turn)
        return result

    def _scan(
        self, ops: Vocabulary[T], prepared: Tensors[T], read: bool, state: Tensors[T]
    ) -> tuple[Tensors[T], Tensors[T]]:
        """Through chunks, handing out the state before each; or through tokens, handing out the state after each."""
        if self.kernel == "recurrent":
            return ops.scan(_tokens(read), state, (self.u,), (self._power(ops, 1),), axis=2)
        chunk = ops.shape(prepared[0])[3]
        return ops.scan(_over_chunks(read), state, prepared[1:], (self._power(ops, chunk),), axis=2)


def _triangle(ops: Vocabulary[T], places: T, growth: T, turn: T) -> T:
    """exp((growth + i turn) (i - j)) for j <= i, as real matrices of complex numbers [H, C, C, 2, 2]."""
    h, c = ops.shape(growth)[0], ops.shape(places)[0]
    apart = ops.map("sub", ops.reshape(places, (1, c, 1)), ops.reshape(places, (1, 1, c)))
    rates = (ops.mul(ops.reshape(x, (h, 1, 1)), apart) for x in (growth, turn))
    size, angle = next(rates), next(rates)
    size = ops.map("exp", ops.masked(size, Mask(causal=True), "-inf"))
    real, imaginary = (ops.reshape(ops.mul(size, ops.map(wave, angle)), (h, c, c, 1, 1)) for wave in ("cos", "sin"))
    rows = ops.concat([real, imaginary], 4), ops.concat([ops.map("neg", imaginary), real], 4)
    return ops.concat(rows, 3)


def _advance(ops: Vocabulary[Any], state: Any, own: Any, constants: Any) -> Any:
    return (ops.add(ops.complex_mul(state[0], constants[0]), own[0]),)


def _tokens(read: bool) -> Recurrence:
    def emit(ops: Vocabulary[Any], before: Any, after: Any, own: Any, _: Any) -> Any:
        return (ops.cast(after[0], "model"),) if read else ()

    return Recurrence("recurrence of complex states", _advance, emit, "recurrence")


def _over_chunks(read: bool) -> Recurrence:
    return Recurrence("complex states of chunks", _advance, lambda ops, before, *_: before if read else ())
