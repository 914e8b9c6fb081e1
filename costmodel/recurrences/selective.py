"""Mamba's selective scan: each channel x has a state h of N entries, which decay at rates of their own.

step = softplus(dt + bias), h_t = exp(step_t A) h_{t-1} + step_t x_t b_t, y_t = (c_t h_t + skip x_t) silu(z_t), with A =
-exp(rate) (Gu & Dao 2023, arXiv 2312.00752, algorithm 2; state-spaces/mamba selective_scan_interface.py). ``fused`` is
one kernel, which keeps the state on chip; ``vanilla`` has decays and inputs of all states [B, E, n, N] in memory, as
transformers' code without that kernel; ``associative`` has them too, and finds the states by an associative scan, as
code without a kernel of its own does that is not to go token by token (alxndrTL/mamba.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from costmodel.carries.state import Affine, State, Tensors
from costmodel.ops.scan import Recurrence
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.resets import kept, reset

T = TypeVar("T")

KERNELS = ("fused", "vanilla", "associative")


@dataclass(frozen=True)
class Selective(State[T]):
    """The recurrence of x, dt and gate z [B, E, n, 1], b and c [B, 1, n, N]; the state is [B, E, N].

    Attributes:
        rate: [E, N], the logarithm of -A.
        bias, skip: [E].
        kernel: one of ``KERNELS``.
    """

    along: ClassVar[tuple[str, ...]] = ("x", "dt", "z", "b", "c")
    of_heads: ClassVar[tuple[str, ...]] = ("rate", "bias", "skip")

    x: T
    dt: T
    z: T
    b: T
    c: T
    rate: T
    bias: T
    skip: T
    kernel: str = "fused"

    def initial(self, ops: Vocabulary[T]) -> Tensors[T]:
        batch, channels = ops.shape(self.x)[:2]
        return (ops.zeros((batch, channels, ops.shape(self.rate)[1]), "accumulate"),)

    def prepare(self, ops: Vocabulary[T]) -> Any:
        """A [E, N]; decays and inputs of all states, if they are in memory; states where there is none before."""
        a = ops.map("neg", ops.map("exp", ops.cast(self.rate, "accumulate")))
        resets = kept(ops, ops.shape(self.x)[2], self.packed)
        if self.kernel == "fused":
            return _Prepared(a, resets)
        step = ops.map("softplus", ops.add(ops.cast(self.dt, "accumulate"), _by_channel(ops, self.bias)))
        decay = ops.map("exp", ops.mul(step, ops.reshape(a, (ops.shape(a)[0], 1, ops.shape(a)[1]))))
        decay = reset(ops, decay, self.packed)
        added = ops.mul(ops.mul(step, self.x), self.b)
        if self.kernel == "vanilla":
            return _Prepared(a, resets, (decay, added))
        return _Prepared(a, resets, (ops.affine_scan(added, decay, 2),))

    def whole(self, ops: Vocabulary[T]) -> T:
        return self._read(ops, self.prepare(ops).states[0]) if self.kernel == "associative" else super().whole(ops)

    def summary(self, ops: Vocabulary[T], prepared: Any) -> Affine[T]:
        if self.kernel == "associative":
            (found,) = prepared.states
            b, e, n, states = ops.shape(found)
            state = ops.reshape(ops.slice(found, 2, n - 1, 1), (b, e, states))
        else:
            (state,), _ = self._scan(ops, prepared, self.initial(ops), read=False)
        given = self.dt, _by_channel(ops, self.bias), prepared.a, *prepared.resets
        return Affine((ops.fused("total decay", _total_decay, *given),), (state,))

    def outputs(self, ops: Vocabulary[T], prepared: Any, state: Tensors[T]) -> T:
        if self.kernel == "associative":
            before = self.dt, _by_channel(ops, self.bias), prepared.a, state[0], *prepared.resets
            return self._read(ops, ops.fused("states before", _with_state, *prepared.states, *before))
        _, (y,) = self._scan(ops, prepared, state, read=True)
        if self.kernel == "fused":
            return y
        skipped = ops.add(ops.mul(self.x, _by_channel(ops, self.skip)), y)
        return ops.mul(skipped, ops.map("silu", self.z))

    def _read(self, ops: Vocabulary[T], states: T) -> T:
        """The output from the states [B, E, n, N] after each token, as one kernel."""
        skip = _by_channel(ops, self.skip)

        def body(ops: Vocabulary[Any], x: Any, z: Any, states: Any, c: Any, skip: Any) -> Any:
            read = ops.sum(ops.mul(states, c), (3,))
            return ops.mul(ops.add(ops.mul(x, skip), read), ops.map("silu", z))

        result: T = ops.fused("output", body, self.x, self.z, states, self.c, skip)
        return result

    def _scan(
        self, ops: Vocabulary[T], prepared: _Prepared[T], state: Tensors[T], read: bool
    ) -> tuple[Tensors[T], Tensors[T]]:
        if self.kernel == "vanilla":
            return ops.scan(_over_states(read), state, (*prepared.states, self.c), axis=2)
        e = ops.shape(self.bias)[0]
        constants = prepared.a, *(ops.reshape(x, (e, 1)) for x in (self.bias, self.skip))
        if read:
            return ops.scan(_TOKENS, state, (*self.streams(), *prepared.resets), constants, axis=2)
        return ops.scan(_STATES, state, (self.x, self.dt, self.b, *prepared.resets), constants[:2], axis=2)


@dataclass(frozen=True)
class _Prepared(Generic[T]):
    """What is done before the state is known.

    Attributes:
        a: A [E, N].
        resets: what is left of states by them (see ``kept``).
        states: decays and inputs of all states, or the states, [B, E, n, N] each, where they are in memory.
    """

    a: T
    resets: Tensors[T]
    states: Tensors[T] = ()


def _by_channel(ops: Vocabulary[T], x: T) -> T:
    return ops.reshape(x, (ops.shape(x)[0], 1, 1))


def _total_decay(ops: Vocabulary[T], dt: T, bias: T, a: T, *resets: T) -> T:
    """What all tokens together leave of a state: exp(A sum of steps) [B, E, N]."""
    steps = ops.sum(ops.map("softplus", ops.add(ops.cast(dt, "accumulate"), bias)), (2,))
    batch, channels = ops.shape(dt)[:2]
    fall = ops.mul(ops.reshape(steps, (batch, channels, 1)), a)
    for each in resets:
        fall = ops.add(fall, ops.reshape(ops.sum(each, (2,)), (1, 1, 1)))
    return ops.map("exp", fall)


def _with_state(ops: Vocabulary[T], states: T, dt: T, bias: T, a: T, before: T, *resets: T) -> T:
    """States [B, E, n, N] that began with none, had they begun with one [B, E, N]."""
    steps = ops.cumsum(ops.map("softplus", ops.add(ops.cast(dt, "accumulate"), bias)), 2)
    e, n = ops.shape(a)
    fall = ops.mul(steps, ops.reshape(a, (e, 1, n)))
    for each in resets:
        fall = ops.add(fall, ops.cumsum(each, 2))
    return ops.add(states, ops.mul(ops.map("exp", fall), ops.reshape(before, (*ops.shape(before)[:2], 1, n))))


def selective_step(ops: Vocabulary[T], state: T, token: tuple[T, ...], a: T, bias: T) -> T:
    """The state [B, E, N] after a token x, dt [B, E, 1], b [B, 1, N], with A [E, N] and bias [E, 1].

    Args:
        token: last of all the logarithm of what resets leave of the state [1, 1, 1], if there are any.
    """
    x, dt, b, *resets = token
    step = ops.map("softplus", ops.add(ops.cast(dt, "accumulate"), bias))
    fall = ops.mul(step, a)
    for each in resets:
        fall = ops.add(fall, each)
    return ops.add(ops.mul(state, ops.map("exp", fall)), ops.mul(ops.mul(step, x), b))


def selective_output(ops: Vocabulary[T], state: T, token: tuple[T, T, T], skip: T) -> T:
    """A token's output [B, E, 1] from the state after it, its x and z [B, E, 1] and c [B, 1, N], with skip [E, 1]."""
    x, z, c = token
    read = ops.sum(ops.mul(state, c), (2,))
    return ops.mul(ops.add(ops.mul(x, skip), read), ops.map("silu", z))


def _advance(ops: Vocabulary[Any], state: Any, token: Any, constants: Any) -> Any:
    return (selective_step(ops, state[0], token, *constants),)


_STATES = Recurrence("selective scan, states only", _advance, lambda *_: (), "recurrence")
_TOKENS = Recurrence(
    "selective scan",
    lambda ops, state, token, constants: _advance(ops, state, (*token[:2], token[3], *token[5:]), constants[:2]),
    lambda ops, before, after, token, constants: (
        selective_output(ops, after[0], (token[0], token[2], token[4]), constants[2]),
    ),
    "recurrence",
)


def _over_states(read: bool) -> Recurrence:
    def advance(ops: Vocabulary[Any], state: Any, token: Any, _: Any) -> Any:
        decay, added, _c = token
        return (ops.add(ops.mul(state[0], decay), added),)

    def emit(ops: Vocabulary[Any], before: Any, after: Any, token: Any, _: Any) -> Any:
        return (ops.sum(ops.mul(after[0], token[2]), (2,)),) if read else ()

    return Recurrence("scan of states", advance, emit, "recurrence")
