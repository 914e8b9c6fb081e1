"""The figure of ``costmodel compare``: what mixers cost over lengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plots.style import line_style, panels
from plots.table import Table

#: Columns that are drawn, with titles.
PANELS = {
    "flop": "useful FLOP, one layer",
    "memory_bytes": "weights and activations, bytes",
    "state_bytes": "decode state, bytes",
    "seconds": "predicted time{}, seconds",
}
NUMBERS = ("tokens", "seconds_least", "seconds_most", *PANELS)
NEEDED = ("mixer", "structure", *NUMBERS)

#: More lines than this are told apart by the structure of their matrices, not one by one.
NAMED = 16

#: Inches.
HEIGHT = 2.2


@dataclass(frozen=True)
class Lines:
    """A mixer: the structure of its matrix, and its numbers at each length by the columns they stand in."""

    structure: str
    points: list[dict[str, float | None]] = field(default_factory=list)

    def over(self, *columns: str) -> list[tuple[float, ...]]:
        """Lengths with what stands in these columns; without those where there is nothing, or zero."""
        numbers = [(point["tokens"], *(point[column] for column in columns)) for point in self.points]
        return [tuple(filter(None, row)) for row in numbers if all(row)]


def draw(table: Table, output: Path, column: bool = False) -> None:
    """Draw a CSV file of ``costmodel compare`` as four panels over the sequence length.

    Raises:
        InputError: for a table that is none, a number that is none, or a file that no picture can be written to.
    """
    mixers = _read(table)
    styles = _styles(mixers)
    where = f" on {table.rows[0]['cluster']}" if "cluster" in table.columns else ""
    with panels(output, len(PANELS), HEIGHT, column) as axes:
        for (name, title), panel in zip(PANELS.items(), axes, strict=True):
            _panel(panel, name, title.format(where), mixers, styles)
        for panel in axes[-1 if column else -2 :]:
            panel.set_xlabel("sequence length, tokens")


def _read(table: Table) -> dict[str, Lines]:
    """What is drawn of each mixer, in the file's order."""
    table.needs(NEEDED, "costmodel compare --csv")
    found: dict[str, Lines] = {}
    for place, row in enumerate(table.rows):
        line = found.setdefault(row["mixer"], Lines(row["structure"]))
        line.points.append({name: table.number(place, name) for name in NUMBERS})
    return found


def _styles(mixers: Mapping[str, Lines]) -> dict[str, dict[str, Any]]:
    """How each mixer's line looks: its own way where there are few, else as others of its structure."""
    if len(mixers) <= NAMED:
        return {name: {"label": name} | line_style(number) for number, name in enumerate(mixers)}
    kinds = list(dict.fromkeys(lines.structure for lines in mixers.values()))
    style = {kind: line_style(number) for number, kind in enumerate(kinds)}
    return {
        name: {"label": lines.structure, **style[lines.structure], "alpha": 0.7, "linewidth": 0.8}
        for name, lines in mixers.items()
    }


def _panel(panel: Any, column: str, title: str, mixers: Mapping[str, Lines], styles: Mapping[str, Any]) -> None:
    panel.set(yscale="log", title=title)
    panel.set_xscale("log", base=2)
    panel.locator_params(axis="x", numticks=6)
    for name, lines in mixers.items():
        panel.plot(*_columns(lines.over(column)), **styles[name])
        if column == "seconds" and len(mixers) <= NAMED:
            band = _columns(lines.over("seconds_least", "seconds_most"), 3)
            panel.fill_between(*band, color=styles[name]["color"], alpha=0.12, linewidth=0)
    panel.xaxis.set_major_formatter(lambda length, _: _tokens(length))


def _columns(rows: list[tuple[float, ...]], count: int = 2) -> list[tuple[float, ...]]:
    """Rows as columns, of which there are ``count`` even without a row."""
    return list(zip(*rows, strict=True)) or [()] * count


def _tokens(length: float) -> str:
    """A power of two with a binary suffix.

    >>> _tokens(2.0**17), _tokens(512.0)
    ('128Ki', '512')
    """
    for size, suffix in ((2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki")):
        if length >= size:
            return f"{length / size:g}{suffix}"
    return f"{length:g}"
