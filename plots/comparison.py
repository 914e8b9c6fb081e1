"""The figure of ``costmodel compare``: what mixers cost over lengths."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from costmodel.errors import InputError
from plots.style import FULL_WIDTH, line_style, paper

#: Columns that are drawn, with titles.
PANELS = {
    "flop": "useful FLOP, one layer",
    "memory_bytes": "weights and activations on one device, bytes",
    "state_bytes": "decode state, bytes",
    "seconds": "predicted time, seconds",
}
NEEDED = ("mixer", "structure", "tokens", "seconds_least", "seconds_most", *PANELS)

#: More lines than this are told apart by the structure of their matrices, not one by one.
NAMED = 16

Rows = Sequence[Mapping[str, str]]


def draw(table: Path, output: Path) -> None:
    """Draw a CSV file of ``costmodel compare`` as four panels over the sequence length.

    Raises:
        InputError: for a file that is not one, or a format of picture that is not known.
    """
    mixers = read(table)
    with paper() as pyplot:
        known = pyplot.figure().canvas.get_supported_filetypes()
        if output.suffix[1:] not in known:
            raise InputError("--output", str(output), "has no known format", f"formats: {', '.join(sorted(known))}")
        figure, axes = pyplot.subplots(2, 2, figsize=(FULL_WIDTH, 5.4), sharex=True)
        styles = _styles(mixers)
        for (column, title), panel in zip(PANELS.items(), axes.flat, strict=True):
            _panel(panel, column, title, mixers, styles)
        for panel in axes[1]:
            panel.set_xlabel("sequence length, tokens")
        lines, labels = axes[0, 0].get_legend_handles_labels()
        handles = dict(zip(labels, lines, strict=True))
        rows = -(-len(handles) // 4)
        figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=4)
        figure.tight_layout(rect=(0, 0.03 + 0.025 * rows, 1, 1))
        figure.savefig(output)


def read(table: Path) -> dict[str, Rows]:
    """Rows by mixer, in the file's order.

    Raises:
        InputError: for a file that cannot be read or lacks a column.
    """
    try:
        with table.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise InputError("the table", str(table), f"cannot be read: {error.strerror}") from error
    missing = [column for column in NEEDED if not rows or column not in rows[0]]
    if missing:
        rule = f"lacks the columns {', '.join(missing)}"
        raise InputError("the table", str(table), rule, "make it with costmodel compare --csv")
    found: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        found.setdefault(row["mixer"], []).append(row)
    return dict(found)


def _styles(mixers: Mapping[str, Rows]) -> dict[str, dict[str, Any]]:
    """How each mixer's line looks: its own way where there are few, else as others of its structure."""
    if len(mixers) <= NAMED:
        return {name: {"label": name} | line_style(number) for number, name in enumerate(mixers)}
    kinds = list(dict.fromkeys(rows[0]["structure"] for rows in mixers.values()))
    style = {kind: line_style(number) for number, kind in enumerate(kinds)}
    return {
        name: {"label": rows[0]["structure"], **style[rows[0]["structure"]], "alpha": 0.7, "linewidth": 0.8}
        for name, rows in mixers.items()
    }


def _panel(panel: Any, column: str, title: str, mixers: Mapping[str, Rows], styles: Mapping[str, Any]) -> None:
    panel.set(xscale="log", yscale="log", title=title)
    panel.set_xscale("log", base=2)
    for name, rows in mixers.items():
        known = [row for row in rows if row[column]]
        lengths = [float(row["tokens"]) for row in known]
        panel.plot(lengths, [float(row[column]) for row in known], **styles[name])
        if column == "seconds" and len(mixers) <= NAMED:
            least, most = ([float(row[bound]) for row in known] for bound in ("seconds_least", "seconds_most"))
            panel.fill_between(lengths, least, most, color=styles[name]["color"], alpha=0.12, linewidth=0)
    panel.xaxis.set_major_formatter(lambda length, _: _tokens(length))


def _tokens(length: float) -> str:
    """A power of two with a binary suffix.

    >>> _tokens(2.0**17), _tokens(512.0)
    ('128Ki', '512')
    """
    for size, suffix in ((2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki")):
        if length >= size:
            return f"{length / size:g}{suffix}"
    return f"{length:g}"
