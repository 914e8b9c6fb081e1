"""How figures look: sizes for a page of a paper, fonts, colours that colour-blind readers can tell apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from costmodel.errors import InputError
from costmodel.outputs import picture, replacing

#: Okabe and Ito 2008, "Color Universal Design".
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "^", "s", "v")

#: Inches: one column of a two-column page, and both.
COLUMN, PAGE = 3.3, 7.0

#: Inches that a character and the line beside a label take in a legend.
LETTER, HANDLE = 0.062, 0.5

SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "lines.linewidth": 1.2,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
}


@contextmanager
def panels(output: Path, count: int, height: float, column: bool) -> Iterator[list[Any]]:
    """Panels with one legend, saved when the block ends: two in a row of a page, or below each other in a column.

    Args:
        height: inches of a panel.

    Raises:
        InputError: where matplotlib is not installed, and for a file that no picture can be written to.
    """
    picture(output, "--output")
    width, across = (COLUMN, 1) if column else (PAGE, 2)
    with _paper() as pyplot:
        rows = -(-count // across)
        figure, axes = pyplot.subplots(
            rows, across, figsize=(width, height * rows), squeeze=False, layout="constrained", sharex="col"
        )
        yield list(axes.flat)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        named = dict(zip(labels, handles, strict=True))
        room = int(width / (HANDLE + LETTER * max(map(len, named), default=0)))
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=min(max(room, 1), len(named)))
        with replacing(output, "--output") as part:
            figure.savefig(part, format=output.suffix[1:].lower())


@contextmanager
def _paper() -> Iterator[Any]:
    """``matplotlib.pyplot`` in this style, drawing to files only."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise InputError("plot", "matplotlib", "is not installed", "pip install 'costmodel[plots]'") from error
    mpl.use("Agg")
    from matplotlib import pyplot

    with mpl.rc_context(SETTINGS):
        yield pyplot
        pyplot.close("all")


def line_style(number: int) -> dict[str, str]:
    """Colour and dashes of the n-th of up to 32 lines; colours change first."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number // len(COLOURS) % len(DASHES)]}


def point_style(number: int) -> dict[str, str]:
    """Colour and marker of the n-th of up to 32 kinds of points; colours change first."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number // len(COLOURS) % len(MARKERS)]}
