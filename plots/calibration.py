"""The figure of ``costmodel calibrate``: predicted against measured times of runs whose shapes were left out."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from costmodel.errors import InputError
from plots.style import COLOURS, FULL_WIDTH, paper

NUMBERS = ("measured_s", "predicted_s", "low_s", "high_s")


def is_calibration(table: Path) -> bool:
    """Whether a file begins as one that ``costmodel calibrate --csv`` writes."""
    try:
        with table.open(encoding="utf-8", newline="") as file:
            return {"block", *NUMBERS} <= set(next(csv.reader(file), ()))
    except OSError:
        return False


def draw(table: Path, output: Path) -> None:
    """Draw predictions over measurements, and their ratio with its 90 % interval.

    Raises:
        InputError: for a number that is none, or a format of picture that is not known.
    """
    blocks = _read(table)
    with paper() as pyplot:
        known = pyplot.figure().canvas.get_supported_filetypes()
        if output.suffix[1:] not in known:
            raise InputError("--output", str(output), "has no known format", f"formats: {', '.join(sorted(known))}")
        figure, (times, ratios) = pyplot.subplots(1, 2, figsize=(FULL_WIDTH, 3.0))
        for (name, runs), colour in zip(blocks.items(), COLOURS, strict=False):
            measured, predicted, low, high = zip(*runs, strict=True)
            times.plot(measured, predicted, ".", color=colour, markersize=3, label=name)
            ratio = [p / m for p, m in zip(predicted, measured, strict=True)]
            below = [(p - end) / m for p, end, m in zip(predicted, low, measured, strict=True)]
            above = [(end - p) / m for p, end, m in zip(predicted, high, measured, strict=True)]
            style = {"color": colour, "markersize": 3, "elinewidth": 0.4, "alpha": 0.8}
            ratios.errorbar(measured, ratio, (below, above), fmt=".", **style)
        every = [number for runs in blocks.values() for run in runs for number in run[:2]]
        times.plot([min(every), max(every)], [min(every), max(every)], color="#000000", linewidth=0.6)
        ratios.axhline(1, color="#000000", linewidth=0.6)
        times.set(xscale="log", yscale="log", xlabel="measured, seconds", title="predicted, seconds")
        ratios.set(
            xscale="log", yscale="log", xlabel="measured, seconds", title="predicted over measured, 90 % intervals"
        )
        figure.legend(*times.get_legend_handles_labels(), loc="lower center", ncols=len(blocks))
        figure.tight_layout(rect=(0, 0.06, 1, 1))
        figure.savefig(output)


def _read(table: Path) -> Mapping[str, Sequence[tuple[float, ...]]]:
    """Numbers of each run by block."""
    found: dict[str, list[tuple[float, ...]]] = {}
    with table.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            try:
                found.setdefault(row["block"], []).append(tuple(float(row[name]) for name in NUMBERS))
            except (TypeError, ValueError):
                raise InputError("the table", f"{table}, line {reader.line_num}", "holds no four numbers") from None
    if not found:
        raise InputError("the table", str(table), "has no runs", "make it with costmodel calibrate --csv")
    return found
