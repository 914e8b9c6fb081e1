"""How figures look: sizes for a page of a paper, fonts, colours that colour-blind readers can tell apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from costmodel.errors import InputError

#: Okabe and Ito 2008, "Color Universal Design".
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
DASHES = ("-", "--", ":", "-.")

#: Inches: two columns of a page.
FULL_WIDTH = 7.0

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
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
}


@contextmanager
def paper() -> Iterator[Any]:
    """``matplotlib.pyplot`` in this style, drawing to files only.

    Raises:
        InputError: where matplotlib is not installed.
    """
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
