"""Primitives of the vocabulary by themselves: what own measurements time, one case or more for each kernel family.

Sizes: ``n`` elements or rows, ``D`` the length of a row, the others as in ``costmodel.symbols``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from calibrate.case import Case, Operand, Shapes, Sizes
from costmodel.masks import Mask
from costmodel.ops.model_ends import AdamStep
from costmodel.ops.pointwise import Softmax, SoftmaxBackward
from costmodel.ops.scan import Recurrence

#: Elementwise functions of one tensor and of two that models are made of.
UNARY = ("exp", "log", "sqrt", "rsqrt_eps", "sin", "tanh", "sigmoid", "silu", "gelu_slope", "softplus")
UNARY = (*UNARY, "square", "neg", "complement", "relu")
BINARY = ("add", "mul", "div")


def _vector(count: int) -> Shapes:
    return lambda s: ((s["n"],),) * count


def _rows(s: Sizes) -> tuple[tuple[int, ...], ...]:
    return ((s["n"], s["D"]),)


def _sequence(s: Sizes) -> tuple[tuple[int, ...], ...]:
    return ((s["B"], s["L"], s["D"]),)


def _map(function: str, count: int) -> Case:
    return Case("elementwise", ("n",), _vector(count), lambda ops, s, *xs: ops.map(function, *xs))


def _on_rows(family: str, run: Callable[[Any, Any], Any]) -> Case:
    return Case(family, ("n", "D"), _rows, lambda ops, s, x: run(ops, x))


def _on_sequences(family: str, run: Callable[[Any, Any], Any]) -> Case:
    return Case(family, ("B", "L", "D"), _sequence, lambda ops, s, x: run(ops, x))


def _bins(s: Sizes) -> tuple[tuple[int, ...], ...]:
    return ((s["B"], s["L"] // 2 + 1, s["D"], 2),)


def _queries(s: Sizes) -> tuple[int, ...]:
    return s["B"], s["H"], s["n_q"], s["d"]


def _keys(s: Sizes) -> tuple[int, ...]:
    return s["B"], s["H_kv"], s["n_k"], s["d"]


def _known(s: Sizes) -> tuple[Any, ...]:
    lse = Operand(_queries(s)[:3], "accumulate")
    return _queries(s), _keys(s), _keys(s), _queries(s), lse, _queries(s)


def _attention_backward(ops: Any, s: Sizes, *known: Any) -> Any:
    return ops.attention_backward(*known, Mask(causal=bool(s["causal"])), s["d"] ** -0.5)


def _partial(s: Sizes) -> tuple[Operand, ...]:
    rows = s["B"], s["H"], s["n"]
    whole = Operand((*rows, s["d"]), "accumulate"), Operand(rows, "accumulate")
    return (*whole, Operand((*rows, s["d"])), Operand(rows, "accumulate"))


def _taken(s: Sizes) -> tuple[Any, ...]:
    return (s["V"], s["D"]), Operand((s["n"],), "index", below=s["V"])


def _put(s: Sizes) -> tuple[Any, ...]:
    return (s["n"], s["D"]), Operand((s["n"],), "index", below=s["V"])


def _states(s: Sizes) -> tuple[Operand, ...]:
    state, steps = (s["B"], s["H"], s["d"], s["d"]), (s["n"], s["B"], s["H"])
    return Operand(state, "accumulate"), Operand((*steps, s["d"], 1)), Operand((*steps, 1, s["d"]))


def _chunks(s: Sizes) -> tuple[Operand, ...]:
    state = s["B"], s["H"], s["d"], s["d"]
    return Operand(state, "accumulate"), Operand((s["n"], *state)), Operand((s["n"], s["B"], s["H"], 1, 1))


#: Outer products of keys and values summed up token by token, as linear attention does.
_TOKENS = Recurrence(
    "tokens",
    lambda ops, state, x, constants: (ops.add(state[0], ops.mul(*x)),),
    lambda ops, before, after, x, constants: (ops.sum(after[0], (2,)),),
    "recurrence",
)

#: States of chunks combined, each with a decay, as chunked linear attention does.
_STATES = Recurrence(
    "states",
    lambda ops, state, x, constants: (ops.add(ops.mul(state[0], x[1]), x[0]),),
    lambda ops, before, after, x, constants: (before[0],),
)


def _scanned(loop: Recurrence) -> Callable[..., Any]:
    return lambda ops, s, state, *xs: ops.scan(loop, (state,), xs)


PRIMITIVES: dict[str, Case] = {
    # products
    "product_transposed": Case(
        "gemm",
        ("M", "K", "N"),
        lambda s: ((s["M"], s["K"]), (s["N"], s["K"])),
        lambda ops, s, a, b: ops.contract("mk,nk->mn", a, b),
    ),
    "batched_product": Case(
        "gemm",
        ("B", "M", "K", "N"),
        lambda s: ((s["B"], s["M"], s["K"]), (s["B"], s["K"], s["N"])),
        lambda ops, s, a, b: ops.contract("bmk,bkn->bmn", a, b),
    ),
    "heads_product": Case(
        "gemm",
        ("n", "D", "H", "d"),
        lambda s: ((1, s["n"], s["D"]), (s["D"], s["H"], s["d"])),
        lambda ops, s, x, w: ops.contract("bld,dhe->bhle", x, w),
    ),
    # attention
    "attention_backward": Case(
        "attention_backward", ("B", "H", "H_kv", "n_q", "n_k", "d", "causal"), _known, _attention_backward
    ),
    # elementwise
    **{name: _map(name, 1) for name in UNARY},
    **{name: _map(name, 2) for name in BINARY},
    "mul_rows": Case(
        "elementwise", ("n", "D"), lambda s: ((s["n"], s["D"]), (s["D"],)), lambda ops, s, x, w: ops.mul(x, w)
    ),
    "mul_columns": Case(
        "elementwise", ("n", "D"), lambda s: ((s["n"], s["D"]), (s["n"], 1)), lambda ops, s, x, w: ops.mul(x, w)
    ),
    "shift": Case("elementwise", ("n",), _vector(1), lambda ops, s, x: ops.shift(x, 1.0)),
    "masked": Case(
        "elementwise",
        ("B", "n"),
        lambda s: ((s["B"], s["n"], s["n"]),),
        lambda ops, s, x: ops.masked(x, Mask(causal=True)),
    ),
    "complex_product": Case(
        "elementwise", ("n",), lambda s: ((s["n"], 2),) * 2, lambda ops, s, a, b: ops.complex_mul(a, b)
    ),
    "merge": Case("elementwise", ("B", "H", "n", "d"), _partial, lambda ops, s, *parts: ops.merge(*parts)),
    "adam": Case("elementwise", ("n",), _vector(1), lambda ops, s, x: ops.apply(AdamStep(), x)),
    # reductions
    "sum": _on_rows("reduction", lambda ops, x: ops.sum(x, (1,))),
    "sum_first": _on_rows("reduction", lambda ops, x: ops.sum(x, (0,))),
    "max": _on_rows("reduction", lambda ops, x: ops.max(x, (1,))),
    "causal_softmax": Case(
        "reduction",
        ("B", "n"),
        lambda s: ((s["B"], s["n"], s["n"]),),
        lambda ops, s, x: ops.apply(Softmax(1, Mask(causal=True)), x),
    ),
    "softmax_backward": Case(
        "reduction",
        ("n", "D"),
        lambda s: ((s["n"], s["D"]),) * 2,
        lambda ops, s, p, g: ops.apply(SoftmaxBackward(1, Mask()), p, g),
    ),
    "cumsum": _on_sequences("reduction", lambda ops, x: ops.cumsum(x, 1)),
    # moves
    "gather": Case("gather", ("n", "V", "D"), _taken, lambda ops, s, x, at: ops.gather(x, at, 0)),
    "scatter_add": Case("gather", ("n", "V", "D"), _put, lambda ops, s, x, at: ops.scatter_add(x, at, 0, s["V"])),
    "concat": Case("copy", ("n", "D"), lambda s: ((s["n"], s["D"]),) * 2, lambda ops, s, a, b: ops.concat([a, b], 1)),
    "pad": _on_sequences("copy", lambda ops, x: ops.pad(x, 1, 0, 2 * ops.shape(x)[1])),
    "flip": _on_sequences("copy", lambda ops, x: ops.flip(x, 1)),
    # the others
    "fft": Case("fft", ("B", "L", "D"), lambda s: ((s["B"], s["L"], s["D"], 2),), lambda ops, s, x: ops.fft(x, 1)),
    "real_fft": _on_sequences("fft", lambda ops, x: ops.real_fft(x, 1)),
    "inverse_real_fft": Case("fft", ("B", "L", "D"), _bins, lambda ops, s, x: ops.inverse_real_fft(x, 1)),
    "depthwise": Case(
        "convolution",
        ("B", "C", "n", "K"),
        lambda s: ((s["B"], s["C"], s["n"] + s["K"] - 1), (s["C"], s["K"])),
        lambda ops, s, x, taps: ops.depthwise(x, taps),
    ),
    "dynamic_depthwise": Case(
        "convolution",
        ("B", "H", "n", "d", "K"),
        lambda s: ((s["B"], s["H"], s["n"] + s["K"] - 1, s["d"]), (s["B"], s["H"], s["n"], s["K"])),
        lambda ops, s, x, taps: ops.dynamic_depthwise(x, taps),
    ),
    "triangular_inverse": Case(
        "recurrence", ("B", "C"), lambda s: ((s["B"], s["C"], s["C"]),), lambda ops, s, a: ops.triangular_inverse(a)
    ),
    "token_scan": Case("recurrence", ("B", "H", "n", "d"), _states, _scanned(_TOKENS)),
    "chunk_scan": Case("scan", ("B", "H", "n", "d"), _chunks, _scanned(_STATES)),
    "sort": _on_rows("sort", lambda ops, x: ops.sort(x)),
    "top_k": Case("sort", ("n", "D", "k"), _rows, lambda ops, s, x: ops.top_k(x, s["k"])),
}
