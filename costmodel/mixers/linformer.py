"""Linformer: attention over keys and values whose length is projected to a fixed one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from costmodel.carries.pairs import Pairs
from costmodel.carries.total import Total
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape
from costmodel.masks import Mask
from costmodel.mixer import Hyperparameter, Site, Sizes, Unmasked, Weights, Written
from costmodel.mixers.heads import Headed
from costmodel.ops.vocabulary import Vocabulary
from costmodel.written import softmax_matrix

T = TypeVar("T")


@dataclass(frozen=True)
class Projected(Total[T]):
    """softmax(Q (E^T K)^T) (F^T V): q, k, v [B, H, n, d]; E and F [n, k], rows of this rank's tokens."""

    along: ClassVar[tuple[str, ...]] = ("q", "k", "v")

    q: T
    k: T
    v: T
    rows: tuple[T, T]
    scale: Dim
    kernel: str

    def partial(self, ops: Vocabulary[T]) -> tuple[T, ...]:
        return tuple(ops.contract("bhnd,nk->bhkd", x, r) for x, r in zip((self.k, self.v), self.rows, strict=True))

    def finish(self, ops: Vocabulary[T], totals: tuple[T, ...]) -> T:
        k, v = totals
        return Pairs(self.q, k, v, Mask(), self.scale, self.kernel).whole(ops)


class Linformer(Headed, Unmasked):
    """E and F are shared by the heads ("headwise sharing"), and have a row for each token.

    Only for full masks: a row of E^T K is made of all tokens.
    """

    name: ClassVar[str] = "linformer"
    title: ClassVar[str] = "Linformer (keys and values projected along the sequence)"
    template: ClassVar[str] = "P = softmax(Q (E^T K)^T / sqrt(d)) F^T,  V = X W_v"
    source: ClassVar[str] = "Wang et al. 2020, arXiv 2006.04768, equation 7; fairseq examples/linformer"
    structure: ClassVar[Structure] = Structure.LOW_RANK
    carry: ClassVar[type[Carry[Any]]] = Total
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 32, "heads", cut=True),
        "head_dim": Hyperparameter("d", 128, "head dimension"),
        "projected": Hyperparameter("k", 256, "rows that keys and values are projected to"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        return super().weights(m) | dict.fromkeys(("w_e", "w_f"), (m["rows"], m["k"]))

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        q, k, v = read
        return Projected(q, k, v, (w["w_e"], w["w_f"]), at.sizes["d"] ** -0.5, at.kernel), ()

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        q, k, v = (xp.einsum("bld,dhe->bhle", x, w[name]) for name in ("w_q", "w_k", "w_v"))
        scores = at.sizes["d"] ** -0.5 * q @ (w["w_e"].transpose(0, 1) @ k).transpose(-1, -2)
        matrix = softmax_matrix(xp, scores, Mask()) @ w["w_f"].transpose(0, 1)
        return Written(matrix, v, xp.einsum("bhle,hed->bld", matrix @ v, w["w_o"]))


linformer = Linformer()
