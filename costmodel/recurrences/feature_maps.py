"""Attention whose softmax is replaced by a product of features: a state under a causal mask, a sum without one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from costmodel.carries.direct import Direct
from costmodel.carries.state import State
from costmodel.carries.total import Total
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape
from costmodel.mixer import Hyperparameter, Kept, Mixer, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.gated import KERNELS, Gated
from costmodel.written import kept

T = TypeVar("T")


@dataclass(frozen=True)
class Summed(Total[T]):
    """phi(Q) (phi(K)^T [V, 1]) over all tokens."""

    along: ClassVar[tuple[str, ...]] = ("q", "k", "v")

    q: T
    k: T
    v: T

    def partial(self, ops: Vocabulary[T]) -> tuple[T, ...]:
        return (ops.cast(ops.contract("bhnd,bhne->bhde", self.k, self.v), "accumulate"),)

    def finish(self, ops: Vocabulary[T], totals: tuple[T, ...]) -> T:
        return ops.contract("bhnd,bhde->bhne", self.q, totals[0])


class FeatureAttention(Mixer):
    """P = rows of M * phi(Q) phi(K)^T over their sums.

    The sums are carried as one more column of V, of ones; the output projection divides by it. They differ from head to
    head, so they cannot be left to a norm.
    """

    template: ClassVar[str] = "P = M * phi(Q) phi(K)^T / rowsum,  V = X W_v"
    structure: ClassVar[Structure] = Structure.SEMISEPARABLE
    carry: ClassVar[type[Carry[Any]]] = State
    kernels: ClassVar[tuple[str, ...]] = KERNELS
    documents: ClassVar[bool] = True
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 32, "heads", cut=True),
        "head_dim": Hyperparameter("d", 128, "head dimension of queries and keys"),
        "value_dim": Hyperparameter("e", 128, "head dimension of values"),
        "chunk": Hyperparameter("C", 64, "tokens of a chunk"),
    }

    @abstractmethod
    def features(self, ops: Vocabulary[T], q: T, k: T, w: Weights, at: Site[T]) -> tuple[T, T]:
        """phi(Q) and phi(K) [B, H, n, r] of queries and keys [B, H, n, d]."""

    @abstractmethod
    def written_features(self, xp: Any, q: Any, k: Any, w: Weights, at: Site[Any]) -> tuple[Any, Any]:
        """The same by their definition."""

    @abstractmethod
    def rank(self, m: Sizes) -> Dim:
        """How many features, r."""

    def extra(self, m: Sizes) -> dict[str, Shape]:
        """Shapes of weights of the feature map."""
        return {}

    def carry_for(self, causal: bool) -> type[Carry[Any]]:
        return State if causal else Total

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, H, d, e = m["D"], m["H"], m["d"], m["e"]
        return {"w_q": (D, H, d), "w_k": (D, H, d), "w_v": (D, H, e), "w_o": (H, e, D), **self.extra(m)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return "w_q", "w_k", "w_v"

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        q, k, v = self._mapped(ops, read, w, at)
        if at.mask.causal:
            return Gated(q, k, v, None, at.sizes["C"], at.kernel), ()
        return Summed(q, k, v), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        q, k, v = self._mapped(ops, read, w, at)
        added = ops.cast(ops.contract("bhnd,bhne->bhde", k, v), "accumulate")
        state = ops.append(at.cache[0], ops.add(at.cache[0], added), 0)
        return Direct(ops.contract("bhnd,bhde->bhne", q, state))

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        e = at.sizes["e"]
        divided = ops.map("div", ops.slice(mixed, 3, 0, e), ops.slice(mixed, 3, e, 1))
        return ops.contract("bhle,hed->bld", divided, w["w_o"])

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        return (Kept((m["H"], self.rank(m), m["e"] + 1), "accumulate"),)

    def grain(self, m: Sizes) -> int:
        return int(m["C"])

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["H"], m["H"]

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        q, k, v = (xp.einsum("bld,dhe->bhle", x, w[name]) for name in ("w_q", "w_k", "w_v"))
        q, k = self.written_features(xp, q, k, w, at)
        matrix = xp.einsum("bhid,bhjd->bhij", q, k) * kept(xp, at.mask, *x.shape[1:2] * 2)
        mixed = matrix / matrix.sum(-1, True) @ v
        values = xp.cat((v, xp.ones_like(v[..., :1])), -1)
        return Written(matrix, values, xp.einsum("bhle,hed->bld", mixed, w["w_o"]))

    def _mapped(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> tuple[T, T, T]:
        """Features of queries and keys, and values with a column of ones."""
        q, k, v = read
        b, h, n, _ = ops.shape(v)
        return (*self.features(ops, q, k, w, at), ops.concat([v, ops.ones((b, h, n, 1))], 3))
