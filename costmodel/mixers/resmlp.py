"""ResMLP: one matrix of weights along the sequence, the same for every channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.product import Weighted
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape
from costmodel.mixer import INPUT, Hyperparameter, Site, Sizes, Unmasked, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.pieces import by_channel, by_token

T = TypeVar("T")


class ResMlp(Unmasked):
    """The cross-patch sublayer (equation 2): A X, with an L x L matrix of weights.

    The affine transforms before and after it, which take the place of the layer's norm and scale its output channel by
    channel, are left out.
    """

    name: ClassVar[str] = "resmlp"
    title: ClassVar[str] = "ResMLP (a linear layer along the sequence)"
    template: ClassVar[str] = "P = A, a weight,  V = X"
    source: ClassVar[str] = "Touvron et al. 2021, arXiv 2105.03404, equation 2; timm mlp_mixer.py"
    structure: ClassVar[Structure] = Structure.STATIC
    carry: ClassVar[type[Carry[Any]]] = Weighted
    kernels: ClassVar[tuple[str, ...]] = ("direct",)
    indivisible: ClassVar[str] = "there is no projection of channels that could be cut"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {}

    def weights(self, m: Sizes) -> dict[str, Shape]:
        return {"mixing": (m["grid_rows"], m["grid_columns"])}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return (INPUT,)

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        return Weighted(w["mixing"], by_channel(ops, read[0]), "ij"), ()

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        return by_token(ops, mixed)

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["D"], m["D"]

    def usual_width(self, sizes: Mapping[str, int]) -> int:
        return 384

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        return Written(w["mixing"][None, None], x.transpose(1, 2)[..., None], w["mixing"] @ x)


resmlp = ResMlp()
