"""The figure of ``costmodel calibrate``: predicted against measured times of runs whose shapes were left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from plots.style import panels, point_style
from plots.table import Table

NUMBERS = ("measured_s", "predicted_s", "low_s", "high_s")
NEEDED = ("block", *NUMBERS)

#: Inches.
HEIGHT = 2.6


def draw(table: Table, output: Path, column: bool = False) -> None:
    """Draw predictions over measurements, and their ratio with its 90 % interval.

    Raises:
        InputError: for a table that is none, a number that is none, or a file that no picture can be written to.
    """
    blocks = _read(table)
    with panels(output, 2, HEIGHT, column) as (times, ratios):
        for place, (name, runs) in enumerate(blocks.items()):
            measured, predicted, low, high = zip(*runs, strict=True)
            style = point_style(place) | {"linestyle": "none", "markersize": 2.5, "markeredgewidth": 0}
            times.plot(measured, predicted, label=name.replace("_", " "), **style)
            ratio = [p / m for p, m in zip(predicted, measured, strict=True)]
            below = [(p - end) / m for p, end, m in zip(predicted, low, measured, strict=True)]
            above = [(end - p) / m for p, end, m in zip(predicted, high, measured, strict=True)]
            ratios.errorbar(measured, ratio, (below, above), elinewidth=0.4, alpha=0.8, **style)
        every = [number for runs in blocks.values() for run in runs for number in run[:2]]
        times.plot([min(every), max(every)], [min(every), max(every)], color="#000000", linewidth=0.6)
        ratios.axhline(1, color="#000000", linewidth=0.6)
        times.set(xscale="log", yscale="log", title="predicted time, seconds")
        ratios.set(xscale="log", title="predicted / measured, 90 % intervals", xlabel="measured time, seconds")
        ratios.set_yscale("log", base=2)
        ratios.yaxis.set_major_formatter("{x:g}")
        times.set_xlabel("" if column else "measured time, seconds")


def _read(table: Table) -> Mapping[str, Sequence[tuple[float, ...]]]:
    """Numbers of each run by block."""
    table.needs(NEEDED, "costmodel calibrate --csv")
    found: dict[str, list[tuple[float, ...]]] = {}
    for place, row in enumerate(table.rows):
        found.setdefault(row["block"], []).append(tuple(table.positive(place, name) for name in NUMBERS))
    return found
