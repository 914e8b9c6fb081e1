"""``costmodel plot``: draw saved numbers."""

from __future__ import annotations

from pathlib import Path

import click

from costmodel.outputs import picture


@click.command()
@click.argument("table", type=click.Path(dir_okay=False))
@click.option("--output", metavar="FILE", required=True, type=click.Path(dir_okay=False), help="PDF, SVG, PNG or EPS.")
@click.option("--column", is_flag=True, help="As wide as one column of a paper (3.3 in), not a page (7 in).")
def plot(table: str, output: str, column: bool) -> None:
    """Draw a CSV file that costmodel compare or costmodel calibrate saved.

    \b
    costmodel compare --seq 1Ki:16Mi --cluster 8xh100 --csv mixers.csv
    costmodel plot mixers.csv --output mixers.pdf
    costmodel plot mixers.csv --output column.pdf --column
    costmodel calibrate --from published/rtx4090 --csv runs.csv
    costmodel plot runs.csv --output runs.pdf
    """
    from plots import calibration, comparison
    from plots.table import Table

    drawn = picture(output, "--output")
    read = Table.read(Path(table))
    figure = calibration if "measured_s" in read.columns else comparison
    figure.draw(read, drawn, column)
    click.echo(f"{output}, drawn from {table}")
