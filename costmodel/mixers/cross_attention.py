"""Cross-attention: queries from the layer's tokens, keys and values from a second sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.pairs import Pairs
from costmodel.composite import rms_norm
from costmodel.dims import Dim, Shape
from costmodel.masks import Mask
from costmodel.mixer import Hyperparameter, SecondSequence, Site, Sizes, Weights, Written
from costmodel.mixers.attention import Attention
from costmodel.ops.vocabulary import Vocabulary
from costmodel.written import softmax_matrix

T = TypeVar("T")


class CrossAttention(Attention):
    """P(X, M) = softmax(Q K^T / sqrt(d)) [L, L_M] per head, V(M) = M W_v, with Q = X W_q and K = M W_k.

    M [B, L_M, D_M] is what an encoder gave: of text, sound, or an image. No mask, no positions. Decoding keeps keys
    and values of M, and adds nothing to them.
    """

    name: ClassVar[str] = "cross-attention"
    title: ClassVar[str] = "cross-attention to a second sequence"
    template: ClassVar[str] = "P = softmax(Q K^T / sqrt(d)),  Q = X W_q,  K = M W_k,  V = M W_v"
    source: ClassVar[str] = (
        "Vaswani et al. 2017, arXiv 1706.03762, section 3.2.3; sizes of Llama 3.2 Vision 11B (transformers, mllama)"
    )
    documents: ClassVar[bool] = False
    extends: ClassVar[bool] = False
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 32, "query heads", cut=True),
        "kv_heads": Hyperparameter("H_kv", 8, "key-value heads", cut=True),
        "head_dim": Hyperparameter("d", 128, "head dimension"),
        "memory": Hyperparameter("L_M", 4096, "tokens of the second sequence"),
        "memory_width": Hyperparameter("D_M", 4096, "width of the second sequence"),
    }

    def memory(self, m: Sizes) -> SecondSequence:
        return SecondSequence(m["L_M"], m["D_M"], ("w_k", "w_v"))

    def weights(self, m: Sizes) -> dict[str, Shape]:
        shape: Shape = (m["D_M"], m["H_kv"], m["d"])
        return super().weights(m) | {"w_k": shape, "w_v": shape}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return ("w_q", *(["w_g"] if m.get("gate") else []))

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Pairs[T], tuple[T, ...]]:
        *own, k, v = read
        k = rms_norm(ops, k, w["k_norm"]) if at.sizes.get("qk_norm") else k
        return self._attend(ops, (*own,), (k, v), w, at), (k, v)

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Pairs[T]:
        return self._attend(ops, read, at.cache, w, at)

    def _attend(self, ops: Vocabulary[T], own: tuple[T, ...], kept: tuple[T, ...], w: Weights, at: Site[T]) -> Pairs[T]:
        q, *gate = own
        k, v = kept
        q = rms_norm(ops, q, w["q_norm"]) if at.sizes.get("qk_norm") else q
        return Pairs(q, k, v, Mask(), at.sizes["d"] ** -0.5, at.kernel, aside=tuple(gate))

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        q = xp.einsum("bld,dhe->bhle", x, w["w_q"])
        k, v = (xp.einsum("bmd,dhe->bhme", at.memory, w[name]) for name in ("w_k", "w_v"))
        if at.sizes.get("qk_norm"):
            q, k = (y * (y.square().mean(-1, True) + 1e-5) ** -0.5 * w[g] for y, g in ((q, "q_norm"), (k, "k_norm")))
        k, v = (xp.repeat_interleave(y, q.shape[1] // k.shape[1], 1) for y in (k, v))
        matrix = softmax_matrix(xp, xp.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5, Mask())
        return Written(matrix, v, self._output(xp, x, matrix @ v, w, at))

    def rotary(self, m: Sizes) -> Dim:
        return 0


cross_attention = CrossAttention()
