"""A file of own measurements made as small as one can be that fits the same: the fastest sample of each shape on a CPU.

python -m calibrate.thin cpu.jsonl calibrate/data/cpu.jsonl.xz

How much runs of a shape differ, what other work interrupted, and in which folders files were, is not told any more.
"""

from __future__ import annotations

import lzma
import re
import sys
from dataclasses import replace
from pathlib import Path

import msgspec

from calibrate.method import Timing
from calibrate.store import Contents, Entry, Run, key, read, written

#: In a command, the folders before a file's name.
_FOLDERS = re.compile(r"\S*/(?=\S)")


def thinned(found: Contents) -> list[Entry]:
    """Environments, the fastest run of each shape with that sample alone, drift, and all others as they are."""
    fastest: dict[str, Run] = {}
    for run in found.runs:
        name, least = key(run.measurement), min(run.timing.samples)
        if name not in fastest or least < fastest[name].timing.seconds:
            row = replace(run.measurement, seconds=least)
            fastest[name] = msgspec.structs.replace(run, measurement=row, timing=_alone(least, run.timing.calls))
    drift = (
        msgspec.structs.replace(check, timing=_alone(check.timing.seconds, check.timing.calls)) for check in found.drift
    )
    environments = (
        msgspec.structs.replace(one, command=_FOLDERS.sub("", one.command)) for one in found.environments.values()
    )
    return [*environments, *fastest.values(), *drift, *found.overlaps, *found.copies, *found.launches]


def _alone(seconds: float, calls: int) -> Timing:
    return Timing(seconds, None, (seconds,), (), (), calls)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_bytes(lzma.compress(b"".join(map(written, thinned(read(source)))), preset=9))
