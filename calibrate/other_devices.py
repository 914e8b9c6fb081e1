"""How far off a device is that was measured, if it is predicted from the profile of another.

    python -m calibrate.other_devices

Every measured device is made a profile ``like`` another: of its own file it keeps what such a profile has to say
(sizes, peaks, line rates), the rest is from the other. Its published runs, which then nothing has seen, tell by how
much times differ more than the other profile's ranges say: `costmodel.hardware.like.FURTHER`. Profiles that ship as
``like`` others are held against what was published of their devices as they are.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np

from calibrate.block import BLOCKS, Block
from calibrate.composition import Missed, ends, held_out
from calibrate.measurement import Measurement, read_measurements
from calibrate.predictor import Predictor
from calibrate.published import DATA
from costmodel.hardware.decode import converted
from costmodel.hardware.like import FURTHER, completed, is_own
from costmodel.hardware.profile import Profile, load_profile, look_up, placed
from costmodel.hardware.quantity import Quantity
from costmodel.uncertainty import Uncertainty

Raw = dict[str, Any]

#: Measured devices, the one that each is predicted from, and whose die it has.
PAIRS = (
    ("h200", "h100", "same"),
    ("gb200", "b200", "same"),
    ("l40s", "rtx4090", "binned"),
    ("h100", "a100", "another"),
    ("b200", "h100", "another"),
    ("a100", "rtx4090", "another"),
)

#: Those of them that are joined by the same kind of link, and whether it is of the same generation.
LINKS = {"h200": "same", "h100": "another", "b200": "another"}

#: Shipped profiles that are like others and of whose devices runs were published.
SHIPPED = ("a100_pcie", "h100_pcie", "l40", "rtx6000_ada", "rtx3090", "rtx5090", "mi300x")

#: Last-level caches of devices whose own profile says none, as shares of an RTX 4090's: bytes, and bytes a second.
CACHES = {"l40s": (96 / 72, 142 / 128), "a100": (40 / 72, 108 * 1.41 / (128 * 2.52))}


@dataclass(frozen=True)
class Case:
    """Runs of one family of one device.

    Attributes:
        what: a key of ``FURTHER``.
        missed: each run against its prediction; the ends are those of the other profile's ranges alone.
    """

    device: str
    parent: str
    block: str
    what: str
    missed: tuple[Missed, ...]


def alike(child: Profile, parent: Profile, die: str) -> Profile:
    """What the profile of ``child`` would be if nothing had been measured on it."""
    raw: Raw = msgspec.to_builtins(child)
    device = _own(raw["device"]) | {"name": child.device.name}
    if parent.device.cache_bytes and not child.device.cache_bytes:
        held = msgspec.to_builtins(parent.device)
        keys = ("cache_bytes", "cache_bytes_per_s")
        device |= {key: _times(held[key], by) for key, by in zip(keys, CACHES[child.name], strict=True)}
    link = {key: raw["links"][0][key] for key in ("name", "devices", "peak_bytes_per_s")}
    generation = LINKS.get(child.name, "another")
    link["like"] = {"profile": parent.name, "link": parent.links[0].name, "generation": generation}
    said = {
        **{key: raw[key] for key in ("schema", "name", "title")},
        "calibrated": False,
        "like": {"profile": parent.name, "die": die},
        "device": device,
        "links": [link],
    }
    return converted(completed(said, child.name, lambda *_: msgspec.to_builtins(parent)), Profile, child.name)


def _own(noun: Raw) -> Raw:
    """What a profile that is like another has to say of a device."""
    found = {}
    for key, child in noun.items():
        kept = child if is_own(key) else _own(child) if isinstance(child, dict) and "source" not in child else None
        if kept:
            found[key] = kept
    return found


def _times(number: Raw, by: float) -> Raw:
    return number | {end: number[end] * by for end in ("value", "low", "high") if number[end] is not None}


def cases() -> list[Case]:
    """All devices, family by family.

    Raises:
        InputError: for measurements that cannot be read.
    """
    pairs = [(alike(load_profile(device), load_profile(parent), die), parent) for device, parent, die in PAIRS]
    shipped = [load_profile(name) for name in SHIPPED]
    pairs += [(profile, profile.like.profile) for profile in shipped if profile.like]
    return [case for profile, parent in pairs for case in _cases(profile, load_profile(parent))]


def _cases(profile: Profile, parent: Profile) -> Iterator[Case]:
    held = _unwidened(profile, parent)
    rows = read_measurements(DATA / f"{profile.name}.csv")
    for block in BLOCKS:
        chosen, what = block.chosen(rows), f"{profile.like.die} die" if profile.like else ""
        if block.name == "link":
            what = f"{LINKS[profile.name]} generation" if profile.name in LINKS else ""
        if chosen and what:
            yield Case(profile.name, parent.name, block.name, what, _missed(chosen, held, block))


def _unwidened(profile: Profile, parent: Profile) -> Profile:
    """The profile with the spreads of the one that it is like, as if it were the same machine."""
    families = [f"device.kernels.{name}" for name in profile.device.kernels]
    families += [f"device.single.{name}" for name in profile.device.single]
    changed = {f"{family}.spread": look_up(parent, f"{family}.spread") for family in (*families, "links[0]")}
    return placed(profile, {key: held if isinstance(held, Quantity) else None for key, held in changed.items()})


def _missed(rows: Sequence[Measurement], profile: Profile, block: Block) -> tuple[Missed, ...]:
    uncertain = Uncertainty.of(profile)
    predictor = Predictor(rows, profile)
    seconds = np.stack([predictor(moved) for _, moved in uncertain.moved])
    found = []
    for row, times in zip(rows, seconds.T, strict=True):
        low, high = uncertain.interval(times)
        by = math.log(row.seconds / times[0])
        found.append(Missed(f"{row.device} {block.name}", by, math.log(times[0] / low), math.log(high / times[0])))
    return tuple(found)


def further(found: Sequence[Case], what: str) -> float:
    """By what factor times differ further: 5 % are beyond either end, both of the runs and if families weigh alike."""
    by_family = [missed for case in found if case.what == what for missed in case.missed]
    by_run = [replace(missed, source="all") for missed in by_family]
    return max(end for runs in (by_family, by_run) for low, high in [ends(runs)] for end in (1 / low, high))


def main() -> None:
    found = cases()
    sys.stdout.writelines(map(_line, found))
    for what in FURTHER:
        missed = [missed for case in found if case.what == what for missed in case.missed]
        within = sum(inside for _, inside, _ in held_out(missed).values())
        sys.stdout.write(
            f"{what}: widened by {further(found, what):.3f}; {within} of {len(missed)} runs inside if widened by what "
            f"all but their own device and family need\n"
        )


def _line(case: Case) -> str:
    """How far off a family was, and how many runs are in their interval, with and without the widening."""
    ratios = np.exp([missed.by for missed in case.missed])
    factor = FURTHER[case.what]
    inside, alone = (sum(missed.inside((1 / by, by)) for missed in case.missed) for by in (factor, 1.0))
    return (
        f"{case.device:12} like {case.parent:12} {case.what:12} {case.block:24} {len(ratios):3} runs  "
        f"measured/predicted {np.median(ratios):5.2f} ({ratios.min():5.2f} to {ratios.max():5.2f})  "
        f"in 90%: {inside}, {alone} if not widened\n"
    )


if __name__ == "__main__":
    main()
