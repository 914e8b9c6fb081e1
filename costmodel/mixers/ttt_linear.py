"""TTT-Linear: the state is a linear model that is trained on the sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.direct import Direct
from costmodel.carries.state import Recurrent
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape
from costmodel.mixer import Hyperparameter, Kept, Mixer, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.inner_loop import InnerLinear, inner_gradient
from costmodel.recurrences.pieces import layer_normed, of_heads
from costmodel.written import standardised

T = TypeVar("T")

READ = "w_q", "w_k", "w_v", "w_r"


class TttLinear(Mixer):
    """Rates sigmoid(X w_r + b_r) / d; places of a mini-batch are weighted by max(1 / (i + 1) + learned_i, 0).

    Left out of the code's layer: rotary positions within a mini-batch, and the gate of its Mamba backbone. The norm
    before the output projection is of each head (the code's is of all together), with epsilon 1e-5 (the code's: 1e-6).
    """

    name: ClassVar[str] = "ttt-linear"
    title: ClassVar[str] = "TTT-Linear (a linear model trained at test time)"
    template: ClassVar[str] = (
        "no matrix: W_i = W_{last mini-batch} - sum of eta_i rate_j grad |LN(k_j W + b) - (v_j - k_j)|^2 / 2,  "
        "y_i = q_i + LN(q_i W_i + b_i)"
    )
    source: ClassVar[str] = "Sun et al. 2024, arXiv 2407.04620; test-time-training/ttt-lm-pytorch ttt.py"
    structure: ClassVar[Structure] = Structure.RECURRENT
    carry: ClassVar[type[Carry[Any]]] = Recurrent
    kernels: ClassVar[tuple[str, ...]] = ("dual",)
    causality: ClassVar[str] = "causal"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 32, "heads", cut=True),
        "head_dim": Hyperparameter("d", 64, "head dimension"),
        "chunk": Hyperparameter("C", 16, "tokens of a mini-batch"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, H, d = m["D"], m["H"], m["d"]
        read = {"w_q": (D, H, d), "w_k": (D, H, d), "w_v": (D, H, d), "w_r": (D, H, 1)}
        norms: dict[str, Shape] = dict.fromkeys(("norm", "norm_b", "post", "post_b", "start_b"), (H, d))
        return {**read, **norms, "b_r": (H,), "places": (m["C"],), "start": (H, d, d), "w_o": (H, d, D)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return READ

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        q, k, v, raw = read
        chunk, h = at.sizes["C"], at.sizes["H"]
        places = ops.expand(ops.reshape(self._places(ops, w, at), (1, chunk, 1)), (h, chunk, 1))
        weights = (w[name] for name in ("norm", "norm_b", "start", "start_b"))
        rate = self._rate(ops, raw, w, at)
        return InnerLinear(q, k, v, rate, (places, *weights), chunk), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        """One token, with the gradients of its mini-batch so far; see ``_decoded``."""
        q, k, v, raw = read
        norms = (of_heads(ops, w[name]) for name in ("norm", "norm_b"))
        weights = self._rate(ops, raw, w, at), self._places(ops, w, at), *norms, w["start"], of_heads(ops, w["start_b"])
        out, *after = ops.fused("gradient step", _decoded, q, k, v, *weights, *at.cache)
        for cache, new in zip(at.cache, after, strict=True):
            ops.append(cache, new, 0)
        return Direct(out)

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        weights = (of_heads(ops, w[name]) for name in ("post", "post_b"))
        return ops.contract("bhle,hed->bld", ops.fused("layer norm", layer_normed, mixed, *weights), w["w_o"])

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        """What training has added to W and b; the mini-batch's gradients of both so far; which places have passed."""
        shapes = (m["H"], m["d"], m["d"]), (m["H"], 1, m["d"])
        return tuple(Kept(shape, "accumulate") for shape in (*shapes, *shapes, (m["C"],)))

    def grain(self, m: Sizes) -> int:
        return int(m["C"])

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["H"], m["H"]

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        q, k, v, raw = (xp.einsum("bld,dhe->bhle", x, w[name]) for name in READ)
        rate = 1 / (1 + xp.exp(-raw - w["b_r"].view(-1, 1, 1))) / at.sizes["d"]
        chunk, norm, norm_b = int(at.sizes["C"]), w["norm"][:, None], w["norm_b"][:, None]
        places = (1 / xp.arange(1, chunk + 1, dtype=x.dtype) + w["places"]).clamp(min=0)

        def loss(weight: Any, bias: Any, seen: slice) -> Any:
            error = standardised(k[:, :, seen] @ weight + bias, norm, norm_b) - (v - k)[:, :, seen]
            return (rate[:, :, seen] * error.square()).sum() / 2

        begin = w["start"].expand(x.shape[0], -1, -1, -1), w["start_b"][:, None].expand(x.shape[0], -1, -1, -1)
        model, mixed = begin, []
        for i in range(x.shape[1]):
            if i % chunk == 0:
                begin = model
            steps = xp.func.grad(loss, (0, 1))(*begin, slice(i - i % chunk, i + 1))
            model = tuple(y - places[i % chunk] * step for y, step in zip(begin, steps, strict=True))
            query = q[:, :, i : i + 1]
            mixed.append(query + standardised(query @ model[0] + model[1], norm, norm_b))
        normed = standardised(xp.cat(mixed, 2), w["post"][:, None], w["post_b"][:, None])
        return Written(None, None, xp.einsum("bhle,hed->bld", normed, w["w_o"]))

    def _rate(self, ops: Vocabulary[T], raw: T, w: Weights, at: Site[T]) -> T:
        def body(ops: Vocabulary[Any], raw: Any, bias: Any) -> Any:
            return ops.scale(ops.map("sigmoid", ops.add(raw, bias)), 1 / at.sizes["d"])

        rate: T = ops.fused("rates", body, raw, ops.reshape(w["b_r"], (at.sizes["H"], 1, 1)))
        return rate

    def _places(self, ops: Vocabulary[T], w: Weights, at: Site[T]) -> T:
        """max(1 / (i + 1) + learned_i, 0) [C]."""

        def body(ops: Vocabulary[Any], learned: Any) -> Any:
            count = ops.cumsum(ops.ones((at.sizes["C"],)), 0)
            return ops.map("relu", ops.add(learned, ops.map("reciprocal", count)))

        places: T = ops.fused("weights of places", body, w["places"])
        return places


def _decoded(ops: Vocabulary[T], q: T, k: T, v: T, *others: T) -> tuple[T, ...]:
    """A token's output and the cache after it.

    Where it is in its mini-batch the cache says itself: places that have passed are 1, the others 0.
    """
    rate, places, norm, norm_b, start, start_b, added, added_b, sums, sums_b, passed = others
    batch, size = ops.shape(passed)
    model = ops.add(added, start), ops.add(added_b, start_b)
    step = ops.mul(inner_gradient(ops, model, k, v, norm, norm_b), rate)
    totals = ops.add(sums, ops.contract("bhcd,bhce->bhde", k, step)), ops.add(sums_b, step)
    reached = ops.concat([ops.ones((batch, 1), "accumulate"), ops.slice(passed, 1, 0, size - 1)], 1)
    here = ops.map("sub", reached, passed)
    factor = ops.reshape(ops.sum(ops.mul(here, places), (1,)), (batch, 1, 1, 1))
    ends = ops.slice(here, 1, size - 1, 1)
    weight, bias = (ops.map("sub", x, ops.mul(total, factor)) for x, total in zip(model, totals, strict=True))
    read = ops.add(ops.contract("bhcd,bhde->bhce", q, weight), bias)
    out = ops.add(q, layer_normed(ops, read, norm, norm_b))
    last = ops.reshape(ends, (batch, 1, 1, 1))
    done = (ops.mul(total, ops.mul(factor, last)) for total in totals)
    models = (ops.map("sub", x, step) for x, step in zip((added, added_b), done, strict=True))
    kept = (ops.mul(total, ops.map("complement", last)) for total in totals)
    return out, *models, *kept, ops.mul(reached, ops.map("complement", ends))


ttt_linear = TttLinear()
