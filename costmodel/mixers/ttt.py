"""Test-time training (TTT): the state is a linear model, or a small MLP, that is trained on the sequence."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.direct import Direct
from costmodel.carries.state import Recurrent
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape
from costmodel.mixer import Hyperparameter, Kept, Mixer, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.inner_loop import InnerNetwork, inner_gradients, network, read_out
from costmodel.recurrences.pieces import layer_normed, of_heads
from costmodel.written import gelu, standardised

T = TypeVar("T")

READ = "w_q", "w_k", "w_v", "w_r"


class _TestTimeTraining(Mixer):
    """Rates sigmoid(X w_r + b_r) / (d slowness); places of a mini-batch weigh max(1 / (i + 1) + learned_i, 0).

    Left out of the code's layer: rotary positions within a mini-batch, and the gate of its Mamba backbone. The norm
    before the output projection is of each head (the code's is of all together), with epsilon 1e-5 (the code's: 1e-6).

    Attributes:
        slowness: one over the base rate of the inner steps.
    """

    source: ClassVar[str] = "Sun et al. 2024, arXiv 2407.04620; test-time-training/ttt-lm-pytorch ttt.py"
    structure: ClassVar[Structure] = Structure.RECURRENT
    carry: ClassVar[type[Carry[Any]]] = Recurrent
    kernels: ClassVar[tuple[str, ...]] = ("dual",)
    causality: ClassVar[str] = "causal"
    slowness: ClassVar[int]
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 32, "heads", cut=True),
        "head_dim": Hyperparameter("d", 64, "head dimension"),
        "chunk": Hyperparameter("C", 16, "tokens of a mini-batch"),
    }

    @abstractmethod
    def layers(self, m: Sizes) -> tuple[tuple[Dim, Dim], ...]:
        """Width in and out of each layer of the model that is trained."""

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, H, d = m["D"], m["H"], m["d"]
        read = {"w_q": (D, H, d), "w_k": (D, H, d), "w_v": (D, H, d), "w_r": (D, H, 1)}
        norms: dict[str, Shape] = dict.fromkeys(("norm", "norm_b", "post", "post_b"), (H, d))
        shapes = ((H, *layer) for layer in self.layers(m))
        start = {name: y for i, x in enumerate(shapes) for name, y in ((f"start_{i}", x), (f"start_b_{i}", (H, x[2])))}
        return {**read, **norms, "b_r": (H,), "places": (m["C"],), **start, "w_o": (H, d, D)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return READ

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        q, k, v, raw = read
        chunk, h = at.sizes["C"], at.sizes["H"]
        places = ops.expand(ops.reshape(self._places(ops, w, at), (1, chunk, 1)), (h, chunk, 1))
        weights = places, w["norm"], w["norm_b"], *(x for layer in self._start(w, at) for x in layer)
        return InnerNetwork(q, k, v, self._rate(ops, raw, w, at), weights, chunk), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        """One token, with the gradients of its mini-batch so far; see ``_decoded``."""
        q, k, v, raw = read
        norms = (of_heads(ops, w[name]) for name in ("norm", "norm_b"))
        start = (x for weight, bias in self._start(w, at) for x in (weight, of_heads(ops, bias)))
        weights = self._rate(ops, raw, w, at), self._places(ops, w, at), *norms, *start
        out, *after = ops.fused("gradient step", _decoded, q, k, v, *weights, *at.cache)
        for cache, new in zip(at.cache, after, strict=True):
            ops.append(cache, new, 0)
        return Direct(out)

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        weights = (of_heads(ops, w[name]) for name in ("post", "post_b"))
        return ops.contract("bhle,hed->bld", ops.fused("layer norm", layer_normed, mixed, *weights), w["w_o"])

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        """What training has added to W and b; the mini-batch's gradients of all so far; which places have passed."""
        model = [shape for inward, out in self.layers(m) for shape in ((m["H"], inward, out), (m["H"], 1, out))]
        return tuple(Kept(shape, "accumulate") for shape in (*model, *model, (m["C"],)))

    def grain(self, m: Sizes) -> int:
        return int(m["C"])

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["H"], m["H"]

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        q, k, v, raw = (xp.einsum("bld,dhe->bhle", x, w[name]) for name in READ)
        rate = 1 / (1 + xp.exp(-raw - w["b_r"].view(-1, 1, 1))) / (self.slowness * at.sizes["d"])
        chunk, norm, norm_b = int(at.sizes["C"]), w["norm"][:, None], w["norm_b"][:, None]
        places = (1 / xp.arange(1, chunk + 1, dtype=x.dtype) + w["places"]).clamp(min=0)

        def normed(model: Any, y: Any) -> Any:
            for i, (weight, bias) in enumerate(network(model)):
                y = (gelu(xp, y) if i else y) @ weight + bias
            return standardised(y, norm, norm_b)

        def loss(model: Any, seen: slice) -> Any:
            error = normed(model, k[:, :, seen]) - (v - k)[:, :, seen]
            return (rate[:, :, seen] * error.square()).sum() / 2

        start = (y for weight, bias in self._start(w, at) for y in (weight, bias[:, None]))
        begin = tuple(y.expand(x.shape[0], -1, -1, -1) for y in start)
        model, mixed = begin, []
        for i in range(x.shape[1]):
            if i % chunk == 0:
                begin = model
            steps = xp.func.grad(loss)(begin, slice(i - i % chunk, i + 1))
            model = tuple(y - places[i % chunk] * step for y, step in zip(begin, steps, strict=True))
            query = q[:, :, i : i + 1]
            mixed.append(query + normed(model, query))
        normal = standardised(xp.cat(mixed, 2), w["post"][:, None], w["post_b"][:, None])
        return Written(None, None, xp.einsum("bhle,hed->bld", normal, w["w_o"]))

    def _start(self, w: Weights, at: Site[Any]) -> list[tuple[Any, Any]]:
        """Weight [H, d, e] and bias [H, e] of each layer before the first token."""
        return [(w[f"start_{i}"], w[f"start_b_{i}"]) for i in range(len(self.layers(at.sizes)))]

    def _rate(self, ops: Vocabulary[T], raw: T, w: Weights, at: Site[T]) -> T:
        def body(ops: Vocabulary[Any], raw: Any, bias: Any) -> Any:
            return ops.scale(ops.map("sigmoid", ops.add(raw, bias)), 1 / (self.slowness * at.sizes["d"]))

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
    (rate, places, *norms), (*models, passed) = others[:4], others[4:]
    count = len(models) // 3
    start, added, sums = (models[i * count : (i + 1) * count] for i in range(3))
    batch, size = ops.shape(passed)
    model = [ops.add(x, y) for x, y in zip(added, start, strict=True)]
    norm, norm_b = norms
    step = []
    for x, gradient in zip(*inner_gradients(ops, network(model), k, v, (norm, norm_b)), strict=True):
        rated = ops.mul(gradient, rate)
        step += [ops.contract("bhcd,bhce->bhde", x, rated), rated]
    totals = [ops.add(x, y) for x, y in zip(sums, step, strict=True)]
    reached = ops.concat([ops.ones((batch, 1), "accumulate"), ops.slice(passed, 1, 0, size - 1)], 1)
    here = ops.map("sub", reached, passed)
    factor = ops.reshape(ops.sum(ops.mul(here, places), (1,)), (batch, 1, 1, 1))
    ends = ops.slice(here, 1, size - 1, 1)
    stepped = [ops.map("sub", x, ops.mul(total, factor)) for x, total in zip(model, totals, strict=True)]
    out = ops.add(q, layer_normed(ops, read_out(ops, q, network(stepped)), norm, norm_b))
    last = ops.reshape(ends, (batch, 1, 1, 1))
    done = (ops.mul(total, ops.mul(factor, last)) for total in totals)
    after = (ops.map("sub", x, y) for x, y in zip(added, done, strict=True))
    kept = (ops.mul(total, ops.map("complement", last)) for total in totals)
    return out, *after, *kept, ops.mul(reached, ops.map("complement", ends))


class TttLinear(_TestTimeTraining):
    """The model is W, b; base rate 1."""

    name: ClassVar[str] = "ttt-linear"
    title: ClassVar[str] = "TTT-Linear (a linear model trained at test time)"
    template: ClassVar[str] = (
        "no matrix: W_i = W_{last mini-batch} - sum of eta_i rate_j grad |LN(k_j W + b) - (v_j - k_j)|^2 / 2,  "
        "y_i = q_i + LN(q_i W_i + b_i)"
    )
    slowness: ClassVar[int] = 1

    def layers(self, m: Sizes) -> tuple[tuple[Dim, Dim], ...]:
        return ((m["d"], m["d"]),)


class TttMlp(_TestTimeTraining):
    """The model is an MLP with GELU, four times as wide inside (section 2.7 of the paper); base rate 1/10."""

    name: ClassVar[str] = "ttt-mlp"
    title: ClassVar[str] = "TTT-MLP (a two-layer MLP trained at test time)"
    template: ClassVar[str] = (
        "no matrix: W_i = W_{last mini-batch} - sum of eta_i rate_j grad |LN(f(k_j; W)) - (v_j - k_j)|^2 / 2,  "
        "y_i = q_i + LN(f(q_i; W_i)),  f(x; W) = gelu(x W_1 + b_1) W_2 + b_2"
    )
    slowness: ClassVar[int] = 10

    def layers(self, m: Sizes) -> tuple[tuple[Dim, Dim], ...]:
        return (m["d"], 4 * m["d"]), (4 * m["d"], m["d"])


ttt_linear = TttLinear()
ttt_mlp = TttMlp()
