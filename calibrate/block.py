"""Which numbers of a profile are fitted together, and to which measured kernels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from calibrate.measurement import Measurement
from costmodel.errors import UnknownNameError


@dataclass(frozen=True)
class Block:
    """Numbers that are fitted together.

    Attributes:
        kernels: measured kernels that inform them.
        families: kernel families of the profile that are predicted by them.
        keys: numbers that every fit has, as far as measurements depend on them.
        terms: numbers of which a fit has those that improve predictions, in the order in which they are tried; those
            of one entry belong together.
        cards: whether what differs between its sources is what differs between cards.
    """

    name: str
    kernels: tuple[str, ...]
    families: tuple[str, ...]
    keys: tuple[str, ...]
    terms: tuple[tuple[str, ...], ...] = ()
    cards: bool = False

    def chosen(self, measurements: Iterable[Measurement]) -> list[Measurement]:
        """Those that it is fitted to."""
        return [row for row in measurements if row.kernel in self.kernels and row.use == "fit"]


def _kernel(family: str, *names: str) -> tuple[str, ...]:
    return tuple(f"device.kernels.{family}.{name}" for name in names)


#: Collectives that have a bus bandwidth of their own; a ring shift has that of the link.
BUS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")

#: In the order in which they are fitted: later ones build on numbers of earlier ones.
BLOCKS = (
    Block(
        "memory",
        ("swiglu", "add_rms_norm", "rope", "scale", "gelu", "layer_norm", "copy", "embedding", "softmax"),
        ("elementwise", "gather", "copy", "reduction"),
        (
            "device.launch_s",
            *(f"device.kernels.{family}.memory" for family in ("elementwise", "gather", "copy")),
            "device.kernels.reduction.memory",
        ),
        (("device.cache_bytes", "device.cache_bytes_per_s"),),
    ),
    Block(
        "gemm",
        ("gemm",),
        ("gemm",),
        _kernel("gemm", "compute", "memory"),
        (_kernel("gemm", "exposed"), _kernel("gemm", "launch_s")),
        cards=True,
    ),
    Block(
        "attention",
        ("attention",),
        ("attention",),
        _kernel("attention", "compute", "memory"),
        tuple(_kernel("attention", name) for name in ("ramp", "exposed", "uneven", "launch_s")),
    ),
    Block(
        "attention backward",
        ("attention_training",),
        ("attention_backward",),
        _kernel("attention_backward", "compute"),
        tuple(_kernel("attention_backward", name) for name in ("ramp", "exposed", "uneven")),
    ),
    Block(
        "decode attention",
        ("decode_attention",),
        ("attention_decode",),
        _kernel("attention_decode", "compute", "memory"),
        (_kernel("attention_decode", "launch_s"),),
    ),
    Block(
        "chunked recurrences",
        tuple(f"chunk_{name}{phase}" for name in ("retention", "gla", "gated_delta") for phase in ("", "_training")),
        ("scan",),
        _kernel("scan", "compute", "memory"),
        (_kernel("scan", "launch_s"),),
    ),
    Block(
        "convolution",
        ("short_convolution", "depthwise"),
        ("convolution",),
        _kernel("convolution", "memory"),
        (_kernel("convolution", "launch_s"),),
    ),
    Block("long convolution", ("fft_convolution",), ("fft",), _kernel("fft", "memory")),
    Block(
        "convolution by matrices",
        ("monarch_convolution", "monarch_outer_convolution"),
        ("device.single.Monarch_convolution",),
        ("device.single.Monarch_convolution.compute",),
    ),
    Block(
        "link",
        ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "ring_shift"),
        ("links[0]",),
        (
            "links[0].latency_s",
            "links[0].bytes_per_s",
            *(f"links[0].collectives.{name}" for name in BUS),
            "links[0].switch_bytes_per_s",
        ),
        (
            ("links[0].start_s",),
            ("links[0].small_latency_s", "links[0].small_cost"),
            ("links[0].own_bytes_per_s",),
        ),
    ),
)


def blocks(names: Iterable[str]) -> tuple[Block, ...]:
    """Blocks by name, in the order in which they are fitted; all without names.

    Raises:
        UnknownNameError: for a name that is none.
    """
    known, chosen = [block.name for block in BLOCKS], set(names)
    for name in chosen - set(known):
        raise UnknownNameError("block of numbers", name, known)
    return tuple(block for block in BLOCKS if not chosen or block.name in chosen)
