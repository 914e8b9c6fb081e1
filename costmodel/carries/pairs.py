"""What P(X) is like, and what one rank owes another when the sequence is cut: where mixers and strategies meet."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from costmodel.dims import Dim, divide
from costmodel.masks import Mask
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")


class Structure(Enum):
    """The structure of the token-mixing matrix P(X)."""

    DENSE = "dense, data-dependent"
    BANDED = "banded, data-dependent"


class Carry(Enum):
    """What crosses a cut of the sequence."""

    PAIRS = "pairs: a partial output with its log-sum-exp, merged associatively and commutatively"


@dataclass(frozen=True)
class Pairs(Generic[T]):
    """The pairs carry: queries against keys and values, on one rank's part of the sequence.

    q [B, H, n_q, d], k [B, H_kv, n_k, d], v [B, H_kv, n_k, e].

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

    def attend(self, ops: Vocabulary[T]) -> T:
        """Attention over the keys at hand: [B, H, n_q, e]."""
        if self.kernel == "vanilla":
            return _vanilla(ops, self)
        return ops.attention(self.q, self.k, self.v, self.mask, self.scale)[0]


def _vanilla(ops: Vocabulary[T], pairs: Pairs[T]) -> T:
    """softmax(scale q k^T + mask) v with the scores in memory: [B, H_kv, H/H_kv, n_q, n_k]."""
    b, h, n, d = ops.shape(pairs.q)
    h_kv = ops.shape(pairs.k)[1]
    grouped = ops.reshape(pairs.q, (b, h_kv, divide(h, h_kv), n, d))
    scores = ops.contract("bkgid,bkjd->bkgij", grouped, pairs.k, pairs.mask, "ij")
    weights = ops.softmax(scores, pairs.scale, pairs.mask)
    out = ops.contract("bkgij,bkje->bkgie", weights, pairs.v, pairs.mask, "ij")
    return ops.reshape(out, (b, h, n, ops.shape(pairs.v)[3]))
