"""One measured run of one kernel or collective, and files of them."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from costmodel.errors import InputError
from costmodel.hardware.quantity import Plain

#: How ``seconds`` was had: stated or timed as such, or from a stated rate of arithmetic or of bytes.
QUANTITIES = ("time", "rate of arithmetic", "rate of bytes")

#: What a measurement is for: fitted, or kept for checking predictions of what is not one kernel family alone.
USES = ("fit", "check")


@dataclass(frozen=True)
class Measurement:
    """One run, whoever timed it.

    Attributes:
        device: the profile of the hardware, such as ``"rtx4090"``.
        kernel: what ran, a key of ``calibrate.cases.CASES``, which also says what sizes it has.
        implementation: what the source calls it (``"flash_attn2"``).
        dtype: of the operands (``"bf16"``).
        sizes: by name; masks are 0 or 1.
        seconds: of one call, on the device.
        quantity: one of ``QUANTITIES``.
        transport: how devices reach each other (``"nvlink"``, ``"host memory"``, ``"peer to peer"``); empty for one.
        source: whose run; rows of one source share its errors (card, clock, library, way of timing).
        url: where it is published; empty for an own run.
        date: of the run or of the publication, ISO; empty where it is not stated.
        command: what was run; empty where it is not stated.
        use: one of ``USES``.
        notes: what was inferred.

    Raises:
        InputError: for seconds or sizes that no run can have, and for an unknown ``quantity`` or ``use``.
    """

    device: str
    kernel: str
    implementation: str
    dtype: str
    sizes: Mapping[str, float]
    seconds: float
    quantity: str
    transport: str
    source: str
    url: str
    date: str
    command: str
    use: str
    notes: str

    def __hash__(self) -> int:
        return hash((self.kernel, self.dtype, tuple(self.sizes.items()), self.seconds, self.source))

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and 1e-9 <= self.seconds <= 1e6):
            raise InputError("seconds", Plain(f"{self.seconds:g}"), "must be 1e-9 to 1e6")
        for name, size in self.sizes.items():
            if not (math.isfinite(size) and size >= 0):
                raise InputError(f"sizes {name}", Plain(f"{size:g}"), "must be a finite number, at least 0")
        for field, allowed in (("quantity", QUANTITIES), ("use", USES)):
            if getattr(self, field) not in allowed:
                raise InputError(field, getattr(self, field), f"must be one of {', '.join(allowed)}")
        for field in ("device", "kernel", "source"):
            if not getattr(self, field).strip():
                raise InputError(field, getattr(self, field), "must not be empty")


COLUMNS = tuple(field.name for field in fields(Measurement))


def write_measurements(path: Path, measurements: Iterable[Measurement]) -> None:
    """One row each; ``read_measurements`` gives the same back."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for measurement in measurements:
            row = {name: getattr(measurement, name) for name in COLUMNS}
            row["sizes"] = " ".join(f"{name}={size:.12g}" for name, size in measurement.sizes.items())
            row["seconds"] = f"{measurement.seconds:.6g}"
            writer.writerow(row.values())


def read_measurements(path: Path) -> list[Measurement]:
    """The rows of a CSV file with a heading of ``COLUMNS``.

    Raises:
        InputError: for a file that cannot be read, and for a damaged row, by the number of its line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("measurements", str(path), f"cannot be read: {error}") from None
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    try:
        if tuple(next(reader, ())) != COLUMNS:
            raise InputError(f"{path}, line 1", Plain("the heading"), f"must be {','.join(COLUMNS)}")
        return [_parse(row, f"{path}, line {reader.line_num}") for row in reader]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}", Plain("the row"), f"is no CSV: {error}") from None


def _parse(row: list[str], where: str) -> Measurement:
    if len(row) != len(COLUMNS):
        raise InputError(where, Plain(f"{len(row)} columns"), f"must be {len(COLUMNS)}: {','.join(COLUMNS)}")
    values = dict(zip(COLUMNS, row, strict=True))
    seconds, sizes = values.pop("seconds"), values.pop("sizes")
    try:
        return Measurement(seconds=_number("seconds", seconds), sizes=parse_sizes(sizes), **values)  # type: ignore[arg-type]
    except InputError as error:
        raise InputError(f"{where}: {error.field}", error.value, error.rule, error.remedy) from None


def parse_sizes(text: str) -> dict[str, float]:
    """Sizes as they stand in a file.

    >>> parse_sizes("M=1 K=4096")
    {'M': 1.0, 'K': 4096.0}

    Raises:
        InputError: for what is not of this form, and for a size given twice.
    """
    sizes: dict[str, float] = {}
    for part in text.split():
        name, equals, number = part.partition("=")
        if not (name and equals) or name in sizes:
            raise InputError("sizes", text, "must be name=number, each name once", "for example 'M=1 K=4096 N=4096'")
        sizes[name] = _number(f"sizes {name}", number)
    return sizes


def _number(field: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(field, text, "must be a number") from None
