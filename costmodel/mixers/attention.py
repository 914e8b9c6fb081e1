"""Softmax attention with a key-value head for every query head (MHA), for a group of them (GQA) or for all (MQA)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

from costmodel.carries.pairs import Pairs
from costmodel.carry import Carry, Structure
from costmodel.composite import rms_norm, rope
from costmodel.dims import Dim, Shape
from costmodel.mixer import OWN, Hyperparameter, Kept, Mixer, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.written import softmax_matrix, turned

T = TypeVar("T")

#: Projections that an adapter adds to.
ADAPTED = "qkv"


class Attention(Mixer):
    """P(X) = softmax(mask + Q K^T / sqrt(d)) per head, V(X) = X W_v; queries and keys carry rotary positions.

    Models switch on a norm of queries and keys (``qk_norm``) and a gate on the values (``gate``; Qiu et al. 2025, arXiv
    2505.06708); in a shared layer, an input twice as wide as the output (``doubled``), and an addition of low rank to
    queries, keys and values (``adapter``).
    """

    name: ClassVar[str] = "attention"
    title: ClassVar[str] = "softmax attention: MHA, GQA, MQA; full, causal, sliding window"
    template: ClassVar[str] = "P = softmax(M + Q K^T / sqrt(d)),  V = X W_v"
    source: ClassVar[str] = (
        "Vaswani et al. 2017, arXiv 1706.03762; Shazeer 2019, arXiv 1911.02150; Ainslie et al. 2023, arXiv 2305.13245"
    )
    structure: ClassVar[Structure] = Structure.DENSE
    carry: ClassVar[type[Carry[Any]]] = Pairs
    documents: ClassVar[bool] = True
    extends: ClassVar[bool] = True
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 32, "query heads", cut=True),
        "kv_heads": Hyperparameter(
            "H_kv", 32, "key-value heads: as many as heads (MHA), fewer (GQA), or 1 (MQA)", cut=True
        ),
        "head_dim": Hyperparameter("d", 128, "head dimension"),
        "window": Hyperparameter("w", 0, "sliding window in tokens; 0 for none"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, H, H_kv, d, r = m["D"], m["H"], m["H_kv"], m["d"], m.get("adapter")
        D_in = 2 * D if m.get("doubled") else D
        heads = {"q": H, "k": H_kv, "v": H_kv} | ({"g": H} if m.get("gate") else {})
        shapes: dict[str, Shape] = {f"w_{name}": (D_in, count, d) for name, count in heads.items()}
        shapes["w_o"] = (H, d, D)
        for name in ADAPTED if r else "":
            shapes |= {f"{OWN}{name}_down": (D_in, r), f"{OWN}{name}_up": (r, heads[name], d)}
        return shapes | ({"q_norm": (d,), "k_norm": (d,)} if m.get("qk_norm") else {})

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        adapters = [f"{OWN}{name}_down" for name in ADAPTED] if m.get("adapter") else []
        return (*adapters, "w_q", "w_k", "w_v", *(["w_g"] if m.get("gate") else []))

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Pairs[T], tuple[T, ...]]:
        q, k, v, *gate = read if not at.sizes.get("adapter") else self._adapted(ops, read, w)
        if at.sizes.get("qk_norm"):
            q, k = rms_norm(ops, q, w["q_norm"]), rms_norm(ops, k, w["k_norm"])
        q, k = rope(ops, q, *at.tables), rope(ops, k, *at.tables)
        return Pairs(q, k, v, at.mask, at.sizes["d"] ** -0.5, at.kernel, aside=tuple(gate)), (k, v)

    def _adapted(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights) -> tuple[T, ...]:
        """The products with each adapter's own addition."""
        low, read = read[: len(ADAPTED)], read[len(ADAPTED) :]
        added = [
            ops.add(x, ops.contract("blr,rhe->bhle", y, w[f"{OWN}{name}_up"]))
            for x, y, name in zip(read, low, ADAPTED, strict=False)
        ]
        return (*added, *read[len(ADAPTED) :])

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Pairs[T]:
        new, kept = self.project(ops, read, w, at)
        k, v = (ops.append(past, x, 2, at.cache_axis) for past, x in zip(at.cache, kept, strict=True))
        return replace(new, k=k, v=v)

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        for gate in at.aside:
            mixed = _gated(ops, mixed, gate)
        return ops.contract("bhle,hed->bld", mixed, w["w_o"])

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        q, k, v = (xp.einsum("bld,dhe->bhle", x, self._written_projection(xp, name, w, at)) for name in ADAPTED)
        if at.sizes.get("qk_norm"):
            q, k = (y * (y.square().mean(-1, True) + 1e-5) ** -0.5 * w[g] for y, g in ((q, "q_norm"), (k, "k_norm")))
        q, k = (turned(xp, y, *at.tables) for y in (q, k))
        groups = q.shape[1] // k.shape[1]
        k, v = (xp.repeat_interleave(y, groups, 1) for y in (k, v))
        matrix = softmax_matrix(xp, xp.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5, at.mask)
        return Written(matrix, v, self._output(xp, x, matrix @ v, w, at))

    def _written_projection(self, xp: Any, name: str, w: Weights, at: Site[Any]) -> Any:
        """The matrix [D, H, d] of queries, keys or values, with its adapter."""
        whole = w[f"w_{name}"]
        if at.sizes.get("adapter"):
            whole = whole + xp.einsum("dr,rhe->dhe", w[f"{OWN}{name}_down"], w[f"{OWN}{name}_up"])
        return whole

    def _output(self, xp: Any, x: Any, mixed: Any, w: Weights, at: Site[Any]) -> Any:
        """The written-out layer's output of mixed values [B, H, n, d]."""
        if at.sizes.get("gate"):
            mixed = mixed / (1 + xp.exp(-xp.einsum("bld,dhe->bhle", x, w["w_g"])))
        return xp.einsum("bhie,hed->bid", mixed, w["w_o"])

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        return (Kept((m["H_kv"], tokens, m["d"]), tokens=True),) * 2

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["H"], m["H_kv"]

    def rotary(self, m: Sizes) -> Dim:
        return m["d"]


def _gated(ops: Vocabulary[T], mixed: T, gate: T) -> T:
    """mixed * sigmoid(gate), as one kernel."""

    def body(ops: Vocabulary[Any], mixed: Any, gate: Any) -> Any:
        return ops.mul(mixed, ops.map("sigmoid", gate))

    result: T = ops.fused("output gate", body, mixed, gate)
    return result


attention = Attention()
