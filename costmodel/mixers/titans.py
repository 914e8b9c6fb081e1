"""Titans: a memory that is trained on the sequence, with momentum and forgetting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.direct import Direct
from costmodel.carries.state import Recurrent
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape
from costmodel.mixer import Hyperparameter, Kept, Mixer, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.momentum import Momentum, step_of
from costmodel.recurrences.pieces import (
    convolution_step,
    gated_norm,
    layer_normed,
    of_heads,
    short_convolution,
    unit,
)
from costmodel.written import causal_convolution, gated_normed, standardised

T = TypeVar("T")

STREAMS = "w_q", "w_k", "w_v"
TAPS = "taps_q", "taps_k", "taps_v"
GATES = "w_theta", "w_alpha", "w_eta"


class Titans(Mixer):
    """The memory alone (LMM in the paper), linear: k + LN(k M) is to give v.

    Around it, as in section 4.4: short convolutions, keys and queries of unit length, norm and gate before the output.
    theta is sigmoid(X w + b) / d, alpha and eta are sigmoid(X w + b). The gradient is the true one of the loss; that of
    flash-linear-attention lacks a pair of brackets (``D * grad - grad.sum(-1) / (rstd * D)``), and it reads q M +
    LN(q M), which is not the memory that is trained. M before the first token is learned.
    """

    name: ClassVar[str] = "titans"
    title: ClassVar[str] = "Titans (a linear memory trained with momentum and forgetting)"
    template: ClassVar[str] = (
        "no matrix: S_i = eta_i S_{i-1} - theta_i grad |k_i + LN(k_i M) - v_i|^2 at M_{last chunk},  "
        "M_i = (1 - alpha_i) M_{i-1} + S_i,  y_i = q_i + LN(q_i M_i)"
    )
    source: ClassVar[str] = "Behrouz et al. 2024, arXiv 2501.00663; flash-linear-attention ops/titans/naive.py"
    structure: ClassVar[Structure] = Structure.RECURRENT
    carry: ClassVar[type[Carry[Any]]] = Recurrent
    kernels: ClassVar[tuple[str, ...]] = ("chunked",)
    causality: ClassVar[str] = "causal"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 16, "heads", cut=True),
        "head_dim": Hyperparameter("d", 64, "head dimension"),
        "taps": Hyperparameter("K", 4, "taps of the short convolution"),
        "chunk": Hyperparameter("C", 16, "tokens of a chunk, whose steps all start from one memory"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, H, d = m["D"], m["H"], m["d"]
        read = dict.fromkeys((*STREAMS, "w_g"), (D, H, d)) | dict.fromkeys(GATES, (D, H, 1))
        biases = dict.fromkeys(("b_theta", "b_alpha", "b_eta"), (H,))
        taps = dict.fromkeys(TAPS, (H, d, m["K"]))
        inner = {"inner": (H, d), "inner_b": (H, d), "start": (H, d, d)}
        return {**read, **biases, **taps, **inner, "norm": (d,), "w_o": (H, d, D)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return (*STREAMS, *GATES, "w_g")

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        q, k, v = (short_convolution(ops, y, w[name], at) for y, name in zip(read[:3], TAPS, strict=True))
        gates = self._gates(ops, read[3:6], w, at)
        weights = w["inner"], w["inner_b"], w["start"]
        return Momentum(unit(ops, q), unit(ops, k), v, *gates, weights, at.sizes["C"], aside=read[6:]), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        convolved = zip(read[:3], TAPS, at.cache[4:], strict=True)
        q, k, v = (convolution_step(ops, y, w[name], cache) for y, name, cache in convolved)
        norms = (of_heads(ops, w[name]) for name in ("inner", "inner_b"))
        gates = self._gates(ops, read[3:6], w, at)
        token = unit(ops, q), unit(ops, k), v, *gates, *norms, w["start"]
        out, *after = ops.fused("step with momentum", _decoded, *token, *at.cache[:4])
        for cache, new in zip(at.cache[:4], after, strict=True):
            ops.append(cache, new, 0)
        return Direct(out, aside=read[6:])

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        return ops.contract("bhle,hed->bld", gated_norm(ops, mixed, at.aside[0], w["norm"]), w["w_o"])

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        """What training has added to M, now and before the chunk; momentum; which places have passed; convolutions."""
        model = Kept((m["H"], m["d"], m["d"]), "accumulate")
        before = Kept((m["H"] * m["d"], m["K"] - 1))
        return model, model, model, Kept((m["C"],), "accumulate"), before, before, before

    def grain(self, m: Sizes) -> int:
        return int(m["C"])

    def overlap(self, m: Sizes) -> Dim:
        return m["K"] - 1

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["H"], m["H"]

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        streams = (xp.einsum("bld,dhe->bhle", x, w[name]) for name in STREAMS)
        q, k, v = (causal_convolution(xp, y, w[name]) for y, name in zip(streams, TAPS, strict=True))
        q, k = (y * (y.square().sum(-1, True) + 1e-5) ** -0.5 for y in (q, k))
        names = zip(GATES, ("b_theta", "b_alpha", "b_eta"), strict=True)
        raw = (xp.einsum("bld,dhe->bhle", x, w[name]) + w[bias].view(-1, 1, 1) for name, bias in names)
        theta, alpha, eta = (1 / (1 + xp.exp(-y)) for y in raw)

        def given(memory: Any, y: Any) -> Any:
            return y + standardised(y @ memory, w["inner"][:, None], w["inner_b"][:, None])

        def loss(memory: Any, key: Any, value: Any) -> Any:
            return (given(memory, key) - value).square().sum()

        memory = w["start"].expand(x.shape[0], -1, -1, -1)
        momentum, mixed = xp.zeros_like(memory), []
        for i in range(x.shape[1]):
            if i % int(at.sizes["C"]) == 0:
                begin = memory
            query, key, value, rate, forget, push = (y[:, :, i : i + 1] for y in (q, k, v, theta, alpha, eta))
            step = xp.func.grad(loss)(begin, key, value)
            momentum = push * momentum - rate / at.sizes["d"] * step
            memory = (1 - forget) * memory + momentum
            mixed.append(given(memory, query))
        gate = xp.einsum("bld,dhe->bhle", x, w["w_g"])
        normed = gated_normed(xp.cat(mixed, 2), gate / (1 + xp.exp(-gate)), w["norm"])
        return Written(None, None, xp.einsum("bhle,hed->bld", normed, w["w_o"]))

    def _gates(self, ops: Vocabulary[T], raw: tuple[T, ...], w: Weights, at: Site[T]) -> tuple[T, T, T]:
        """theta and the logarithms of 1 - alpha and eta [B, H, n, 1], as one kernel."""

        def body(ops: Vocabulary[Any], *given: Any) -> tuple[Any, Any, Any]:
            theta, alpha, eta = (
                ops.add(ops.cast(x, "accumulate"), b) for x, b in zip(given[:3], given[3:], strict=True)
            )
            rate = ops.scale(ops.map("sigmoid", theta), 1 / at.sizes["d"])
            return rate, ops.map("log_sigmoid", ops.map("neg", alpha)), ops.map("log_sigmoid", eta)

        biases = (ops.reshape(w[name], (at.sizes["H"], 1, 1)) for name in ("b_theta", "b_alpha", "b_eta"))
        rate, log_keep, log_push = ops.fused("gates", body, *raw, *biases)
        return rate, log_keep, log_push


def _decoded(ops: Vocabulary[T], q: T, k: T, v: T, *others: T) -> tuple[T, ...]:
    """A token's output and the cache after it: of memories, what has been added to the first one.

    Where it is in its chunk the cache says itself: places that have passed are 1, the others 0.
    """
    rate, log_keep, log_push, norm, norm_b, start, added, begun, momentum, passed = others
    batch, size = ops.shape(passed)
    step = step_of(ops, ops.add(begun, start), (k, v, rate), (norm, norm_b))
    pushed = ops.mul(momentum, ops.map("exp", log_push))
    pushed = ops.map("sub", pushed, ops.contract("bhcd,bhce->bhde", k, step))
    memory = ops.add(ops.mul(ops.add(added, start), ops.map("exp", log_keep)), pushed)
    out = ops.add(q, layer_normed(ops, ops.contract("bhcd,bhde->bhce", q, memory), norm, norm_b))
    after = ops.map("sub", memory, start)
    reached = ops.concat([ops.ones((batch, 1), "accumulate"), ops.slice(passed, 1, 0, size - 1)], 1)
    ends = ops.slice(ops.map("sub", reached, passed), 1, size - 1, 1)
    last = ops.reshape(ends, (batch, 1, 1, 1))
    later = ops.add(begun, ops.mul(ops.map("sub", after, begun), last))
    return out, after, later, pushed, ops.mul(reached, ops.map("complement", ends))


titans = Titans()
