"""The pairs carry: queries against keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from costmodel.carry import Carry
from costmodel.dims import Dim, divide
from costmodel.masks import Mask
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")


@dataclass(frozen=True)
class Pairs(Carry[T]):
    """Softmax attention: q [B, H, n_q, d], k [B, H_kv, n_k, d], v [B, H_kv, n_k, e].

    What crosses a cut is a partial output with its log-sum-exp, or the keys and values themselves. Merging partial
    outputs is associative and commutative (Milakov & Gimelshein, arXiv 1805.02867).

    Attributes:
        mask: over the whole sequence.
        scale: of the scores.
        kernel: ``"fused"`` (scores stay on chip) or ``"vanilla"`` (scores materialised).
    """

    q: T
    k: T
    v: T
    mask: Mask
    scale: Dim
    kernel: str = "fused"

    kind: ClassVar[str] = "pairs"

    def streams(self) -> tuple[T, ...]:
        return self.q, self.k, self.v

    def on(self, streams: Sequence[T], parameters: Sequence[T] = ()) -> Pairs[T]:
        q, k, v = streams
        return replace(self, q=q, k=k, v=v)

    def whole(self, ops: Vocabulary[T]) -> T:
        if self.kernel == "vanilla":
            return _vanilla(ops, self)
        return ops.attention(self.q, self.k, self.v, self.mask, self.scale)[0]


def merged(ops: Vocabulary[T], outs: T, lses: T) -> tuple[T, T]:
    """Partial outputs [P, B, H, n, e] and log-sum-exps [P, B, H, n] over the keys of all, as one kernel.

    lse = log(sum_p exp(lse_p)) and out = sum_p exp(lse_p - lse) out_p; a query sees at least one key of some part.
    """

    def body(ops: Vocabulary[Any], outs: Any, lses: Any) -> tuple[Any, Any]:
        shape = ops.shape(outs)[1:]
        most = ops.max(lses, (0,))
        summed = ops.sum(ops.map("exp", ops.map("sub", lses, most)), (0,))
        lse = ops.add(ops.map("log", summed), most)
        weights = ops.map("exp", ops.map("sub", lses, lse))
        out = ops.sum(ops.mul(ops.reshape(weights, (*ops.shape(lses), 1)), outs), (0,))
        return ops.cast(ops.reshape(out, shape), "model"), ops.reshape(lse, shape[:3])

    out, lse = ops.fused("merge of partial outputs", body, outs, lses)
    return out, lse


def _vanilla(ops: Vocabulary[T], pairs: Pairs[T]) -> T:
    """softmax(scale q k^T + mask) v with the scores in memory: [B, H_kv, H/H_kv, n_q, n_k]."""
    b, h, n, d = ops.shape(pairs.q)
    h_kv = ops.shape(pairs.k)[1]
    grouped = ops.reshape(pairs.q, (b, h_kv, divide(h, h_kv), n, d))
    scores = ops.contract("bkgid,bkjd->bkgij", grouped, pairs.k, pairs.mask, "ij")
    weights = ops.softmax(scores, pairs.scale, pairs.mask)
    out = ops.contract("bkgij,bkje->bkgie", weights, pairs.v, pairs.mask, "ij")
    return ops.reshape(out, (b, h, n, ops.shape(pairs.v)[3]))
