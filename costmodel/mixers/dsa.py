"""DSA: DeepSeek sparse attention, over the latents of tokens that a lightning indexer chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from costmodel.carries.selection import Selection, everywhere, first_query, own_part
from costmodel.carry import Carry, Structure
from costmodel.composite import rope
from costmodel.dims import Dim, Shape, minimum
from costmodel.masks import Mask
from costmodel.mixer import INPUT, Hyperparameter, Kept, Site, Sizes, Weights, Written
from costmodel.mixers.mla import Mla
from costmodel.ops.chosen_blocks import ChosenAttention, Placed
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.pieces import layer_normed
from costmodel.written import gated_normed, kept, softmax_where, standardised, turned

T = TypeVar("T")


@dataclass(frozen=True)
class ChosenLatents(Selection[T]):
    """Softmax attention of q [B, H, n, r_kv + d_r] over chosen tokens of latents [B, 1, n, r_kv + d_r], causal.

    The first r_kv entries of a latent are its value. One choice serves all heads, so that a rank that has some of them,
    of the whole sequence, makes it again. It has no gradient. Latents and index keys cross a cut.

    Attributes:
        index_q: index queries [B, 1, n, H_i, d_i + d_r].
        index_gates: of the index heads [B, 1, n, H_i].
        index_k: index keys [B, 1, n, d_i + d_r].
        value: r_kv.
        most: tokens that a query sees.
    """

    along: ClassVar[tuple[str, ...]] = ("q", "latents", "index_q", "index_gates", "index_k")

    q: T
    latents: T
    index_q: T
    index_gates: T
    index_k: T
    value: Dim
    most: Dim
    scale: Dim

    def across(self, ops: Vocabulary[T], axis: Axis | None) -> T:
        start = first_query(ops, self.q, self.latents, axis)
        seen = start + ops.shape(self.q)[2]
        kernel = ChosenAttention(Placed(1, start), self.scale, ops.width("accumulate"), adding=True)

        def forward(ops: Vocabulary[T], q: T, latents: T, *index: T) -> tuple[T, tuple[T, ...]]:
            keys = everywhere(ops, latents, axis)
            index_k = ops.slice(everywhere(ops, index[2], axis), 2, 0, seen)
            chosen = best_tokens(ops, (index[0], index[1], index_k), self.most, kernel.placed)
            out, lse = ops.apply(kernel, q, keys, ops.slice(keys, 3, 0, self.value), chosen)
            return out, (q, latents, chosen, out, lse)

        def backward(ops: Vocabulary[T], saved: tuple[T, ...], gradient: T) -> tuple[T | None, ...]:
            q, latents, chosen, out, lse = saved
            keys = everywhere(ops, latents, axis)
            inputs = (q, keys, ops.slice(keys, 3, 0, self.value), chosen)
            dq, dk, dv = ops.chosen_attention_backward(inputs, (out, lse), gradient, kernel)
            return dq, own_part(ops, ops.add_into(dk, dv, 3), axis), None, None, None

        result: T = ops.custom(forward, backward, *self.streams())
        return result


def best_tokens(ops: Vocabulary[T], index: tuple[T, T, T], most: Dim, placed: Placed) -> T:
    """The tokens that each query sees [B, 1, n, min(most, tokens so far)], as one kernel.

    By I_ts = sum over h of w_th relu(q_th . k_s); positive factors that all have in common are left out.

    Args:
        index: queries, gates and keys, as in ``ChosenLatents``; keys of the tokens up to the last query's own.
    """

    def body(ops: Vocabulary[Any], q: Any, gates: Any, k: Any) -> Any:
        batch, _, n, heads, d = ops.shape(q)
        tokens = ops.shape(k)[2]
        queries, keys = ops.reshape(q, (batch, n, heads, d)), ops.reshape(k, (batch, tokens, d))
        likes = ops.contract("bihd,bjd->bihj", queries, keys, Mask(causal=True), "ij", skipping=True)
        weighted = ops.mul(ops.map("relu", likes), ops.reshape(gates, (batch, n, heads, 1)))
        scores = ops.reshape(ops.sum(weighted, (2,)), (batch, 1, n, tokens))
        return ops.top_k(ops.visible_blocks(scores, placed, always=0), minimum(most, tokens))[1]

    result: T = ops.fused("lightning indexer", body, *index, family="attention")
    return result


class Dsa(Mla):
    """MLA in its absorbed form, also in prefill and training, over S chosen tokens.

    Index heads turn in d_r of their d_i + d_r entries. The indexer sees the input and the query latent without giving
    them a gradient, and learns from a loss of its own, which is not counted; nor is its Hadamard transform, which
    leaves products as they are. It is counted at the model's dtype, where DeepSeek's own runs in 8-bit floats.

    What is hidden in it: the indexer compares every query with every token before it, B L^2 H_i (d_i + d_r) FLOP:
    quadratic in L, and more than the attention itself, 2 B H L S (2 r_kv + d_r), from L = 68 Ki on at usual sizes.
    Every tensor-parallel rank repeats it.
    """

    name: ClassVar[str] = "dsa"
    title: ClassVar[str] = "DSA: DeepSeek sparse attention"
    template: ClassVar[str] = (
        "P = softmax(M(X) + (Q_n W_uk^T c^T + Q_r K_r^T) / sqrt(d_n + d_r)),  M_ts = 0 for the S tokens s <= t with "
        "the largest sum_h w_th relu(q_th . k_s), else -inf;  V = c = norm(X W_c)"
    )
    source: ClassVar[str] = "DeepSeek-V3.2, arXiv 2512.02556, section 2.1; transformers deepseek_v32; fla/ops/dsa"
    structure: ClassVar[Structure] = Structure.SPARSE
    carry: ClassVar[type[Carry[Any]]] = Selection
    causality: ClassVar[str] = "causal"
    documents: ClassVar[bool] = False
    extends: ClassVar[bool] = False
    kernels: ClassVar[tuple[str, ...]] = ("fused",)
    fixed: ClassVar[tuple[str, ...]] = ("w_iq", "w_ik", "w_ig", "i_norm", "i_shift")
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        **Mla.sizes,
        "q_rank": Hyperparameter("r_q", 1536, "rank of the query latent"),
        "index_heads": Hyperparameter("H_i", 64, "index heads"),
        "index_dim": Hyperparameter("d_i", 64, "dimension of index heads without position; d_r more turn"),
        "chosen": Hyperparameter("S", 2048, "tokens that a query sees"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        d = m["d_i"] + m["d_r"]
        index: dict[str, Shape] = {"w_iq": (m["r_q"], m["H_i"], d), "w_ik": (m["D"], d), "w_ig": (m["D"], m["H_i"])}
        return super().weights(m) | index | {"i_norm": (d,), "i_shift": (d,)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return *super().inputs(m), INPUT

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[ChosenLatents[T], tuple[T, ...]]:
        latent = self._query_latent(ops, read[0], w, at)
        index = self._index(ops, read[3], latent, w, at)
        q, keys = self._absorbed(ops, latent, read, w, at)
        return self._carry((q, keys, *index), at), (keys, index[2])

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> ChosenLatents[T]:
        latent = self._query_latent(ops, read[0], w, at)
        index_q, gates, new_index = self._index(ops, read[3], latent, w, at)
        q, new = self._absorbed(ops, latent, read, w, at)
        keys, index_k = (
            ops.append(cache, x, 2, at.cache_axis) for cache, x in zip(at.cache, (new, new_index), strict=True)
        )
        return self._carry((q, keys, index_q, gates, index_k), at)

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        values = ops.contract("bhlr,rhe->bhle", mixed, w["w_uv"])
        return ops.contract("bhle,hed->bld", values, w["w_o"])

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        d_n, n = at.sizes["d_n"], x.shape[1]
        latent = gated_normed(x @ w["w_qc"], 1, w["q_norm"])
        q, c = xp.einsum("blr,rhe->bhle", latent, w["w_uq"]), gated_normed(x @ w["w_c"], 1, w["c_norm"])
        k_r = turned(xp, (x @ w["w_kr"])[:, None], *at.tables)
        q_r = turned(xp, q[..., d_n:], *at.tables)
        scores = xp.einsum("bhie,rhe,bjr->bhij", q[..., :d_n], w["w_uk"], c) + q_r @ k_r.mT
        chosen = _chosen(xp, self._index_scores(xp, x.detach(), latent.detach(), w, at), at.sizes["S"])
        matrix = softmax_where(xp, scores * q.shape[-1] ** -0.5, chosen[:, None] & kept(xp, at.mask, n, n))
        return Written(matrix, c[:, None], xp.einsum("bhij,bjr,rhe,hed->bid", matrix, c, w["w_uv"], w["w_o"]))

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        return *super().cache(m, tokens), Kept((1, tokens, m["d_i"] + m["d_r"]), tokens=True)

    def _index(self, ops: Vocabulary[T], x: T, latent: T, w: Weights, at: Site[T]) -> tuple[T, T, T]:
        """Index queries, gates and keys, as in ``ChosenLatents``, with nothing that goes back to their inputs."""

        def forward(ops: Vocabulary[T], x: T, latent: T) -> tuple[tuple[T, T, T], tuple[T, ...]]:
            d_r = at.sizes["d_r"]
            q = _partly_turned(ops, ops.contract("blr,rhe->bhle", latent, w["w_iq"]), d_r, at.tables)
            k = ops.fused(
                "layer norm", layer_normed, ops.contract("bld,de->ble", x, w["w_ik"]), w["i_norm"], w["i_shift"]
            )
            gates = ops.contract("bld,dh->blh", x, w["w_ig"])
            b, h, n, d = ops.shape(q)
            index_q = ops.reshape(ops.permute(q, (0, 2, 1, 3)), (b, 1, n, h, d))
            index_k = _partly_turned(ops, ops.reshape(k, (b, 1, n, d)), d_r, at.tables)
            return (index_q, ops.reshape(gates, (b, 1, n, h)), index_k), ()

        def backward(ops: Vocabulary[T], saved: tuple[T, ...], *gradients: T) -> tuple[None, None]:
            return None, None

        found: tuple[T, T, T] = ops.custom(forward, backward, x, latent)
        return found

    def _index_scores(self, xp: Any, x: Any, latent: Any, w: Weights, at: Site[Any]) -> Any:
        """I_ts [B, n, n], the future among it."""
        d_r = at.sizes["d_r"]
        k = standardised(x @ w["w_ik"], w["i_norm"], w["i_shift"])[:, None]
        q, k = (
            xp.cat((turned(xp, y[..., :d_r], *at.tables), y[..., d_r:]), -1)
            for y in (xp.einsum("blr,rhe->bhle", latent, w["w_iq"]), k)
        )
        return xp.einsum("bhij,bih->bij", (q @ k.mT).clamp(min=0), x @ w["w_ig"])

    def _carry(self, streams: tuple[T, T, T, T, T], at: Site[T]) -> ChosenLatents[T]:
        return ChosenLatents(*streams, at.sizes["r_kv"], at.sizes["S"], self._scale(at))


def _partly_turned(ops: Vocabulary[T], x: T, turning: Dim, tables: tuple[T, T]) -> T:
    """Rotary positions of the first entries of x [B, heads, n, d]."""
    rest = ops.shape(x)[3] - turning
    return ops.concat([rope(ops, ops.slice(x, 3, 0, turning), *tables), ops.slice(x, 3, turning, rest)], 3)


def _chosen(xp: Any, scores: Any, most: int) -> Any:
    """Which pairs [B, n, n] have one of the largest scores of their query, token by token."""
    chosen = xp.zeros_like(scores, dtype=xp.bool)
    for i in range(scores.shape[1]):
        best = scores[:, i, : i + 1].argsort(-1)[..., -most:]
        chosen[:, i] = (best[..., None] == xp.arange(scores.shape[2])).any(-2)
    return chosen


dsa = Dsa()
