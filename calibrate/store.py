"""Measurements on disk: JSON Lines to which whole lines are added, each on the disk before the next is taken.

A line is ``{"crc":"...","record":{...}}``; the sum is over the bytes of the record. A record is the environment of a
session, or something measured in it, which names its environment. A process that is killed leaves at most the last
line torn, which the next one cuts off; a line that is damaged otherwise is told by its number and passed over.
"""

from __future__ import annotations

import lzma
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import msgspec

from calibrate.measurement import Measurement
from calibrate.method import Timing
from costmodel.errors import InputError

#: Which way bytes go between a device and its host.
Way = Literal["to the device", "from the device", "both ways"]

#: How the name of a file ends that is compressed, and only read.
COMPRESSED = ".xz"


class Record(msgspec.Struct, frozen=True, kw_only=True, tag_field="record", forbid_unknown_fields=True):
    """Base of what a line holds."""

    schema: Literal[1] = 1


class Environment(Record, frozen=True, tag="environment"):
    """Where and how a session measured; other records name it by ``id``.

    Attributes:
        id: of the session, different for each.
        device: what the device calls itself, and how many threads or which of several.
        kind: ``"cpu"`` or ``"cuda"``.
        threads: that kernels run on (CPU).
        memory_bytes: of the device.
        cache_bytes: of its last-level cache.
        clock_hz: as the system states it; 0 where it does not.
        driver, torch, python, system: versions.
        timer: the clock that kernels were timed by.
        date: ISO, with the time.
        command: as it was given.
    """

    id: str
    device: str
    kind: Literal["cpu", "cuda"]
    threads: int
    memory_bytes: int
    cache_bytes: int
    clock_hz: float
    driver: str
    torch: str
    python: str
    system: str
    timer: str
    date: str
    command: str

    @property
    def machine(self) -> tuple[str, int, str]:
        """What must be the same for measurements to belong together."""
        return self.device, self.threads, self.torch


class Run(Record, frozen=True, tag="run"):
    """One kernel or collective, and every sample that was taken of it, ``at_s`` after the start of its session."""

    environment: str
    at_s: float
    measurement: Measurement
    timing: Timing


class Checked(Record, frozen=True, tag="drift"):
    """The reference kernel, timed again: ``ratio`` to its first timing in this session, ``at_s`` after its start."""

    environment: str
    at_s: float
    ratio: float
    timing: Timing


class Beside(Record, frozen=True, tag="overlap"):
    """Communication and computation alone, and both started together: seconds, on the slower rank."""

    environment: str
    at_s: float
    what: str
    bytes: int
    communication_s: float
    computation_s: float
    both_s: float

    @property
    def hidden(self) -> float:
        """Part of the shorter of both that the longer hides; below 0 where they slow each other."""
        shorter, longer = sorted((self.communication_s, self.computation_s))
        return 1 - (self.both_s - longer) / shorter


class Copied(Record, frozen=True, tag="host copy"):
    """Bytes copied between the device and the host's memory: seconds of one copy, of one each way for both ways.

    Attributes:
        pinned: whether the host's pages stay where they are, so that the device copies by itself.
    """

    environment: str
    at_s: float
    way: Way
    pinned: bool
    bytes: int
    timing: Timing


class Launched(Record, frozen=True, tag="host launch"):
    """The smallest kernel handed to the device again and again, on the host's clock."""

    environment: str
    at_s: float
    timing: Timing


Entry = Environment | Run | Checked | Beside | Copied | Launched


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    crc: str
    record: msgspec.Raw


_ENCODER = msgspec.json.Encoder()
_LINES = msgspec.json.Decoder(_Line)
_RECORDS: msgspec.json.Decoder[Entry] = msgspec.json.Decoder(Entry)


def written(record: Entry) -> bytes:
    """The line of a record, with its end."""
    text = _ENCODER.encode(record)
    return _ENCODER.encode(_Line(f"{zlib.crc32(text):08x}", msgspec.Raw(text))) + b"\n"


def parsed(line: bytes) -> Entry:
    """The record of a line.

    Raises:
        ValueError: for a damaged line, saying what is wrong.
    """
    found = _LINES.decode(line)
    if f"{zlib.crc32(bytes(found.record)):08x}" != found.crc:
        raise ValueError("its checksum does not match")
    return _RECORDS.decode(found.record)


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
        damaged: lines that cannot be used, by number, and why.
        torn: bytes after the last whole line.
    """

    environments: Mapping[str, Environment] = field(default_factory=dict)
    runs: tuple[Run, ...] = ()
    drift: tuple[Checked, ...] = ()
    overlaps: tuple[Beside, ...] = ()
    copies: tuple[Copied, ...] = ()
    launches: tuple[Launched, ...] = ()
    damaged: Mapping[int, str] = field(default_factory=dict)
    torn: int = 0

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """Of all shapes: on a CPU the fastest sample of all runs, which nothing disturbed; elsewhere the last run's."""
        latest: dict[str, Measurement] = {}
        for run in self.runs:
            name, row = key(run.measurement), run.measurement
            if self.environments[run.environment].kind == "cpu":
                fastest = min(run.timing.samples)
                row = replace(row, seconds=min(fastest, latest[name].seconds if name in latest else fastest))
            latest[name] = row
        return tuple(latest.values())

    @property
    def agreement(self) -> tuple[float, ...]:
        """Of each shape that was measured several times: how far its second fastest run is above the fastest."""
        by_shape: dict[str, list[float]] = {}
        for run in self.runs:
            by_shape.setdefault(key(run.measurement), []).append(min(run.timing.samples))
        first_two = (sorted(runs)[:2] for runs in by_shape.values() if len(runs) > 1)
        return tuple(second / first - 1 for first, second in first_two)

    @property
    def spent_s(self) -> float:
        """Seconds of measuring in all sessions."""
        ends = dict.fromkeys(self.environments, 0.0)
        for record in (*self.runs, *self.drift, *self.overlaps, *self.copies, *self.launches):
            ends[record.environment] = max(ends[record.environment], record.at_s)
        return sum(ends.values())


def key(measurement: Measurement) -> str:
    """What was measured: two runs with the same key are of the same shape."""
    sizes = " ".join(f"{name}={size:g}" for name, size in sorted(measurement.sizes.items()))
    return f"{measurement.kernel} {measurement.dtype} {sizes}"


def read(path: Path) -> Contents:
    """Everything in a file that is whole; nothing for a file that does not exist.

    Raises:
        InputError: for a file that cannot be read, or without a single line that holds a record.
    """
    try:
        data = path.read_bytes()
        data = lzma.decompress(data) if path.suffix == COMPRESSED else data
    except FileNotFoundError:
        return Contents()
    except (OSError, lzma.LZMAError) as error:
        raise InputError("measurements", str(path), f"cannot be read: {getattr(error, 'strerror', error)}") from None
    *lines, last = data.split(b"\n")
    records, damaged = _records(lines)
    if damaged and not records:
        raise InputError(f"{path}, line 1", lines[0][:40].decode(errors="replace"), f"no measurement: {damaged[1]}")
    return _contents(records, damaged, len(last))


def _records(lines: Sequence[bytes]) -> tuple[dict[int, Entry], dict[int, str]]:
    records, damaged = {}, {}
    for number, line in enumerate(lines, start=1):
        try:
            records[number] = parsed(line)
        except ValueError as error:  # msgspec's errors are among these
            damaged[number] = str(error)
    return records, damaged


def _contents(records: Mapping[int, Entry], damaged: dict[int, str], torn: int) -> Contents:
    environments = {record.id: record for record in records.values() if isinstance(record, Environment)}
    held: dict[type[Entry], list[Any]] = {kind: [] for kind in (Run, Checked, Beside, Copied, Launched)}
    for number, record in records.items():
        if isinstance(record, Environment):
            continue
        if record.environment in environments:
            held[type(record)].append(record)
        else:
            damaged[number] = f"it names the environment '{record.environment}', which no line before it describes"
    return Contents(environments, *(tuple(each) for each in held.values()), dict(sorted(damaged.items())), torn)


class Store:
    """A file that one process adds lines to.

    Attributes:
        found: what it held when it was opened.

    Raises:
        InputError: for a file that cannot be read or written, that another process is adding to, or that holds runs of
            another machine.
    """

    def __init__(self, path: Path, environment: Environment) -> None:
        if path.suffix == COMPRESSED:
            raise InputError("--into", str(path), "is a compressed file, which is only read", "give another name")
        self.found = read(path)
        for other in self.found.environments.values():
            if other.machine != environment.machine:
                held = f"runs of {other.device} ({other.threads} threads, torch {other.torch})"
                raise InputError("--into", str(path), f"it holds {held}", "give another file for this machine")
        try:
            self._file = path.open("ab")
        except OSError as error:
            raise InputError("--into", str(path), f"cannot be written: {error.strerror}") from None
        self._claim(path)
        if self.found.torn:
            self._file.truncate(path.stat().st_size - self.found.torn)
        self.add(environment)

    def _claim(self, path: Path) -> None:
        try:
            import fcntl
        except ImportError:  # no such thing on this system: then nothing guards against a second process
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise InputError("--into", str(path), "another process is adding to it", "wait for it to end") from None

    def add(self, record: Entry) -> None:
        """One more line; it is on the disk when this returns."""
        self._file.write(written(record))
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
