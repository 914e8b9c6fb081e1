"""The selection carry: each query chooses blocks of keys, by summaries of all blocks, and attends to these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Selection(Carry[T]):
    """Softmax attention of q [B, H, n, d] over chosen blocks of k [B, H_kv, m, d] and v [B, H_kv, m, e], causal.

    The choice is made by summaries [B, heads, blocks, ...], one for each block, and has no gradient. All that crosses a
    cut are keys, values and summaries. Gradients are the algorithm's own: of all that comes between, only the choice,
    the output and its log-sum-exp are kept, and what was gathered is gathered again.
    """

    q: T
    k: T
    v: T
    summaries: T
    choice: Choice
    scale: Dim

    kind: ClassVar[str] = "selection"

    def streams(self) -> tuple[T, ...]:
        return self.q, self.k, self.v, self.summaries

    def on(self, streams: Sequence[T], parameters: Sequence[T] = ()) -> Selection[T]:
        q, k, v, summaries = streams
        return replace(self, q=q, k=k, v=v, summaries=summaries)

    def whole(self, ops: Vocabulary[T]) -> T:
        return self.across(ops, None)

    def across(self, ops: Vocabulary[T], axis: Axis | None) -> T:
        """The mixed values [B, H, n, e], with the keys of all ranks of an axis, or just these.

        Queries are the last of the tokens that there are keys for, or this rank's.
        """
        queries, keys = ops.shape(self.q)[2], ops.shape(self.k)[2]
        placed = Placed(self.choice.block, keys - queries if axis is None else axis.rank * queries)
        kernel = ChosenAttention(placed, self.scale, ops.width("accumulate"), self.choice.by_block)

        def forward(ops: Vocabulary[T], q: T, k: T, v: T, summaries: T) -> tuple[T, tuple[T, ...]]:
            all_k, all_v, summaries = (_everywhere(ops, x, axis) for x in (k, v, summaries))
            chosen = self.choice.choose(ops, q, summaries, placed)
            out, lse = ops.apply(kernel, q, all_k, all_v, chosen)
            return out, (q, k, v, chosen, out, lse)

        def backward(ops: Vocabulary[T], saved: tuple[T, ...], gradient: T) -> tuple[T | None, ...]:
            q, k, v, chosen, out, lse = saved
            all_k, all_v = (_everywhere(ops, x, axis) for x in (k, v))
            dq, dk, dv = ops.chosen_attention_backward((q, all_k, all_v, chosen), (out, lse), gradient, kernel)
            return dq, _own(ops, dk, axis), _own(ops, dv, axis), None

        result: T = ops.custom(forward, backward, self.q, self.k, self.v, self.summaries)
        return result


def _everywhere(ops: Vocabulary[T], x: T, axis: Axis | None) -> T:
    return x if axis is None else ops.all_gather(x, axis, 2)


def _own(ops: Vocabulary[T], gradient: T, axis: Axis | None) -> T:
    """This rank's part of a gradient, summed over ranks."""
    if axis is None:
        return gradient
    return ops.cast(ops.reduce_scatter(ops.cast(gradient, "gradient"), axis, 2), "model")
