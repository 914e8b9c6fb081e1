"""Log-linear attention: linear attention with decay whose past is in pieces, each twice as long as the next nearer one.

The tokens before i are cut as the bits of i are: level 0 is i itself, and where bit b of i is 1, level b + 1 is a piece
of 2^b tokens. o_i = sum over levels of scale_i,level q_i (state of that piece, decayed to i). States are kept as binary
counters are: that of a new chunk joins those of the full levels below the first free one (Guo et al. 2025, arXiv
2506.04761, section 3; flash-linear-attention ops/log_linear_attn). Past the last level, that one takes all.

Where each rank has 2^p chunks, a rank's tokens are a piece of level p, and levels above it hold whole ranks: a rank
needs of each before it only the state and the decay of all its tokens, which join at level p.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeVar

from costmodel.carries.state import Affine, Summed, Tensors
from costmodel.dims import Dim, divide, log2
from costmodel.ops.scan import Recurrence
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.chunk_pairs import CAUSAL, Decay, decayed_pairs, in_chunks, spread

T = TypeVar("T")


@dataclass(frozen=True)
class Levels(Summed[T]):
    """q, k [B, H_kv, n, d], v [B, H, n, e], log_decay [B, H, n, 1] and scales [B, H, n, levels].

    The state is that of each level over chunks [B, H, S, d, e], and which levels but the last are full
    [B, H, S - 1].

    Attributes:
        scales: of level 0, of levels within a chunk, of the S levels over chunks.
        within: levels within a chunk, of 2^within tokens.
    """

    along: ClassVar[tuple[str, ...]] = ("q", "k", "v", "log_decay", "scales")

    q: T
    k: T
    v: T
    log_decay: T
    scales: T
    within: int

    def initial(self, ops: Vocabulary[T]) -> Tensors[T]:
        b, h, _, e = ops.shape(self.v)
        levels = ops.shape(self.scales)[3] - 1 - self.within
        states = ops.zeros((b, h, levels, ops.shape(self.k)[3], e), "accumulate")
        return states, ops.zeros((b, h, levels - 1), "accumulate")

    def prepare(self, ops: Vocabulary[T]) -> Tensors[T]:
        """Values of chunks' own pairs; of each chunk queries and scales of states, what it adds, and its decay."""
        q, k, v, decay, scales = (in_chunks(ops, x, 2**self.within) for x in self.streams())
        running = ops.cumsum(decay, 3)
        near = ops.slice(scales, 4, 0, 1 + self.within)
        far = ops.slice(scales, 4, 1 + self.within, ops.shape(scales)[4] - 1 - self.within)
        within, early, added, left = ops.fused("chunks", _of_chunks, q, k, v, running, near, family="scan")
        return within, early, far, added, left

    def summary(self, ops: Vocabulary[T], prepared: Tensors[T]) -> Affine[T]:
        """The decay [B, H, 1, 1] and the state [B, H, d, e] of all tokens of this rank."""
        b, h, _, d, e = ops.shape(prepared[3])
        start = ops.zeros((b, h, d, e), "accumulate")
        (state,), _ = ops.scan(_STATES, (start,), prepared[3:], axis=2)
        return Affine((ops.map("exp", ops.sum(self.log_decay, (2,))),), (state,))

    def advance(self, ops: Vocabulary[T], does: Affine[T], state: Tensors[T]) -> Tensors[T]:
        (decay,), (added,), (states, full) = does.transition, does.update, state
        chunks = divide(ops.shape(self.v)[2], 2**self.within)
        return joined(ops, ops.mul(states, _of_levels(ops, decay)), full, added, log2(chunks))

    def outputs(self, ops: Vocabulary[T], prepared: Tensors[T], state: Tensors[T]) -> T:
        _, (before,) = ops.scan(_CHUNKS, state, prepared[1:], axis=2)
        return ops.reshape(ops.add(prepared[0], before), ops.shape(self.v))


def _of_chunks(ops: Vocabulary[T], q: T, k: T, v: T, running: T, near: T) -> tuple[T, T, T, T]:
    """Values of chunks' own pairs, queries of the states before, what a chunk adds to the state, and its decay."""
    b, h, n, c, _ = ops.shape(running)
    last = ops.slice(running, 3, c - 1, 1)
    pairs = ops.mul(decayed_pairs(ops, q, k, Decay(running)), _of_pairs(ops, near))
    within = ops.contract("bhnij,bhnje->bhnie", pairs, v, CAUSAL, "ij")
    late = ops.mul(spread(ops, k, h), ops.map("exp", ops.map("sub", last, running)))
    added = ops.cast(ops.contract("bhnid,bhnie->bhnde", late, v), "accumulate")
    early = ops.mul(spread(ops, q, h), ops.map("exp", running))
    return within, early, added, ops.reshape(ops.map("exp", last), (b, h, n, 1, 1))


def _of_levels(ops: Vocabulary[T], decay: T) -> T:
    """A decay [B, H, 1, 1] as it meets states [B, H, S, d, e]."""
    return ops.reshape(decay, (*ops.shape(decay), 1))


def _of_pairs(ops: Vocabulary[T], scales: T) -> T:
    """The scale of each pair's level within a chunk [B, H, N, C, C], 0 above the diagonal, of [B, H, N, C, levels]."""
    b, h, n, chunk, count = ops.shape(scales)

    def level(which: int, *shape: Dim) -> T:
        return ops.reshape(ops.slice(scales, 4, which, 1), (b, h, n, *shape, 1))

    blocks, size = level(0, chunk, 1), 1
    for which in range(1, count):
        number = chunk // (2 * size)
        halves = ops.reshape(blocks, (b, h, n, number, 2, size, size))
        first, second = (ops.reshape(ops.slice(halves, 4, i, 1), (b, h, n, number, size, size)) for i in range(2))
        rows = ops.reshape(ops.slice(level(which, number, 2, size), 4, 1, 1), (b, h, n, number, size, 1))
        crossing = ops.expand(rows, (b, h, n, number, size, size))
        top = ops.concat([first, ops.zeros_like(first)], 5)
        blocks, size = ops.concat([top, ops.concat([crossing, second], 5)], 4), 2 * size
    return ops.reshape(blocks, (b, h, n, chunk, chunk))


def read_levels(ops: Vocabulary[T], q: T, states: T, scales: T) -> T:
    """Sum over levels of scale q state [B, H, C, e]: q [B, H, C, d], states [B, H, S, d, e], scales [B, H, C, S]."""
    return ops.contract("bhcs,bhcse->bhce", scales, ops.contract("bhcd,bhsde->bhcse", q, states))


def joined(ops: Vocabulary[T], states: T, full: T, new: T, level: Dim | None = None) -> tuple[T, T]:
    """States [B, H, S, d, e], and which levels are full [B, H, S - 1], after a new piece [B, H, d, e]: of one chunk,
    or of a level over chunks.

    No level below that of the piece is full.
    """
    after: tuple[T, T] = ops.custom(partial(_join, level), partial(_join_back, level), states, full, new)
    return after


def _join(level: Dim | None, ops: Vocabulary[T], states: T, full: T, new: T) -> tuple[tuple[T, T], tuple[T, ...]]:
    stays, takes, after = _moves(ops, full, level)
    b, h, levels, d, e = ops.shape(states)
    below = ops.concat([ops.reshape(new, (b, h, 1, d, e)), ops.slice(states, 2, 0, levels - 1)], 2)
    joined = ops.add(ops.mul(states, stays), ops.mul(ops.cumsum(below, 2), takes))
    return (joined, after), (full,)


def _join_back(level: Dim | None, ops: Vocabulary[T], saved: tuple[T, ...], gradient: T, _: T) -> tuple[T, T, T]:
    (full,) = saved
    stays, takes, _after = _moves(ops, full, level)
    b, h, _levels, d, e = ops.shape(gradient)
    taken = ops.mul(gradient, takes)
    above = ops.cumsum(taken, 2, reverse=True, exclusive=True)
    new = ops.reshape(ops.sum(taken, (2,)), (b, h, d, e))
    return ops.add(ops.mul(gradient, stays), above), ops.zeros_like(full), new


def _moves(ops: Vocabulary[T], full: T, level: Dim | None) -> tuple[T, T, T]:
    """Which levels keep their state and which takes those below, as 0 or 1 [B, H, S, 1, 1]; which are full then.

    To a piece of a higher level, those below it count as full; their states are zeros.
    """
    b, h, count = ops.shape(full)
    one = ops.ones((b, h, 1), "accumulate")
    if level is not None:
        ones = ops.ones((1, 1, count), "accumulate")
        full = ops.map("maximum", full, ops.map("at_least", ops.scale(ones, level), ops.cumsum(ones, 2)))
    free = ops.concat([ops.map("complement", full), one], 2)
    above = ops.map("minimum", ops.cumsum(free, 2, exclusive=True), one)
    takes = ops.mul(ops.map("complement", above), free)
    upper, first = (ops.slice(x, 2, 0, count) for x in (above, takes))
    stays = ops.concat([upper, one], 2)
    after = ops.add(ops.mul(full, upper), first)
    wide = b, h, count + 1, 1, 1
    return ops.reshape(stays, wide), ops.reshape(takes, wide), after


def _advance(ops: Vocabulary[Any], state: Any, chunk: Any, _: Any) -> Any:
    (states, full), (_, _, added, decay) = state, chunk
    return joined(ops, ops.mul(states, _of_levels(ops, decay)), full, added)


_STATES = Recurrence(
    "states of chunks",
    lambda ops, state, chunk, _: (ops.add(ops.mul(state[0], chunk[1]), chunk[0]),),
    lambda *_: (),
)
_CHUNKS = Recurrence(
    "levels of chunks",
    _advance,
    lambda ops, before, after, chunk, _: (read_levels(ops, chunk[0], before[0], chunk[1]),),
)
