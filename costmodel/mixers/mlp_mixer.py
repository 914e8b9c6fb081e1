"""MLP-Mixer: an MLP along the sequence, the same for every channel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from costmodel.carries.product import Perceptron
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape, divide
from costmodel.mixer import INPUT, Hyperparameter, Site, Sizes, Unmasked, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.pieces import by_channel, by_token
from costmodel.written import gelu

T = TypeVar("T")


@dataclass(frozen=True)
class TokenMlp(Perceptron[T]):
    """W_2 gelu(W_1^T X) for each channel: x [B, D, n, 1]."""

    def between(self, ops: Vocabulary[T], hidden: T) -> T:
        return ops.map("gelu", hidden)


class MlpMixer(Unmasked):
    """The token-mixing half of a Mixer layer (equation 1); its norm, residual and channel MLP are the layer's.

    Both weights have a row for each token, so that they grow with the sequence. The biases of the code are left out,
    as they are in the equation.
    """

    name: ClassVar[str] = "mlp-mixer"
    title: ClassVar[str] = "MLP-Mixer (an MLP along the sequence)"
    template: ClassVar[str] = "Y = W_2 gelu(W_1^T X): no matrix P, for the GELU stands between its factors"
    source: ClassVar[str] = "Tolstikhin et al. 2021, arXiv 2105.01601, equation 1; timm mlp_mixer.py"
    structure: ClassVar[Structure] = Structure.STATIC
    carry: ClassVar[type[Carry[Any]]] = Perceptron
    kernels: ClassVar[tuple[str, ...]] = ("direct",)
    indivisible: ClassVar[str] = "there is no projection of channels that could be cut"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "hidden": Hyperparameter("D_S", 384, "hidden width of the MLP along the sequence")
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        return dict.fromkeys(("w_1", "w_2"), (m["grid_rows"], divide(m["D_S"], m["grid_parts"])))

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return (INPUT,)

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        return TokenMlp(by_channel(ops, read[0]), w["w_1"], w["w_2"]), ()

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        return by_token(ops, mixed)

    def hidden(self, m: Sizes) -> Dim:
        return m["D_S"]

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["D"], m["D"]

    def usual_width(self, sizes: Mapping[str, int]) -> int:
        return 768

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        hidden = w["w_1"].transpose(0, 1) @ x
        return Written(None, None, w["w_2"] @ gelu(xp, hidden))


mlp_mixer = MlpMixer()
