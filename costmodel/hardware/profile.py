"""What a machine is: its device, the links between devices and the host, as read from one TOML file.

Nothing here computes a time. Numbers are in SI base units (bytes, seconds, FLOP/s) and carry their source.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import msgspec
import numpy as np

from costmodel.errors import InputError, UnknownNameError
from costmodel.hardware.decode import converted, parsed, read_bytes
from costmodel.hardware.like import Like, completed
from costmodel.hardware.quantity import ALLOWED, Plain, Quantity
from costmodel.masks import Columns, Tile

Family = Literal[
    "gemm",
    "attention",
    "attention_backward",
    "elementwise",
    "reduction",
    "gather",
    "copy",
    "scan",
    "recurrence",
    "fft",
    "sort",
    "convolution",
    "attention_decode",
]
Collective = Literal["all_to_all", "ring_shift", "all_gather", "reduce_scatter", "all_reduce"]

T = TypeVar("T")


class Noun(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the nouns below: frozen, hashable, no key beyond those declared."""


class Table(Noun, Generic[T], frozen=True):
    """A noun whose keys are also reached by name, like a read-only dict without its unset keys."""

    def keys(self) -> tuple[str, ...]:
        """Names of the keys that are set."""
        return tuple(name for name in self.__struct_fields__ if getattr(self, name) is not None)

    def items(self) -> Iterator[tuple[str, T]]:
        """Pairs of name and value of the keys that are set."""
        return ((name, self[name]) for name in self.keys())

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self.__struct_fields__ and getattr(self, str(name)) is not None

    def __getitem__(self, name: str) -> T:
        """Value of a key; raises `UnknownNameError` (an `InputError`) for one that is not set."""
        if name not in self:
            raise UnknownNameError(type(self).__name__.lower(), name, self.keys())
        value: T = getattr(self, name)
        return value


class Measured(Noun, frozen=True):
    """Between which sizes of one kernel, or of one message, a family was measured: least and most."""

    flop: tuple[float, float] | None = None
    bytes: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for key in ("flop", "bytes"):
            found = getattr(self, key)
            if found is not None and not 0 <= found[0] <= found[1]:
                raise InputError(key, Plain(f"{found[0]:g} to {found[1]:g}"), "must be the least and the most measured")


class Peaks(Table[Quantity], frozen=True):
    """Dense matrix rates by dtype in FLOP/s, without sparsity and accumulating in fp32 (or float64)."""

    bf16_dense: Quantity | None = None
    fp16_dense: Quantity | None = None
    fp8_dense: Quantity | None = None
    fp32_dense: Quantity | None = None
    tf32_dense: Quantity | None = None
    float64_dense: Quantity | None = None


class Kernel(Noun, frozen=True):
    """How close one kernel family comes to the device's rates.

    ``compute`` is the fraction of the dense peak (of ``vector_flop_per_s`` for a family that does not use the
    matrix units), ``memory`` the fraction of the memory bandwidth, ``tile`` the edge in tokens of the square
    tile in which a fused attention kernel works (it executes whole tiles, masked or not).
    ``columns``: keys that it takes at once, if it works in blocks of queries by so many keys, cut off at the ends; of a
    causal mask it then does all up to the diagonal's (``tile`` is for windows).
    ``launch_s``: time of one that does nothing, where it differs from the device's.
    ``exposed``: part of the shorter of arithmetic and traffic that the longer does not hide, and of a scan's work and
    its steps; part of the softmax that the products do not hide (fused attention, whose softmax runs at the device's
    elementwise rate). On a core 1: the two add up.
    ``ramp``: keys that a tile of queries could fold in the time until it runs at full rate (fused attention); rows,
    columns and summands more that a product takes as long as (``Primitive.front``).
    ``uneven``: part of its time that a causal kernel takes longer than its work, of which some tiles of queries have
    more than others (fused attention).
    ``fill``: tiles of queries that the device works on at a time; with fewer, a part of it is idle (fused attention).
    ``cached``: how many times as fast bytes move where all of a kernel's fit the device's ``cache_bytes``.
    ``line_s``: time of a line, of those that a kernel goes through one by one: rows of a reduction, rows that are
    gathered, transforms, steps of a scan (``Primitive.overheads``).
    ``left_bytes_per_s``, ``right_bytes_per_s``: how fast a product copies its operands into the order in which tiles
    are multiplied; one with a single row or column does not. Fused attention so brings its keys and values.
    ``apart_bytes_per_s``: how fast besides, where rows of the left one are a page or more apart.
    ``result_bytes_per_s``: how fast a product or fused attention writes its result, besides ``memory``.
    ``again_bytes_per_s``: how fast fused attention reads keys and values again for each block of queries, and others
    what they go over twice.
    ``scores_per_s``: scores of fused attention whose softmax is done in a second, where products hide none of it: on a
    core. Device and elementwise rates then say nothing of it.
    ``between_bytes_per_s``: how fast a kernel writes and reads what it makes in between, as far as the device's
    ``cache_bytes`` do not hold it.
    ``far_s``: time of a row at a random place that the cache does not hold.
    ``spread``: factor, usually 1, on all times of the family; its range is what remains between machines and kernels.
    ``measured``: sizes between which these numbers were fitted; other sizes are extrapolated.
    ``flop_per_s``: rates of its products for dtypes in which they are not at ``compute`` of the device's peak, as of a
    kernel that widens them to another dtype.
    """

    compute: Quantity
    memory: Quantity
    tile: int | None = None
    columns: int | None = None
    launch_s: Quantity | None = None
    exposed: Quantity | None = None
    ramp: Quantity | None = None
    uneven: Quantity | None = None
    fill: Quantity | None = None
    cached: Quantity | None = None
    line_s: Quantity | None = None
    left_bytes_per_s: Quantity | None = None
    right_bytes_per_s: Quantity | None = None
    apart_bytes_per_s: Quantity | None = None
    result_bytes_per_s: Quantity | None = None
    again_bytes_per_s: Quantity | None = None
    scores_per_s: Quantity | None = None
    between_bytes_per_s: Quantity | None = None
    far_s: Quantity | None = None
    spread: Quantity | None = None
    measured: Measured | None = None
    flop_per_s: Peaks | None = None


class Kernels(Table[Kernel], frozen=True):
    """One `Kernel` per kernel family.

    The last six may be left out; `STAND_INS` names the family whose numbers are then taken.
    """

    gemm: Kernel
    attention: Kernel
    attention_backward: Kernel
    elementwise: Kernel
    reduction: Kernel
    gather: Kernel
    copy: Kernel
    scan: Kernel | None = None
    recurrence: Kernel | None = None
    fft: Kernel | None = None
    sort: Kernel | None = None
    convolution: Kernel | None = None
    attention_decode: Kernel | None = None

    def taken(self, family: str) -> Kernel:
        """A family's numbers, or those of the one that stands in for it."""
        return self[family if family in self else STAND_INS.get(family, family)]


STAND_INS = {
    "scan": "elementwise",
    "recurrence": "elementwise",
    "fft": "reduction",
    "sort": "gather",
    "convolution": "elementwise",
    "attention_decode": "attention",
}
"""For kernel families that a profile says nothing of: the nearest one, which moves memory in the same way."""


class Device(Noun, frozen=True):
    """One accelerator, or one core of a CPU.

    ``memory_bytes`` capacity, of which ``reserved_bytes`` (driver context, communication buffers) are not for
    tensors; ``memory_bytes_per_s`` bandwidth to it; ``vector_flop_per_s`` fp32 rate outside the matrix units;
    ``special_op_per_s`` rate of exp, log, sin and the like; ``launch_s`` time of a kernel that does nothing;
    ``host_launch_s`` time in which the host hands one kernel over, ahead of the device: a step takes at least so long
    for each of its kernels and collectives, but for decoding, whose kernels engines record once and replay;
    ``step_s`` time of one step of a loop inside a kernel whose next step waits for it (a scan).
    ``cache_bytes`` of what a kernel just before wrote are read again at ``cache_bytes_per_s`` (the last-level cache);
    a kernel with a ``cached`` of its own has that instead.
    ``fuses``: whether its libraries have the kernels that mixers fuse (chunks of a recurrence, the update of a state);
    else each part runs as a kernel of its own.
    ``single``: kernels that were measured by themselves, by ``Primitive.kernel``; others have their family's numbers.
    ``compute`` of these is of ``vector_flop_per_s`` for special functions as well.
    """

    name: str
    memory_bytes: Quantity
    memory_bytes_per_s: Quantity
    reserved_bytes: Quantity
    peak_flop_per_s: Peaks
    vector_flop_per_s: Quantity
    special_op_per_s: Quantity
    launch_s: Quantity
    step_s: Quantity
    kernels: Kernels
    cache_bytes: Quantity | None = None
    cache_bytes_per_s: Quantity | None = None
    host_launch_s: Quantity | None = None
    fuses: bool = True
    single: dict[str, Kernel] = {}

    def __hash__(self) -> int:
        return hash((self.name, self.kernels, tuple(self.single.items())))

    @property
    def attention_tile(self) -> Tile:
        """How the fused attention kernel goes through scores."""
        kernel = self.kernels.attention
        return Columns(kernel.columns, kernel.tile or 1) if kernel.columns else kernel.tile or 1

    def kernel(self, family: str, name: str = "") -> Kernel:
        """The numbers of a kernel: its own where it has some, or its family's."""
        return self.single.get(name) or self.kernels.taken(family)

    def peak(self, dtype: str) -> Quantity:
        """Dense peak in FLOP/s for ``dtype`` ("bf16", "fp32", ...).

        Raises `UnknownNameError` if the device states none for it.
        """
        known = [key.removesuffix("_dense") for key in self.peak_flop_per_s]
        if dtype not in known:
            raise UnknownNameError(f"dense rate of {self.name}", dtype, known)
        return self.peak_flop_per_s[f"{dtype}_dense"]


class Collectives(Table[Quantity], frozen=True):
    """Bus bandwidth in bytes/s of single collectives where it differs from the link's own."""

    all_to_all: Quantity | None = None
    ring_shift: Quantity | None = None
    all_gather: Quantity | None = None
    reduce_scatter: Quantity | None = None
    all_reduce: Quantity | None = None


class Link(Noun, frozen=True):
    """One level of the network; a profile lists them innermost first.

    ``devices``: how many devices one unit of this level joins (a node: 8); 0 means any number, and is allowed
    for the outermost only.
    ``start_s``: time of a message or collective beside its steps.
    ``latency_s``: time of one message, or of one step of a collective, that carries nothing.
    ``small_latency_s`` and ``small_cost``: the same, and the bytes on the wire for one of the message, by the protocol
    for small messages, where there is one; whichever protocol is faster is used.
    ``own_bytes_per_s``: how fast a collective copies the part of its result that is a device's own.
    ``switch_bytes_per_s``: how fast one device sends what the switch sums up for an all-reduce, where it does; the
    faster of this and of a ring is used.
    ``bytes_per_s``: what one device sends, one way, while its peers do the same; this is nccl-tests' bus
    bandwidth.
    ``peak_bytes_per_s``: line rate of one device, which nothing may beat. Only all-reduce may show more bus
    bandwidth than this, where the switch does the sum (at most twice).
    ``shared_bytes_per_s``: what all devices of one unit send together at most, where they share one medium
    (host memory on a machine without peer-to-peer transfers). Innermost level only.
    ``contention``: part of its time by which communication delays computation beside it, as it takes some of the
    device's units and of its memory's bandwidth.
    ``uplink_bytes_per_s``: what leaves one unit of the next inner level through this one in total, where its
    devices share one way out (a host with a single network card).
    """

    name: str
    latency_s: Quantity
    bytes_per_s: Quantity
    peak_bytes_per_s: Quantity
    devices: int = 0
    shared_bytes_per_s: Quantity | None = None
    uplink_bytes_per_s: Quantity | None = None
    collectives: Collectives = Collectives()
    start_s: Quantity | None = None
    own_bytes_per_s: Quantity | None = None
    switch_bytes_per_s: Quantity | None = None
    small_latency_s: Quantity | None = None
    small_cost: Quantity | None = None
    contention: Quantity | None = None
    spread: Quantity | None = None
    measured: Measured | None = None

    def bandwidth(self, collective: str) -> Quantity:
        """Bus bandwidth in bytes/s for ``collective``: its own entry, else the link's ``bytes_per_s``."""
        return dict(self.collectives.items()).get(collective, self.bytes_per_s)


class Host(Noun, frozen=True):
    """Host memory per node in bytes, and what one device moves to or from it in bytes/s (for offload)."""

    memory_bytes: Quantity
    bytes_per_s: Quantity


class Composition(Noun, frozen=True):
    """Factors, usually 1, on the time of whole runs; their ranges are what kernels and messages do not tell.

    ``layer``: of a layer, or of a mixer alone; ``model``: of a step of a whole model.
    """

    layer: Quantity
    model: Quantity


class Correlation(Noun, frozen=True):
    """Correlation of the errors of numbers that were fitted together.

    ``of``: their keys, such as ``"device.kernels.gemm.compute"``; ``matrix`` in this order, on a logarithmic scale.

    Raises `InputError` for what is no correlation matrix of as many numbers.
    """

    of: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        size, rows = len(self.of), self.matrix
        if len(set(self.of)) != size:
            raise InputError("of", ", ".join(self.of), "must name each number once")
        if len(rows) != size or any(len(row) != size for row in rows):
            raise InputError("matrix", Plain(f"{len(rows)} rows"), f"must be {size} x {size}, as `of` names numbers")
        matrix = np.array(rows).reshape(size, size)
        if not (np.isfinite(matrix).all() and np.allclose(matrix, matrix.T) and np.allclose(np.diag(matrix), 1)):
            raise InputError("matrix", Plain("it"), "must be symmetric with ones on its diagonal")
        if size and np.linalg.eigvalsh(matrix)[0] < -1e-3:
            raise InputError("matrix", Plain("it"), "must have no negative eigenvalue")


class Profile(Noun, frozen=True):
    """A machine: what `load_profile` returns. ``calibrated`` says whether it was fitted to measured runs.

    ``like``: the profile from which its device has the numbers that its own file does not say.

    Raises `InputError` naming the key for a number outside its plausible range (`ALLOWED`) or links that
    contradict each other.
    """

    schema: Literal[1]
    name: str
    title: str
    calibrated: bool
    device: Device
    links: tuple[Link, ...]
    host: Host
    correlations: tuple[Correlation, ...] = ()
    composition: Composition | None = None
    like: Like | None = None

    def __post_init__(self) -> None:
        _check_ranges(self, "")
        _check_correlations(self)
        if not self.device.peak_flop_per_s.keys():
            raise InputError("device.peak_flop_per_s", {}, "must hold at least one rate, e.g. fp32_dense")
        for family, kernel in self.device.kernels.items():
            for key in ("tile", "columns"):
                tokens = getattr(kernel, key)
                if tokens is not None and not 1 <= tokens <= 4096:
                    raise InputError(f"device.kernels.{family}.{key}", tokens, "must be 1 to 4096 tokens")
        _check_links(self.links)


def _check_ranges(noun: msgspec.Struct | tuple[object, ...] | dict[str, Kernel], path: str) -> None:
    """Hold every `Quantity` below ``noun`` against `ALLOWED`."""
    children: list[tuple[str, str, object]]
    if isinstance(noun, dict):
        children = [(f"{path}.{key}", key, child) for key, child in noun.items()]
    elif isinstance(noun, tuple):
        children = [(f"{path}[{index}]", "", child) for index, child in enumerate(noun)]
    else:
        dot = f"{path}." if path else ""
        children = [(f"{dot}{key}", key, getattr(noun, key)) for key in noun.__struct_fields__]
    for child_path, key, child in children:
        if isinstance(child, Quantity):
            _check_range(child, child_path, key)
        elif isinstance(child, (Noun, tuple)):
            _check_once(child, child_path)
        elif isinstance(child, dict):
            _check_ranges(child, child_path)


@lru_cache(maxsize=4096)
def _check_once(noun: Noun | tuple[object, ...], path: str) -> None:
    """As ``_check_ranges``: of a profile with one number moved, the others need not be looked at again."""
    _check_ranges(noun, path)


def _check_range(quantity: Quantity, path: str, key: str) -> None:
    for part in ("value", "low", "high"):
        number = getattr(quantity, part)
        fault = None if number is None else ALLOWED[key].fault(number)
        if fault:
            raise InputError(f"{path}.{part}", Plain(f"{number:g}"), fault, f"for example {ALLOWED[key].example}")


def _check_correlations(profile: Profile) -> None:
    for index, correlation in enumerate(profile.correlations):
        for key in correlation.of:
            if not isinstance(look_up(profile, key), Quantity):
                raise InputError(f"correlations[{index}].of", key, "must be the key of a number of this profile")


def look_up(noun: object, path: str) -> object:
    """What stands at a path such as ``links[0].latency_s``; ``None`` where nothing does."""
    for part in _parts(path):
        if isinstance(noun, tuple):
            noun = noun[int(part)] if part.isdigit() and int(part) < len(noun) else None
        elif isinstance(noun, dict):
            noun = noun.get(part)
        else:
            noun = getattr(noun, part, None)
    return noun


def placed(profile: Profile, quantities: Mapping[str, Quantity | None]) -> Profile:
    """The profile with other numbers at some paths, where it may have one.

    Raises:
        InputError: for a number that may not stand there.
    """
    tree: dict[str, Any] = {}
    for path, quantity in quantities.items():
        *above, last = _parts(path)
        inside = tree
        for part in above:
            inside = inside.setdefault(part, {})
        inside[last] = quantity
    found: Profile = _placed(profile, tree)
    return found


def _placed(noun: Any, tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    if isinstance(noun, tuple):
        return tuple(_placed(child, tree.get(str(place), child)) for place, child in enumerate(noun))
    if isinstance(noun, dict):
        return noun | {key: _placed(noun.get(key), inside) for key, inside in tree.items()}
    return msgspec.structs.replace(noun, **{key: _placed(getattr(noun, key), inside) for key, inside in tree.items()})


@cache
def _parts(path: str) -> list[str]:
    return re.findall(r"[^.\[\]]+", path)


def _check_links(links: tuple[Link, ...]) -> None:
    inner = 1
    for index, link in enumerate(links):
        path = f"links[{index}]"
        unlimited = link.devices == 0 and index == len(links) - 1
        if not unlimited and (link.devices < 1 or link.devices % inner or link.devices > 10**9):
            rule = f"must be at least 1 and a multiple of the level inside it, {inner}"
            raise InputError(f"{path}.devices", link.devices, rule, "0 (any number) only in the last level")
        inner = link.devices or inner
        _check_peak(link, path)
        misplaced = "uplink_bytes_per_s" if index == 0 else "shared_bytes_per_s"
        if getattr(link, misplaced) is not None:
            rule = "an innermost level shares a medium, an outer one the uplinks of the units inside it"
            other = "shared_bytes_per_s" if index == 0 else "uplink_bytes_per_s"
            raise InputError(f"{path}.{misplaced}.value", getattr(link, misplaced).value, rule, f"use {other}")


def _check_peak(link: Link, path: str) -> None:
    """No achieved rate above the line rate; twice that for an all-reduce, which a switch can halve."""
    rates = [("bytes_per_s", link.bytes_per_s, 1.0)]
    for name, quantity in link.collectives.items():
        rates.append((f"collectives.{name}", quantity, 2.0 if name == "all_reduce" else 1.0))
    for name, quantity, factor in rates:
        ceiling = factor * link.peak_bytes_per_s.value
        if quantity.hi > ceiling:
            part = "value" if quantity.value > ceiling else "high"
            rule = f"must be at most {ceiling:g}, from peak_bytes_per_s"
            raise InputError(f"{path}.{name}.{part}", Plain(f"{quantity.hi:g}"), rule)


def profiles() -> list[str]:
    """Names of the built-in profiles: the TOML files in ``costmodel/hardware/profiles``."""
    folder = resources.files("costmodel.hardware") / "profiles"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def load_profile(name_or_path: str | Path) -> Profile:
    """Read a built-in profile by name, or a user's by a path that ends in ``.toml``.

    Raises `UnknownNameError` for a name that is not built in, and `InputError` naming file, key, rule and
    remedy for a file that cannot be read or used.
    """
    return _loaded(str(name_or_path))


def _loaded(text: str, above: tuple[str, ...] = ()) -> Profile:
    if text.endswith(".toml"):
        return read_profile(read_bytes(text), text, above)
    if text not in profiles():
        raise UnknownNameError("hardware profile", text, profiles())
    return _built_in(text)


@cache
def _built_in(name: str) -> Profile:
    file = resources.files("costmodel.hardware") / "profiles" / f"{name}.toml"
    return read_profile(file.read_bytes(), file.name)


def read_profile(data: bytes, file: str, above: tuple[str, ...] = ()) -> Profile:
    """The profile in the bytes of a file, with what it takes from others.

    Args:
        file: its path, from whose folder the paths of other files count; also for messages.
        above: files that take from this one.

    Raises:
        InputError: as `load_profile` does, and for a file that takes from itself.
    """

    def load(name: str, key: str) -> dict[str, Any]:
        path = str(Path(file).parent / name) if name.endswith(".toml") else name
        if os.path.abspath(path) in (found := [*above, os.path.abspath(file)]):
            raise InputError(f"{file}: {key}", name, f"leads back to itself: {' -> '.join([*found, name])}")
        try:
            other = _loaded(path, tuple(found))
        except UnknownNameError as error:
            raise InputError(f"{file}: {key}", name, error.rule, error.remedy) from None
        plain: dict[str, Any] = msgspec.to_builtins(other)
        return plain

    return converted(completed(parsed(data, file), file, load), Profile, file)
