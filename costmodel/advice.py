"""When nothing fits, or to know how far one is from that: how much is missing, and what would change it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from costmodel.candidates import Choices, Meshes, arranged, meshes
from costmodel.evaluation import Group
from costmodel.hardware.cluster import MAX_DEVICES, Cluster
from costmodel.plan import Plan, Ranking

#: Clusters up to this many devices are searched for one that is large enough.
LARGEST_CLUSTER = 4096

#: How far from the number of devices a valid number is looked for.
FAR = 256


@dataclass(frozen=True)
class Change:
    """Something that would leave more memory: the least that a plan would then need, and whether that fits."""

    what: str
    bytes: float
    capacity: float
    note: str = ""

    @property
    def fits(self) -> bool:
        return self.bytes <= self.capacity


@dataclass(frozen=True)
class Advice:
    """What a user should know who asked for more than the cluster holds.

    Attributes:
        nearest: the plan that needs the least memory.
        missing: bytes a device by which it does not fit.
        longest: tokens of the longest sequence that some plan would hold, and that plan.
        devices: the smallest number of devices of this profile that would hold the workload, if any is.
    """

    nearest: Plan
    missing: float
    longest: int
    longest_plan: Plan
    devices: int | None
    changes: tuple[Change, ...]


def advise(ranking: Ranking) -> Advice:
    """Advice for a ranking in which no plan fits."""
    least = int(np.argmin(ranking.bytes))
    longest, where = ranking.longest_of_all
    return Advice(
        ranking.plan(least),
        float(ranking.bytes[least]) - ranking.capacity,
        longest,
        ranking.plan(where),
        smallest_cluster(ranking),
        tuple(_changes(ranking)),
    )


def smallest_cluster(ranking: Ranking) -> int | None:
    """The smallest number of devices, a power of two times 1 or 3, on which some plan fits."""
    links = ranking.cluster.profile.links
    limit = min(LARGEST_CLUSTER, (links[-1].devices or MAX_DEVICES) if links else 1)
    counts = sorted({f * 2**k for f in (1, 3) for k in range(13) if ranking.cluster.devices < f * 2**k <= limit})
    if not counts:
        return None
    every = reduce(Meshes.joined, [meshes(count) for count in counts])
    evaluator = ranking.groups[0].evaluator  # memory does not depend on the number of devices
    fitting = [limit + 1]
    for arrangement, mesh in arranged(ranking.subject, ranking.workload, every, None, {}):
        group = Group(evaluator, arrangement, Choices.of(mesh, evaluator.train))
        used = np.sum(list(group.bytes().values()), axis=0)
        devices = np.prod(list(group.choices.mesh.sizes.values()), axis=0)
        fitting += devices[used <= ranking.capacity].tolist()
    return int(min(fitting)) if min(fitting) <= limit else None


def _changes(ranking: Ranking) -> Iterator[Change]:
    """What the same devices could do otherwise."""
    needed, cache = ranking.bytes, ranking.column("cache")
    if not cache.any():
        return
    width = ranking.workload.cache_width
    if width > 1:
        yield Change("8-bit KV cache", float((needed - cache * (1 - 1 / width)).min()), ranking.capacity)
    host = ranking.cluster.profile.host
    least = int(np.argmin(needed - cache))
    share = host.memory_bytes.value / ranking.cluster.devices_per_node
    held = float(cache[least])
    seconds = held / host.bytes_per_s.value
    room = "" if held <= share else f"; but the host has only {share / 1e9:.1f} GB for each device"
    yield Change(
        "KV cache offloaded to host memory",
        float(needed[least] - held) if held <= share else float("inf"),
        ranking.capacity,
        f"{held / 1e9:.1f} GB a device, {seconds:.1f} s over the host link{room}",
    )


def valid_device_counts(ranking: Ranking, wanted: int = 2) -> list[int]:
    """Numbers of devices near the asked one for which some plan is valid, nearest first."""
    asked, links = ranking.cluster.devices, ranking.cluster.profile.links
    limit = (links[-1].devices or MAX_DEVICES) if links else 1
    near = (count for distance in range(1, FAR + 1) for count in (asked + distance, asked - distance))
    found: list[int] = []
    for count in near:
        if len(found) < wanted and 1 <= count <= limit:
            other = replace(ranking, cluster=Cluster(ranking.cluster.profile, count))
            if rank_is_possible(other):
                found.append(count)
    return found


def rank_is_possible(ranking: Ranking) -> bool:
    """Whether some plan is valid on a ranking's cluster."""
    every = meshes(ranking.cluster.devices)
    return any(True for _ in arranged(ranking.subject, ranking.workload, every, None, {}))
