"""Many devices of one profile, and what a group of them gets out of the links between them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from costmodel.errors import InputError, UnknownNameError
from costmodel.hardware.profile import Collectives, Link, Profile, load_profile, profiles
from costmodel.hardware.quantity import Quantity

MAX_DEVICES = 10_000_000
"""More devices than this in one cluster are taken for a slip."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
End = Literal["value", "lo", "hi"]


@dataclass(frozen=True)
class Cluster:
    """``devices`` devices of ``profile``, ranks placed contiguously: rank r is in node r // devices_per_node.

    A *group* is the set of ranks that communicate along one axis of a mesh: ``size`` ranks whose numbers are
    ``stride`` apart. All groups of an axis are alike and communicate at the same time.

    Raises `InputError` for a number of devices that is not 1 to what the outermost link level joins.
    """

    profile: Profile
    devices: int

    def __post_init__(self) -> None:
        name, links = self.profile.name, self.profile.links
        limit = (links[-1].devices or MAX_DEVICES) if links else 1
        if not 1 <= self.devices <= limit:
            raise InputError("devices", self.devices, f"must be 1 to {limit:,} for {name}")

    def __str__(self) -> str:
        return f"{self.devices}x{self.profile.name}"

    @property
    def devices_per_node(self) -> int:
        """Devices that the innermost link level joins, at most those of the cluster."""
        links = self.profile.links
        return min(self.devices, links[0].devices or self.devices) if links else 1

    @property
    def nodes(self) -> int:
        """Number of nodes (units of the innermost link level), the last of which may be partly used."""
        return -(-self.devices // self.devices_per_node)

    def level_of(self, size: ArrayLike, stride: ArrayLike = 1) -> Ints:
        """Index into ``profile.links`` of the innermost level that contains every group, elementwise.

        A level of n devices contains them when n is a multiple of size * stride, the span of aligned ranks
        that a group is spread over, or when the whole cluster fits in one unit of the level.

        >>> parse_cluster("16xh100").level_of([2, 8, 2, 16], [1, 1, 8, 1])
        array([0, 0, 1, 1])
        """
        sizes = np.asarray(size, np.int64)
        span = np.where(sizes == 1, 1, sizes * np.asarray(stride, np.int64))
        level = np.zeros(span.shape, np.int64)
        for link in self.profile.links[:-1]:
            inside = (self.devices <= link.devices) | (link.devices % span == 0)
            level += ~inside
            if self.devices <= link.devices:
                break
        return level

    def link_arrays(
        self, collective: str, size: ArrayLike, stride: ArrayLike = 1
    ) -> tuple[Floats, Floats, Floats, Floats]:
        """Latency per step in s and bus bandwidth per device in bytes/s, its low and its high, elementwise.

        A group inside the innermost level has that level's bandwidth, or its share of a medium that all
        devices of the unit use at once. A group that crosses outer levels has the least of every level up to
        its own. With m of its members in one inner unit, all-gather, reduce-scatter and all-reduce leave the
        unit on m devices at once (one ring starting at each), so they run at m times the outer rate of one
        device; in an all-to-all only the part (size - m) / (size - 1) of the traffic leaves; a ring shift
        leaves on one device. The groups that leave a unit share its ``uplink_bytes_per_s``, where it has one.
        Latency is ``latency``'s.

        ``collective`` is a key of `Collectives`; another raises `UnknownNameError`.
        """
        value, low, high = (self.bandwidth(collective, size, stride, end) for end in get_args(End))
        return self.latency(collective, size, stride), value, low, high

    def latency(self, collective: str, size: ArrayLike, stride: ArrayLike = 1) -> Floats:
        """Seconds of a step that carries nothing, elementwise, as a mean over the steps of a collective.

        Of the hops round a ring, one in m leaves a unit that m of its members are in (NCCL src/graph/tuning.cc adds
        up hops in the same way); of the messages of an all-to-all, those to members in other units; a ring shift is as
        late as its last message.
        """
        sizes, strides = np.broadcast_arrays(np.asarray(size, np.int64), np.asarray(stride, np.int64))
        links = self.profile.links
        level = self.level_of(sizes, strides)
        seconds = np.full(sizes.shape, links[0].latency_s.value if links else 0.0)
        for inner, outer in pairwise(links):
            leaving = _leaving(inner.devices, collective, sizes, strides)
            crossing = seconds * (1 - leaving) + outer.latency_s.value * leaving
            seconds = np.where(level >= links.index(outer), crossing, seconds)
        return seconds

    def tree_latency(self, size: ArrayLike, stride: ArrayLike = 1) -> Floats:
        """Seconds of an all-reduce that carries nothing, along a tree: chains within nodes, binary between them.

        NCCL src/graph/tuning.cc: 2 ((ranks of a node - 1) latency within + log2(nodes) latency between).
        """
        sizes, strides = np.broadcast_arrays(np.asarray(size, np.int64), np.asarray(stride, np.int64))
        links = self.profile.links
        level = self.level_of(sizes, strides)
        inside = [_members(link.devices, sizes, strides) for link in links[:-1]]
        together = [np.where(level == index, sizes, members) for index, members in enumerate([*inside, sizes])]
        seconds = 2 * (together[0] - 1) * (links[0].latency_s.value if links else 0.0)
        for index, (within, across) in enumerate(pairwise(together), 1):
            steps = 2 * np.ceil(np.log2(across / within)) * links[index].latency_s.value
            seconds = seconds + np.where(level >= index, steps, 0.0)
        return np.asarray(seconds, float)

    def bandwidth(self, collective: str, size: ArrayLike, stride: ArrayLike = 1, end: End = "value") -> Floats:
        """The bandwidth of ``link_arrays`` at one end of its range."""
        if collective not in Collectives.__struct_fields__:
            raise UnknownNameError("collective", collective, Collectives.__struct_fields__)
        sizes, strides = np.broadcast_arrays(np.asarray(size, np.int64), np.asarray(stride, np.int64))
        links = self.profile.links
        if not links:
            return np.full(sizes.shape, np.inf)
        level = self.level_of(sizes, strides)
        bandwidth = np.full(sizes.shape, self._inside(links[0], collective, end))
        for index in range(1, len(links)):
            crossing = _crossing(links[index], links[index - 1].devices, collective, sizes, strides, end)
            bandwidth = np.where(level >= index, np.minimum(bandwidth, crossing), bandwidth)
        return bandwidth

    def _inside(self, link: Link, collective: str, end: End) -> float:
        """Per-device bandwidth in the innermost level, all of its devices sending."""
        own = _end(link.bandwidth(collective), end)
        if link.shared_bytes_per_s is None:
            return own
        return min(own, _end(link.shared_bytes_per_s, end) / self.devices_per_node)


def _members(inner: int, size: Ints, stride: Ints) -> Ints:
    """How many of a group's members are in one unit of ``inner`` devices."""
    even = (size * stride % inner == 0) & (inner % stride == 0)
    return np.where(even, np.clip(inner // stride, 1, size), 1)


def _leaving(inner: int, collective: str, size: Ints, stride: Ints) -> Floats:
    """Part of a collective's steps that leave a unit of ``inner`` devices."""
    members = _members(inner, size, stride)
    if collective == "all_to_all":
        return np.asarray(np.maximum(size - members, 1) / np.maximum(size - 1, 1))
    return np.ones(size.shape) if collective == "ring_shift" else 1 / members


def _crossing(link: Link, inner: int, collective: str, size: Ints, stride: Ints, end: End) -> Floats:
    """Bus bandwidth that ``link`` allows groups that leave units of ``inner`` devices through it."""
    members = _members(inner, size, stride)
    groups = inner // members  # that leave one unit at the same time
    own = _end(link.bandwidth(collective), end)
    uplink = np.inf if link.uplink_bytes_per_s is None else _end(link.uplink_bytes_per_s, end)
    if collective == "all_to_all":
        return np.asarray(np.minimum(own, uplink / inner) / _leaving(inner, collective, size, stride))
    lanes = 1 if collective == "ring_shift" else members
    return np.asarray(np.minimum(own * lanes, uplink / groups))


def _end(quantity: Quantity, end: End) -> float:
    number: float = getattr(quantity, end)
    return number


def parse_cluster(text: str) -> Cluster:
    """Read ``"8xh100"``, ``"h100"`` (one device) or ``"8x./my.toml"``.

    Raises `InputError` for a count that is not a whole number of at least 1, and what `load_profile` and
    `Cluster` raise.

    >>> str(parse_cluster("4 x rtx4090"))
    '4xrtx4090'
    """
    found = re.fullmatch(r"\s*([-+.0-9][^xX×/]*)[xX×](.*)", text, re.DOTALL)
    count, name = (found[1].strip(), found[2].strip()) if found else ("1", text.strip())
    turned = re.fullmatch(r"(\w+?)\s*[xX×*]\s*([0-9]+)", name)
    if turned and turned[1] in profiles() and name not in profiles():
        raise InputError("cluster", text, "the number of devices comes first", f"write {turned[2]}x{turned[1]}")
    if not re.fullmatch(r"0*[0-9]{1,12}", count) or int(count[-12:]) < 1:
        rule = "the number of devices must be a whole number, at least 1"
        raise InputError("cluster", text, rule, f"write for example 8x{name or 'h100'}")
    if int(count[-12:]) > MAX_DEVICES:
        raise InputError("cluster", text, f"the number of devices must be at most {MAX_DEVICES:,}")
    return Cluster(load_profile(name), int(count[-12:]))
