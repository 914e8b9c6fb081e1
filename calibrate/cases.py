"""What a measured kernel or collective is in the op vocabulary: a fit reads the formulas that predictions do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from calibrate.case import Case, Shapes, Sizes
from calibrate.linear_mixers import LINEAR_MIXERS
from calibrate.measurement import Measurement
from calibrate.primitives import PRIMITIVES
from costmodel.carries.pairs import Pairs
from costmodel.composite import rms_norm, rope, swiglu
from costmodel.errors import InputError, UnknownNameError
from costmodel.masks import Mask, Tile
from costmodel.ops.communication import AllGather, AllReduce, AllToAll, Communication, ReduceScatter, RingShift
from costmodel.ops.mesh import Axis
from costmodel.ops.model_ends import Lookup
from costmodel.program import Program
from costmodel.tensor import Tensor
from costmodel.trace import Tracer, Widths, trace
from costmodel.workload import WIDTHS


def axis(ranks: int, groups: int = 1) -> str:
    """The axis along which a measured collective runs, in so many groups of ranks at once.

    Both are in its name, so that rates of several stay apart.
    """
    return f"ranks{ranks}x{groups}"


def _heads(s: Sizes) -> tuple[tuple[int, ...], ...]:
    keys = (s["B"], s["H_kv"], s["n_k"], s["d"])
    return (s["B"], s["H"], s.get("n_q", 1), s["d"]), keys, keys


def _attention(ops: Tracer, s: Sizes, q: Tensor, k: Tensor, v: Tensor) -> Any:
    return ops.attention(q, k, v, Mask(causal=bool(s.get("causal"))), s["d"] ** -0.5)[0]


def _vanilla(ops: Tracer, s: Sizes, q: Tensor, k: Tensor, v: Tensor) -> Any:
    return Pairs(q, k, v, Mask(causal=bool(s["causal"])), s["d"] ** -0.5, "vanilla").whole(ops)


def _add_rms_norm(ops: Tracer, _: Sizes, *inputs: Tensor) -> Any:
    """A block's output added to the residual stream, and its norm, as one kernel that writes both."""

    def body(ops: Any, x: Any, residual: Any, weight: Any) -> Any:
        both = ops.add(x, residual)
        return both, rms_norm(ops, both, weight)

    return ops.fused("add_rms_norm", body, *inputs)


def _vector(s: Sizes) -> tuple[tuple[int, ...], ...]:
    return ((s["n"],),)


def _buffer(shard: bool) -> Shapes:
    """``bytes`` as nccl-tests counts them: a rank's larger buffer, which is the output of an all-gather."""

    def shapes(s: Sizes) -> tuple[tuple[int, ...], ...]:
        return ((s["P"], -(-s["bytes"] // (s["P"] ** (2 if shard else 1)))),)

    return shapes


@dataclass(frozen=True)
class Collective:
    """A collective of the vocabulary.

    Attributes:
        make: of an axis.
        shard: whether a rank's larger buffer is its output.
        heads: whether its operand has heads, rows and columns.
    """

    make: Callable[[Axis], Communication]
    shard: bool = False
    heads: bool = False

    def case(self, *sizes: str) -> Case:
        """Its case: sizes P, bytes and others."""

        def run(ops: Tracer, s: Sizes, x: Tensor) -> Any:
            return ops.apply(self.make(Axis(axis(s["P"], s.get("groups", 1)), s["P"], 0)), Tensor.new(x.shape, 1))

        return Case("link", ("P", *sizes, "bytes"), _buffer(self.shard), run)


COLLECTIVES = {
    "all_reduce": Collective(AllReduce),
    "all_gather": Collective(lambda axis: AllGather(axis, 0), shard=True),
    "reduce_scatter": Collective(lambda axis: ReduceScatter(axis, 0)),
    "all_to_all": Collective(lambda axis: AllToAll(axis, 0, 1), heads=True),
    "ring_shift": Collective(RingShift),
}

#: What sends one message one way, and is compared with a ring shift, which sends and receives.
ONE_WAY = ("point_to_point", "broadcast")

#: What several groups of ranks do at the same time: ``groups`` of them, each of P ranks.
SEVERAL = {"ring_shifts": "ring_shift", "all_to_alls": "all_to_all"}

_QUERIES = ("B", "H", "H_kv", "n_q", "n_k", "d", "causal")

CASES: dict[str, Case] = {
    **PRIMITIVES,
    **LINEAR_MIXERS,
    "gemm": Case(
        "gemm",
        ("M", "K", "N"),
        lambda s: ((s["M"], s["K"]), (s["K"], s["N"])),
        lambda ops, s, a, b: ops.contract("mk,kn->mn", a, b),
    ),
    "attention": Case("attention", _QUERIES, _heads, _attention),
    "attention_training": Case("attention_backward", _QUERIES, _heads, _attention, train=True),
    "decode_attention": Case("attention_decode", ("B", "H", "H_kv", "n_k", "d"), _heads, _attention),
    "vanilla_attention": Case("reduction", _QUERIES, _heads, _vanilla),
    "vanilla_attention_training": Case("reduction", _QUERIES, _heads, _vanilla, train=True),
    "swiglu": Case(
        "elementwise", ("n", "F"), lambda s: ((s["n"], s["F"]),) * 2, lambda ops, s, gate, up: swiglu(ops, gate, up)
    ),
    "add_rms_norm": Case(
        "elementwise", ("n", "D"), lambda s: ((s["n"], s["D"]), (s["n"], s["D"]), (s["D"],)), _add_rms_norm
    ),
    "layer_norm": Case(
        "elementwise", ("n", "D"), lambda s: ((s["n"], s["D"]), (s["D"],)), lambda ops, s, x, w: rms_norm(ops, x, w)
    ),
    "rope": Case(
        "elementwise",
        ("n", "H", "H_kv", "d"),
        lambda s: ((1, s["H"] + s["H_kv"], s["n"], s["d"]), (s["n"], s["d"] // 2), (s["n"], s["d"] // 2)),
        lambda ops, s, x, cos, sin: rope(ops, x, cos, sin),
    ),
    "scale": Case("elementwise", ("n",), _vector, lambda ops, s, x: ops.scale(x, 2)),
    "gelu": Case("elementwise", ("n",), _vector, lambda ops, s, x: ops.map("gelu", x)),
    "softmax": Case(
        "reduction", ("n", "D"), lambda s: ((s["n"], s["D"]),), lambda ops, s, x: ops.softmax(x, 1, Mask())
    ),
    "embedding": Case(
        "gather",
        ("n", "V", "D"),
        lambda s: ((s["V"], s["D"]),),
        lambda ops, s, table: ops.apply(Lookup((1, s["n"])), table)[0],
    ),
    "copy": Case("copy", ("n",), _vector, lambda ops, s, x: ops.concat([x], 0)),
    **{name: collective.case() for name, collective in COLLECTIVES.items()},
    **{name: COLLECTIVES["ring_shift"].case() for name in ONE_WAY},
    **{name: COLLECTIVES[one].case("groups") for name, one in SEVERAL.items()},
}


def case(measurement: Measurement) -> Case:
    """The case of a measurement.

    Raises:
        UnknownNameError: for a kernel that is none.
        InputError: where its sizes are not those of the case.
    """
    if measurement.kernel not in CASES:
        raise UnknownNameError("measured kernel", measurement.kernel, CASES)
    found = CASES[measurement.kernel]
    if set(measurement.sizes) != set(found.sizes):
        rule = f"{measurement.kernel} has the sizes {', '.join(found.sizes)}"
        raise InputError("sizes", " ".join(measurement.sizes), rule)
    return found


def program(measurement: Measurement, tile: Tile) -> Program:
    """What was timed.

    Args:
        tile: edge of the fused attention kernel's tile.

    Raises:
        UnknownNameError: for an unknown kernel or dtype.
        InputError: where its sizes are not those of the case.
    """
    found = case(measurement)
    if measurement.dtype not in WIDTHS:
        raise UnknownNameError("dtype", measurement.dtype, WIDTHS)
    width = WIDTHS[measurement.dtype]
    sizes = {name: int(size) for name, size in measurement.sizes.items()}
    widths = Widths(width, max(4, width), max(4, width))
    ops = Tracer(widths, tile if found.tiled else 1)

    def run(ops: Tracer, *given: Any) -> Any:
        return found.run(ops, sizes, *given[:-1])

    return trace(ops, run, found.traced(sizes, widths), {}, train=found.train)
