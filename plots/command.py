"""``costmodel plot``: draw saved numbers."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("table", type=click.Path(dir_okay=False))
@click.option("--output", metavar="FILE", required=True, type=click.Path(dir_okay=False), help="PDF, SVG or PNG.")
def plot(table: str, output: str) -> None:
    """Draw a CSV file that costmodel compare or costmodel calibrate saved.

    \b
    costmodel compare --seq 1Ki:16Mi --cluster 8xh100 --csv mixers.csv
    costmodel plot mixers.csv --output mixers.pdf
    costmodel calibrate --from published/rtx4090 --csv runs.csv
    costmodel plot runs.csv --output runs.pdf
    """
    from plots import calibration, comparison

    drawn = calibration if calibration.is_calibration(Path(table)) else comparison
    drawn.draw(Path(table), Path(output))
    click.echo(f"{output}, drawn from {table}")
