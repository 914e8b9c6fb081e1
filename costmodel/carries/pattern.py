"""The pattern carry: a token mixes with others at places that are known in advance."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from costmodel.carry import Carry
from costmodel.dims import Dim, minimum
from costmodel.masks import Mask
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")


class Pattern(Carry[T]):
    """P is sparse, and which of its entries are not zero does not depend on X.

    What crosses a cut is what the pattern names: rows at the cut, rows that all tokens see, or every so many-th token.
    """

    kind: ClassVar[str] = "rows of a static pattern"

    @abstractmethod
    def beside(self, ops: Vocabulary[T], line: Axis | None) -> T:
        """The mixed values [B, H, n, e] of this rank's tokens.

        Args:
            line: the ranks that hold the sequence one after the other, or ``None`` where it is whole.
        """

    def whole(self, ops: Vocabulary[T]) -> T:
        return self.beside(ops, None)


@dataclass(frozen=True)
class Seen(Generic[T]):
    """Keys [B, H, n_k, d] and values [B, H, n_k, e] that queries see, under a mask."""

    k: T
    v: T
    mask: Mask


def ends(line: Axis | None) -> tuple[Dim, Dim]:
    """1 if this rank is the first of the line, else 0; and the same for the last."""
    if line is None:
        return 1, 1
    return 1 - minimum(line.rank, 1), 1 - minimum(line.size - 1 - line.rank, 1)


def stretch(ops: Vocabulary[T], x: T, skipped: Dim, left: Dim, right: Dim, line: Axis | None) -> T:
    """A rank's rows of dimension 2 with those of its neighbours: as many to each side as there are, up to some.

    Args:
        skipped: rows at the beginning of the sequence that are left out.
    """
    n, (first, last) = ops.shape(x)[2], ends(line)
    if line is None:
        return ops.slice(x, 2, skipped, n - skipped)
    begin = (skipped + left) * first
    return ops.slice(ops.halo(x, 2, left, right, line), 2, begin, left + n + right * (1 - last) - begin)


def united(ops: Vocabulary[T], q: T, seen: Sequence[Seen[T]], scale: Dim) -> T:
    """Softmax attention over several sets of keys together: q [B, H, n, d] to [B, H, n, e].

    Each set by itself, merged by log-sum-exp; backward, each with the log-sum-exp of all.
    """
    masks = [part.mask for part in seen]

    def forward(ops: Vocabulary[Any], q: Any, *keys: Any) -> tuple[Any, tuple[Any, ...]]:
        out, lse = ops.attention(q, keys[0], keys[1], masks[0], scale)
        out = ops.cast(out, "accumulate")
        for i, mask in enumerate(masks[1:], 1):
            out, lse = ops.merge(out, lse, *ops.attention(q, keys[2 * i], keys[2 * i + 1], mask, scale))
        result = ops.cast(out, "model")
        return result, (q, *keys, result, lse)

    def backward(ops: Vocabulary[Any], saved: tuple[Any, ...], gradient: Any) -> tuple[Any, ...]:
        q, *keys, out, lse = saved
        dq, found = ops.zeros_like(q, "accumulate"), []
        for i, mask in enumerate(masks):
            bq, *both = ops.attention_backward(q, keys[2 * i], keys[2 * i + 1], out, lse, gradient, mask, scale)
            dq = ops.add_into(dq, bq, 2)
            found += both
        return (ops.cast(dq, "model"), *found)

    result: T = ops.custom(forward, backward, q, *(x for part in seen for x in (part.k, part.v)))
    return result


def of_the_first(ops: Vocabulary[T], x: T, line: Axis | None) -> T:
    """What the first rank of a line has, on all of them."""
    return x if line is None else ops.all_reduce(ops.scale(x, ends(line)[0]), line)


def over_all(ops: Vocabulary[T], q: T, seen: Seen[T], scale: Dim, line: Axis | None) -> T:
    """Softmax attention of queries that all ranks have over keys of which each has a part: [B, H, n, e], on all.

    As decoding over a spread cache (Shyam et al. 2024, arXiv 2408.04093), with a backward pass. The queries' gradients
    are those from this rank's keys.
    """
    if line is None:
        return ops.attention(q, seen.k, seen.v, seen.mask, scale)[0]
    axis = line

    def forward(ops: Vocabulary[Any], q: Any, k: Any, v: Any) -> tuple[Any, tuple[Any, ...]]:
        own, lse = ops.attention(q, k, v, seen.mask, scale)
        rows = (*ops.shape(lse), 1)
        total = _log_sum_exp(ops, ops.all_gather(ops.reshape(lse, rows), axis, 3))
        weight = ops.map("exp", ops.map("sub", ops.reshape(lse, rows), total))
        out = ops.cast(ops.all_reduce(ops.mul(ops.cast(own, "accumulate"), weight), axis), "model")
        return out, (q, k, v, out, ops.reshape(total, ops.shape(lse)))

    def backward(ops: Vocabulary[Any], saved: tuple[Any, ...], gradient: Any) -> tuple[Any, ...]:
        q, k, v, out, lse = saved
        return ops.attention_backward(q, k, v, out, lse, ops.all_reduce(gradient, axis), seen.mask, scale)

    result: T = ops.custom(forward, backward, q, seen.k, seen.v)
    return result


def _log_sum_exp(ops: Vocabulary[T], x: T) -> T:
    """Over the last axis, which stays with size 1."""
    last = (len(ops.shape(x)) - 1,)
    top = ops.max(x, last)
    return ops.add(top, ops.map("log", ops.sum(ops.map("exp", ops.map("sub", x, top)), last)))
