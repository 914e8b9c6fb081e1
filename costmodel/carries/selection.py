"""The selection carry: each query chooses blocks of keys, by summaries of all blocks, and attends to these."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from costmodel.carry import Carry
from costmodel.dims import Dim
from costmodel.ops.chosen_blocks import ChosenAttention, Placed
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")


@dataclass(frozen=True)
class Choice:
    """How blocks are chosen and read.

    Attributes:
        block: tokens of a block.
        choose: ``choose(ops, guide, summaries, placed)``, giving numbers of blocks [B, H_c, n, S]: the query's own
            block, and others before it or, where there are too few, after it.
        by_block: how the kernel reads memory; see ``ChosenAttention``.
    """

    block: Dim
    choose: Callable[[Vocabulary[Any], Any, Any, Placed], Any]
    by_block: bool = False


class Selection(Carry[T]):
    """Each query attends to keys that it chooses. All that crosses a cut is what it chooses from, and by."""

    kind: ClassVar[str] = "selection"

    @abstractmethod
    def across(self, ops: Vocabulary[T], axis: Axis | None) -> T:
        """The mixed values [B, H, n, e], with the keys of all ranks of an axis, or just these.

        Queries are the last of the tokens that there are keys for, or this rank's.
        """

    def whole(self, ops: Vocabulary[T]) -> T:
        return self.across(ops, None)


@dataclass(frozen=True)
class Blocks(Selection[T]):
    """Softmax attention of q [B, H, n, d] over chosen blocks of k [B, H_kv, m, d] and v [B, H_kv, m, e], causal.

    The choice is made by summaries [B, heads, blocks, ...], one for each block, and has no gradient. Gradients are the
    algorithm's own: of all that comes between, only the choice, the output and its log-sum-exp are kept, and what was
    gathered is gathered again.
    """

    along: ClassVar[tuple[str, ...]] = ("q", "k", "v", "summaries")

    q: T
    k: T
    v: T
    summaries: T
    choice: Choice
    scale: Dim

    def across(self, ops: Vocabulary[T], axis: Axis | None) -> T:
        placed = Placed(self.choice.block, first_query(ops, self.q, self.k, axis))
        kernel = ChosenAttention(placed, self.scale, ops.width("accumulate"), self.choice.by_block)

        def forward(ops: Vocabulary[T], q: T, k: T, v: T, summaries: T) -> tuple[T, tuple[T, ...]]:
            all_k, all_v, summaries = (everywhere(ops, x, axis) for x in (k, v, summaries))
            chosen = self.choice.choose(ops, q, summaries, placed)
            out, lse = ops.apply(kernel, q, all_k, all_v, chosen)
            return out, (q, k, v, chosen, out, lse)

        def backward(ops: Vocabulary[T], saved: tuple[T, ...], gradient: T) -> tuple[T | None, ...]:
            q, k, v, chosen, out, lse = saved
            all_k, all_v = (everywhere(ops, x, axis) for x in (k, v))
            dq, dk, dv = ops.chosen_attention_backward((q, all_k, all_v, chosen), (out, lse), gradient, kernel)
            return dq, own_part(ops, dk, axis), own_part(ops, dv, axis), None

        result: T = ops.custom(forward, backward, self.q, self.k, self.v, self.summaries)
        return result


def first_query(ops: Vocabulary[T], q: T, k: T, axis: Axis | None) -> Dim:
    """Position of the first of a rank's queries, or of the last of the tokens that there are keys for."""
    queries = ops.shape(q)[2]
    return ops.shape(k)[2] - queries if axis is None else axis.rank * queries


def everywhere(ops: Vocabulary[T], x: T, axis: Axis | None) -> T:
    """What all ranks have [B, heads, n, ...], or just these."""
    return x if axis is None else ops.all_gather(x, axis, 2)


def own_part(ops: Vocabulary[T], gradient: T, axis: Axis | None) -> T:
    """This rank's part of a gradient, summed over ranks."""
    if axis is None:
        return gradient
    summed = ops.reduce_scatter(ops.cast(gradient, "gradient"), axis, 2)
    return ops.cast(summed, ops.precision(gradient))
