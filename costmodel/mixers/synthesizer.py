"""Synthesizers: attention weights that no query and key make."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.product import Product, Scores, Weighted
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape, same
from costmodel.masks import Mask
from costmodel.mixer import Hyperparameter, Site, Sizes, Unmasked, Weights, Written
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")


class Synthesizer(Unmasked):
    """P = softmax of scores [L, L] for each head, which subclasses make; all of it is in memory."""

    structure: ClassVar[Structure] = Structure.STATIC
    carry: ClassVar[type[Carry[Any]]] = Product
    kernels: ClassVar[tuple[str, ...]] = ("direct",)
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 8, "heads", cut=True),
        "value_dim": Hyperparameter("e", 64, "head dimension of values"),
    }

    @abstractmethod
    def made_of(self, m: Sizes) -> dict[str, Shape]:
        """Shapes of the weights that make scores."""

    @abstractmethod
    def scores(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights) -> T:
        """Scores [H, n, L] or [B, H, n, L] of this rank's tokens."""

    @abstractmethod
    def written_scores(self, xp: Any, x: Any, w: Weights) -> Any:
        """The same, of all tokens, by definition."""

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, H, e = m["D"], m["H"], m["e"]
        return {"w_v": (D, H, e), **self.made_of(m), "w_o": (H, e, D)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return ("w_v",)

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        return Product(self.matrix(ops, read, w), read[0], "bhij"), ()

    def matrix(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights) -> T:
        """P [H, n, L] or [B, H, n, L] of this rank's tokens."""
        return ops.softmax(self.scores(ops, read, w), 1, Mask())

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        return ops.contract("bhle,hed->bld", mixed, w["w_o"])

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["H"], m["H"]

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        v = xp.einsum("bld,dhe->bhle", x, w["w_v"])
        matrix = xp.softmax(self.written_scores(xp, x, w), -1)
        return Written(matrix, v, xp.einsum("bhle,hed->bld", matrix @ v, w["w_o"]))


class DenseSynthesizer(Synthesizer):
    """Scores of a token are a perceptron of the token itself, with an output for every place of the sequence."""

    name: ClassVar[str] = "synthesizer-dense"
    title: ClassVar[str] = "Synthesizer, dense"
    template: ClassVar[str] = "P = softmax(relu(X W_1 + b_1) W_2 + b_2),  V = X W_v"
    source: ClassVar[str] = "Tay et al. 2020, arXiv 2005.00743, section 3.1; Long Range Arena synthesizer_attention.py"
    structure: ClassVar[Structure] = Structure.DENSE
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        **Synthesizer.sizes,
        "head_dim": Hyperparameter("d", 64, "hidden width of the perceptron of a head"),
    }

    def made_of(self, m: Sizes) -> dict[str, Shape]:
        H, d = m["H"], m["d"]
        return {"w_1": (m["D"], H, d), "b_1": (H, d), "w_2": (H, d, m["L"]), "b_2": (H, m["L"])}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return "w_v", "w_1"

    def scores(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights) -> T:
        def body(ops: Vocabulary[Any], x: Any, bias: Any) -> Any:
            return ops.map("relu", ops.add(x, bias))

        h, d = ops.shape(w["b_1"])
        hidden = ops.fused("bias and relu", body, read[1], ops.reshape(w["b_1"], (h, 1, d)))
        bias = ops.reshape(w["b_2"], (h, 1, ops.shape(w["b_2"])[1]))
        return ops.add(ops.contract("bhnd,hdl->bhnl", hidden, w["w_2"]), bias)

    def written_scores(self, xp: Any, x: Any, w: Weights) -> Any:
        hidden = xp.relu(xp.einsum("bld,dhe->bhle", x, w["w_1"]) + w["b_1"][:, None])
        return hidden @ w["w_2"] + w["b_2"][:, None]


class StaticSynthesizer(Synthesizer):
    """Scores are made of weights alone, so that ranks may have some of the columns each."""

    carry: ClassVar[type[Carry[Any]]] = Weighted

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        if same(at.sizes["grid_columns"], at.sizes["L"]):
            return Weighted(self.matrix(ops, read, w), read[0], "hij"), ()
        return Scores(self.scores(ops, read, w), read[0], "hij"), ()


class RandomSynthesizer(StaticSynthesizer):
    """Scores are weights: one for every pair of places and every head."""

    name: ClassVar[str] = "synthesizer-random"
    title: ClassVar[str] = "Synthesizer, random"
    template: ClassVar[str] = "P = softmax(R), R a weight [L, L] for each head,  V = X W_v"
    source: ClassVar[str] = "Tay et al. 2020, arXiv 2005.00743, section 3.2"

    def made_of(self, m: Sizes) -> dict[str, Shape]:
        return {"r": (m["H"], m["grid_rows"], m["grid_columns"])}

    def scores(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights) -> T:
        scores: T = w["r"]
        return scores

    def written_scores(self, xp: Any, x: Any, w: Weights) -> Any:
        return w["r"]


class FactorisedSynthesizer(StaticSynthesizer):
    """Scores are a product of two thin weights; P is as large all the same."""

    name: ClassVar[str] = "synthesizer-factorised"
    title: ClassVar[str] = "Synthesizer, factorised random"
    template: ClassVar[str] = "P = softmax(R_1 R_2^T), both weights [L, r] for each head,  V = X W_v"
    source: ClassVar[str] = "Tay et al. 2020, arXiv 2005.00743, section 3.3"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        **Synthesizer.sizes,
        "rank": Hyperparameter("r", 8, "rank of the scores of a head"),
    }

    def made_of(self, m: Sizes) -> dict[str, Shape]:
        H, r = m["H"], m["r"]
        return {"r_1": (H, m["grid_rows"], r), "r_2": (H, m["grid_columns"], r)}

    def scores(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights) -> T:
        return ops.contract("hir,hjr->hij", w["r_1"], w["r_2"])

    def written_scores(self, xp: Any, x: Any, w: Weights) -> Any:
        return w["r_1"] @ w["r_2"].mT


dense_synthesizer = DenseSynthesizer()
random_synthesizer = RandomSynthesizer()
factorised_synthesizer = FactorisedSynthesizer()
