"""The pairs carry: queries against keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

from costmodel.carry import Carry
from costmodel.dims import Dim, divide
from costmodel.documents import Documents
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

    along: ClassVar[tuple[str, ...]] = ("q", "k", "v")

    q: T
    k: T
    v: T
    mask: Mask
    scale: Dim
    kernel: str = "fused"

    kind: ClassVar[str] = "pairs"
    documents: ClassVar[bool] = True

    def of_documents(self, documents: Documents | None) -> Self:
        return self  # its mask has them

    def cached(self, ops: Vocabulary[T]) -> tuple[Dim, ...]:
        """Under a causal mask, keys that are more than the queries came before them."""
        more = ops.shape(self.k)[2] - ops.shape(self.q)[2] if self.mask.causal else 0
        return 0, more, more

    def whole(self, ops: Vocabulary[T]) -> T:
        if self.kernel == "vanilla":
            return _vanilla(ops, self)
        return ops.attention(self.q, self.k, self.v, self.mask, self.scale)[0]


@dataclass(frozen=True)
class LatentPairs(Pairs[T]):
    """Pairs whose keys and values come from a latent (MLA): k is c [B, n, r], v the keys' shared part [B, 1, n, d_r].

    Keys are (c W_uk, k_r) and values c W_uv for every head. Only strategies that say so take it in this form.

    Attributes:
        w_uk: [r, H, d_n].
        w_uv: [r, H, e].
    """

    w_uk: Any = None
    w_uv: Any = None

    def opened(self, ops: Vocabulary[T]) -> Pairs[T]:
        """The same with keys and values of every head."""
        k, v = self.expand(ops, self.k, self.v, self.w_uk, self.w_uv)
        return Pairs(self.q, k, v, self.mask, self.scale, self.kernel)

    @staticmethod
    def expand(ops: Vocabulary[T], c: T, k_r: T, w_uk: T, w_uv: T) -> tuple[T, T]:
        """Keys [B, H, n, d_n + d_r] and values [B, H, n, e]."""
        k_n = ops.contract("blr,rhe->bhle", c, w_uk)
        v = ops.contract("blr,rhe->bhle", c, w_uv)
        return ops.concat([k_n, ops.expand(k_r, (*ops.shape(k_n)[:3], ops.shape(k_r)[3]))], 3), v

    @staticmethod
    def shrink(ops: Vocabulary[T], given: tuple[T, T, T, T], dk: T, dv: T) -> tuple[T, T, T, T]:
        """The reverse of ``expand``: gradients of what it was ``given``."""
        c, k_r, w_uk, w_uv = given
        d_n = ops.shape(w_uk)[2]
        of_nope, of_rope = ops.slice(dk, 3, 0, d_n), ops.slice(dk, 3, d_n, ops.shape(k_r)[3])
        dc = ops.add(ops.contract("bhle,rhe->blr", of_nope, w_uk), ops.contract("bhle,rhe->blr", dv, w_uv))
        dw_uk, dw_uv = (ops.contract("blr,bhle->rhe", c, x) for x in (of_nope, dv))
        return dc, ops.sum_to(of_rope, ops.shape(k_r)), dw_uk, dw_uv


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
    """softmax(scale q k^T + mask) v with the scores in memory: [B, H_kv, H/H_kv, n_q, n_k].

    As eager code does it: all scores are computed, and a mask is a pass over them by itself (``masked_fill``).
    """
    b, h, n, d = ops.shape(pairs.q)
    h_kv = ops.shape(pairs.k)[1]
    grouped = ops.reshape(pairs.q, (b, h_kv, divide(h, h_kv), n, d))
    scores = ops.contract("bkgid,bkjd->bkgij", grouped, pairs.k, pairs.mask, "ij")
    if pairs.mask.causal or pairs.mask.window is not None or pairs.mask.documents is not None:
        scores = ops.masked(scores, pairs.mask, "-inf")
    weights = ops.softmax(scores, pairs.scale, pairs.mask)
    out = ops.contract("bkgij,bkje->bkgie", weights, pairs.v, pairs.mask, "ij")
    return ops.reshape(out, (b, h, n, ops.shape(pairs.v)[3]))
