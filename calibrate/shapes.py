"""Which shapes are measured, and in which order: every beginning of the list covers the whole region.

Sizes are spread evenly on a logarithmic scale. The points of one kernel follow a sequence of low discrepancy after the
region's two far corners, so that each further one goes where the gaps are; kernels take turns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from calibrate.cases import CASES

#: Sizes from here on are multiples of ``STEP``, as those of models are.
ALIGNED, STEP = 64, 16

#: How far the sequence is stretched over the ends of a range, so that these are measured too.
BEYOND = 0.08


@dataclass(frozen=True)
class Span:
    """Sizes from ``low`` to ``high``, evenly on a logarithmic scale."""

    low: int
    high: int

    def at(self, part: float) -> int:
        """The size at this part of the way, from 0 to 1."""
        size = self.low * (self.high / self.low) ** part
        return round(size) if size < ALIGNED else STEP * round(size / STEP)


@dataclass(frozen=True)
class Smooth:
    """Powers of two, and three times these, from ``low`` to ``high``: lengths to which sequences are filled up."""

    low: int
    high: int

    def at(self, part: float) -> int:
        """The size at this part of the way, from 0 to 1."""
        place = round(2 * math.log2(self.high / self.low) * part)
        return self.low * 2 ** (place // 2) * (3 if place % 2 else 2) // 2


@dataclass(frozen=True)
class Choice:
    """Some sizes that are not a scale."""

    of: tuple[int, ...]

    def at(self, part: float) -> int:
        """The size at this part of the way, from 0 to 1."""
        return self.of[min(int(part * len(self.of)), len(self.of) - 1)]


@dataclass(frozen=True)
class Shape:
    """One kernel at one size, in one dtype."""

    kernel: str
    dtype: str
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class Sweep:
    """The region in which a kernel is measured.

    Attributes:
        turns: shapes of this kernel for one of others.
    """

    kernel: str
    sizes: Mapping[str, Span | Smooth | Choice]
    turns: int = 1

    def points(self) -> Iterator[dict[str, int]]:
        """Sizes without end, without those that were there before."""
        seen = set()
        for parts in _parts(len(self.sizes)):
            found = {name: span.at(part) for (name, span), part in zip(self.sizes.items(), parts, strict=True)}
            found = _consistent(found)
            if (point := tuple(found.values())) not in seen:
                seen.add(point)
                yield found


def _consistent(sizes: dict[str, int]) -> dict[str, int]:
    """No more groups than heads; under a causal mask, every query has a key."""
    if "H_kv" in sizes:
        sizes["H_kv"] = min(sizes["H_kv"], sizes["H"])
    if sizes.get("causal"):
        sizes["n_k"] = max(sizes["n_k"], sizes["n_q"])
    return sizes


def _parts(dimensions: int) -> Iterator[list[float]]:
    """Points of the unit cube: its far corners, then Roberts' additive sequence, stretched over the ends.

    Roberts, The unreasonable effectiveness of quasirandom sequences, 2018: steps of powers of the inverse of the root
    of x^(n+1) = x + 1. Stops after so many that a region of whole numbers has no more.
    """
    yield [0.0] * dimensions
    yield [1.0] * dimensions
    root = 2.0
    for _ in range(40):
        root = (1 + root) ** (1 / (dimensions + 1))
    for number in range(1, 20000):
        place = [(0.5 + number * root ** -(axis + 1)) % 1 for axis in range(dimensions)]
        yield [min(max((1 + 2 * BEYOND) * part - BEYOND, 0.0), 1.0) for part in place]


SHORT = Span(2**6, 2**12)
LONG = Span(2**10, 2**25)
ROWS = {"n": Span(2**4, 2**20), "D": Span(2**4, 2**13)}
SEQUENCES = {"B": Choice((1, 2, 4)), "L": Smooth(2**6, 2**17), "D": Choice((1, 64, 512, 2048))}
HEADS = {"B": Choice((1, 2)), "H": Choice((1, 4, 8)), "H_kv": Choice((1, 2, 8))}
SCORES = {**HEADS, "n_q": Span(2**6, 2**13), "n_k": Span(2**6, 2**14), "d": Choice((64, 128)), "causal": Choice((0, 1))}

#: In one round each kernel has its turns.
SWEEPS = (
    Sweep("gemm", {"M": Span(1, 2**20), "K": Span(2**4, 2**13), "N": Span(2**4, 2**13)}, turns=5),
    Sweep("product_transposed", {"M": Span(2**4, 2**20), "K": Span(2**4, 2**12), "N": Span(2**4, 2**12)}),
    Sweep(
        "batched_product", {"B": Span(2, 2**9), "M": Span(2**4, 2**11), "K": Span(2**4, 2**10), "N": Span(16, 2**11)}
    ),
    Sweep(
        "heads_product", {"n": Span(2**6, 2**16), "D": Span(2**6, 2**12), "H": Choice((4, 16)), "d": Choice((64, 128))}
    ),
    Sweep("attention", SCORES, turns=5),
    Sweep("attention_backward", SCORES, turns=5),
    Sweep("vanilla_attention", {**SCORES, "H": Choice((1, 2, 4)), "H_kv": Choice((4,)), "n_q": SHORT, "n_k": SHORT}),
    *(Sweep(name, {"n": LONG}) for name, case in CASES.items() if case.sizes == ("n",)),
    *(
        Sweep(name, ROWS)
        for name in ("mul_rows", "mul_columns", "softmax", "sum", "sum_first", "max", "softmax_backward", "concat")
    ),
    *(Sweep(name, {"B": Span(1, 64), "n": Span(2**5, 2**12)}) for name in ("masked", "causal_softmax")),
    *(Sweep(name, SEQUENCES) for name in ("cumsum", "pad", "flip")),
    *(Sweep(name, SEQUENCES, turns=2) for name in ("fft", "real_fft", "inverse_real_fft")),
    Sweep("merge", {"B": Choice((1, 4)), "H": Choice((2, 8, 16)), "n": Span(2**6, 2**15), "d": Choice((64, 128))}),
    *(
        Sweep(name, {"n": Span(2**6, 2**18), "V": Span(2**8, 2**17), "D": Span(2**4, 2**11)}, turns=3)
        for name in ("gather", "scatter_add")
    ),
    Sweep(
        "depthwise",
        {"B": Choice((1, 4)), "C": Span(2**4, 2**11), "n": Span(2**8, 2**17), "K": Choice((3, 4, 7, 15, 31))},
        turns=3,
    ),
    Sweep(
        "dynamic_depthwise",
        {
            "B": Choice((1, 2)),
            "H": Choice((4, 8)),
            "n": Span(2**8, 2**13),
            "d": Choice((32, 64)),
            "K": Choice((3, 7, 15)),
        },
        turns=3,
    ),
    Sweep("triangular_inverse", {"B": Span(1, 2**10), "C": Choice((16, 32, 64, 128))}, turns=3),
    Sweep(
        "token_scan", {"B": Choice((1, 4)), "H": Choice((2, 8)), "n": Span(2**5, 2**12), "d": Choice((16, 64))}, turns=3
    ),
    Sweep(
        "chunk_scan",
        {"B": Choice((1, 4)), "H": Choice((2, 8, 16)), "n": Span(2**3, 2**10), "d": Choice((32, 64, 128))},
        turns=3,
    ),
    Sweep("sort", {"n": Span(1, 2**12), "D": Span(2**4, 2**18)}, turns=3),
    Sweep("top_k", {"n": Span(1, 2**12), "D": Span(2**5, 2**17), "k": Choice((1, 8, 32))}, turns=3),
)


def rounds(dtypes: Sequence[str], sweeps: Sequence[Sweep] = SWEEPS) -> Iterator[list[Shape]]:
    """Shapes a round at a time: the first dtype each time, the others in every third round."""
    points = {(sweep.kernel, dtype): sweep.points() for sweep in sweeps for dtype in dtypes}
    for number in range(10**6):
        found = []
        for sweep in sweeps:
            for dtype in dtypes if number % 3 == 0 else dtypes[:1]:
                taken = islice(points[sweep.kernel, dtype], sweep.turns)
                found += [Shape(sweep.kernel, dtype, sizes) for sizes in taken]
        if not found:
            return
        yield found


def bytes_of(shape: Shape) -> float:
    """Of its operands and results, at the least: what has to fit into memory."""
    width = 2 if shape.dtype == "bf16" else 4
    return width * sum(math.prod(operand.shape) for operand in CASES[shape.kernel].operands(shape.sizes))
