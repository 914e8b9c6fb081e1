"""Cells: nonlinear recurrences of one token a step, with weights between one token's state and the next's.

Products with the input are no part of it: they are done before, for all tokens at once, as cuDNN does. The loop over
tokens is one kernel with the weights on chip (persistent: Diamos et al. 2016; xLSTM: arXiv 2412.07752).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from costmodel.carries.direct import Direct
from costmodel.carries.state import Recurrent, Tensors
from costmodel.dims import divide
from costmodel.ops.scan import Recurrence
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.resets import reset

T = TypeVar("T")

Many = tuple[Any, ...]


@dataclass(frozen=True)
class Cell:
    """What a token does to the state.

    Attributes:
        states: the precision of each tensor [B, H, d] of the state; the last is the hidden state, which is handed out.
        advance: ``advance(ops, state, x, weights)``: the state after a token x [B, H, e]. All states start at 0, and
            are reset to that at the first token of a packed document.
    """

    name: str
    states: tuple[str, ...]
    advance: Callable[[Any, Many, Any, Many], Many]

    @property
    def loop(self) -> Recurrence:
        """The cell over tokens."""
        return Recurrence(
            self.name,
            lambda ops, state, x, weights: self.advance(ops, _kept(ops, state, x[1:]), x[0], weights),
            lambda ops, before, after, x, weights: (after[-1],),
            "recurrence",
        )


@dataclass(frozen=True)
class Cells(Recurrent[T]):
    """A cell over tokens x [B, H, n, e], with weights [H, ...] of which the first is [H, d, e]."""

    along: ClassVar[tuple[str, ...]] = ("x",)
    of_heads: ClassVar[tuple[str, ...]] = ("weights",)

    cell: Cell
    x: T
    weights: tuple[T, ...]

    def initial(self, ops: Vocabulary[T]) -> Tensors[T]:
        heads, d, _ = ops.shape(self.weights[0])
        return tuple(ops.zeros((ops.shape(self.x)[0], heads, d), precision) for precision in self.cell.states)

    def run(self, ops: Vocabulary[T], state: Tensors[T]) -> tuple[T, Tensors[T]]:
        tokens: Tensors[T] = (self.x,)
        if self.packed is not None:
            ones = ops.ones((1, 1, ops.shape(self.x)[2], 1), "accumulate")
            tokens = (self.x, reset(ops, ones, self.packed))
        after, (hidden,) = ops.scan(self.cell.loop, state, tokens, self.weights, axis=2)
        return hidden, after


def _kept(ops: Vocabulary[T], state: Many, resets: Many) -> Many:
    """The state, times 0 where a document begins."""
    return tuple(ops.mul(x, kept) for x in state for kept in resets) if resets else state


def cell_step(ops: Vocabulary[T], cell: Cell, x: T, weights: Tensors[T], cache: Tensors[T]) -> Direct[T]:
    """One token x [B, H, 1, e] against its state, as one kernel."""
    b, h, _, e = ops.shape(x)

    def body(ops: Vocabulary[Any], x: Any, *others: Any) -> Many:
        return cell.advance(ops, others[: len(cache)], x, others[len(cache) :])

    after = ops.fused(cell.name, body, ops.reshape(x, (b, h, e)), *cache, *weights)
    *_, hidden = (ops.append(old, new, 0) for old, new in zip(cache, after, strict=True))
    return Direct(ops.reshape(hidden, (b, h, 1, ops.shape(hidden)[2])))


def preactivation(ops: Vocabulary[T], x: T, hidden: T, weight: T, bias: T) -> T:
    """x + hidden R + bias [B, H, e], for x [B, H, e], hidden [B, H, d], R [H, d, e] and bias [H, e]."""
    recurrent = ops.contract("bhd,hde->bhe", hidden, weight)
    return ops.add(ops.add(ops.cast(x, "accumulate"), recurrent), bias)


def gates(ops: Vocabulary[T], raw: T, count: int) -> tuple[T, ...]:
    """Equal parts of the last axis of [B, H, count d]."""
    size = divide(ops.shape(raw)[2], count)
    return tuple(ops.slice(raw, 2, place * size, size) for place in range(count))
