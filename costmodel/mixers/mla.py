"""Multi-head latent attention (MLA): keys and values of all heads come from one low-rank latent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.pairs import LatentPairs, Pairs
from costmodel.carry import Carry, Structure
from costmodel.composite import rms_norm, rope
from costmodel.dims import Dim, Shape
from costmodel.mixer import Hyperparameter, Kept, Mixer, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.written import softmax_matrix, turned

T = TypeVar("T")


class Mla(Mixer):
    """Two forms of one mixer.

    Prefill and training expand the latent c to keys and values of every head. Decoding absorbs the expansion into the
    query and the output: one key-value head of width r_kv + d_r, of which the first r_kv are the value.
    """

    name: ClassVar[str] = "mla"
    title: ClassVar[str] = "multi-head latent attention"
    template: ClassVar[str] = (
        "P = softmax(M + (Q_n (c W_uk)^T + Q_r K_r^T) / sqrt(d_n + d_r)),  V = c W_uv,  c = norm(X W_c)"
    )
    source: ClassVar[str] = "DeepSeek-V2, arXiv 2405.04434, section 2.1; DeepSeek-V3.2-Exp inference/model.py"
    structure: ClassVar[Structure] = Structure.DENSE
    carry: ClassVar[type[Carry[Any]]] = LatentPairs
    documents: ClassVar[bool] = True
    extends: ClassVar[bool] = True
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 128, "query heads", cut=True),
        "q_rank": Hyperparameter("r_q", 1536, "rank of the query latent; 0 for none", optional=True),
        "kv_rank": Hyperparameter("r_kv", 512, "rank of the key-value latent"),
        "nope_dim": Hyperparameter("d_n", 128, "head dimension without position"),
        "rope_dim": Hyperparameter("d_r", 64, "head dimension with rotary position, its key shared by all heads"),
        "value_dim": Hyperparameter("e", 128, "head dimension of values"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, H, r, d_n, d_r, e = (m[name] for name in ("D", "H", "r_kv", "d_n", "d_r", "e"))
        query: dict[str, Shape] = {"w_q": (D, H, d_n + d_r)}
        if m.get("r_q"):
            query = {"w_qc": (D, m["r_q"]), "q_norm": (m["r_q"],), "w_uq": (m["r_q"], H, d_n + d_r)}
        keys: dict[str, Shape] = {
            "w_c": (D, r),
            "w_kr": (D, d_r),
            "c_norm": (r,),
            "w_uk": (r, H, d_n),
            "w_uv": (r, H, e),
        }
        return query | keys | {"w_o": (H, e, D)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return "w_qc" if m.get("r_q") else "w_q", "w_c", "w_kr"

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        q_n, q_r = self._queries(ops, self._query_latent(ops, read[0], w, at), w, at)
        c, k_r = self._latent(ops, read, w, at)
        q = ops.concat([q_n, q_r], 3)
        latent = LatentPairs(q, c, k_r, at.mask, self._scale(at), at.kernel, w_uk=w["w_uk"], w_uv=w["w_uv"])
        return latent if at.compressed else latent.opened(ops), (c, k_r)

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        q, new = self._absorbed(ops, self._query_latent(ops, read[0], w, at), read, w, at)
        keys = ops.append(at.cache[0], new, 2, at.cache_axis)
        values = ops.slice(keys, 3, 0, at.sizes["r_kv"])
        return Pairs(q, keys, values, at.mask, self._scale(at), at.kernel)

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        if at.cache:
            mixed = ops.contract("bhlr,rhe->bhle", mixed, w["w_uv"])
        return ops.contract("bhle,hed->bld", mixed, w["w_o"])

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        def norm(y: Any, gain: Any) -> Any:
            return y * (y.square().mean(-1, True) + 1e-5) ** -0.5 * gain

        d_n = at.sizes["d_n"]
        if at.sizes.get("r_q"):
            q = xp.einsum("blr,rhe->bhle", norm(x @ w["w_qc"], w["q_norm"]), w["w_uq"])
        else:
            q = xp.einsum("bld,dhe->bhle", x, w["w_q"])
        c = norm(x @ w["w_c"], w["c_norm"])
        k_n, v = (xp.einsum("blr,rhe->bhle", c, w[name]) for name in ("w_uk", "w_uv"))
        k_r = turned(xp, (x @ w["w_kr"])[:, None], *at.tables)
        q_r = turned(xp, q[..., d_n:], *at.tables)
        scores = xp.einsum("bhid,bhjd->bhij", q[..., :d_n], k_n) + xp.einsum("bhid,bgjd->bhij", q_r, k_r)
        matrix = softmax_matrix(xp, scores * q.shape[-1] ** -0.5, at.mask)
        return Written(matrix, v, xp.einsum("bhij,bhje,hed->bid", matrix, v, w["w_o"]))

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        return (Kept((1, tokens, m["r_kv"] + m["d_r"]), tokens=True),)

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["H"], m["H"]

    def rotary(self, m: Sizes) -> Dim:
        return m["d_r"]

    def _absorbed(self, ops: Vocabulary[T], latent: T, read: tuple[T, ...], w: Weights, at: Site[T]) -> tuple[T, T]:
        """Queries [B, H, n, r_kv + d_r] that meet latents as they are, and these with their rotary key, as one head."""
        q_n, q_r = self._queries(ops, latent, w, at)
        q = ops.concat([ops.contract("bhle,rhe->bhlr", q_n, w["w_uk"]), q_r], 3)
        c, k_r = self._latent(ops, read, w, at)
        b, n, r = ops.shape(c)
        return q, ops.concat([ops.reshape(c, (b, 1, n, r)), k_r], 3)

    def _query_latent(self, ops: Vocabulary[T], read: T, w: Weights, at: Site[T]) -> T:
        """The query latent [B, n, r_q], or the queries themselves where there is none."""
        return rms_norm(ops, read, w["q_norm"]) if at.sizes.get("r_q") else read

    def _queries(self, ops: Vocabulary[T], latent: T, w: Weights, at: Site[T]) -> tuple[T, T]:
        """The two parts of the queries [B, H, n, d_n] and, turned, [B, H, n, d_r]."""
        q = ops.contract("blr,rhe->bhle", latent, w["w_uq"]) if at.sizes.get("r_q") else latent
        d_n, d_r = at.sizes["d_n"], at.sizes["d_r"]
        return ops.slice(q, 3, 0, d_n), rope(ops, ops.slice(q, 3, d_n, d_r), *at.tables)

    def _latent(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> tuple[T, T]:
        """The latent [B, n, r_kv] and the shared rotary key [B, 1, n, d_r]."""
        b, n, d_r = ops.shape(read[2])
        return rms_norm(ops, read[1], w["c_norm"]), rope(ops, ops.reshape(read[2], (b, 1, n, d_r)), *at.tables)

    def _scale(self, at: Site[T]) -> Dim:
        return (at.sizes["d_n"] + at.sizes["d_r"]) ** -0.5


mla = Mla()
