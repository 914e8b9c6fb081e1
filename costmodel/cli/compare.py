"""``costmodel compare``: every mixer's costs over lengths, and where one becomes cheaper than another."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from costmodel.cli.options import CLUSTER, JSON, PASSES, complete_mixer
from costmodel.errors import InputError
from costmodel.outputs import picture, writable, write
from costmodel.units import parse_count, parse_counts
from costmodel.workload import WIDTHS


@click.command()
@click.option("--seq", metavar="N,...", required=True, help="Lengths: 1Ki:16Mi doubles from the first to the last.")
@CLUSTER
@click.option("--mixer", "names", metavar="NAME,...", shell_complete=complete_mixer, help="Which.  [default: all]")
@click.option("--against", default="attention", show_default=True, metavar="NAME", shell_complete=complete_mixer)
@click.option("--width", default="4096", show_default=True, metavar="N", help="Model width of every mixer.")
@click.option("--pass", "phase", type=PASSES, default="forward", show_default=True, help="Which pass.")
@click.option("--dtype", type=click.Choice(list(WIDTHS)), default="bf16", show_default=True)
@click.option("--csv", "table", metavar="FILE", type=click.Path(dir_okay=False), help="Save every number as CSV.")
@click.option("--plot", metavar="FILE", type=click.Path(dir_okay=False), help="Draw them, with their CSV beside.")
@JSON
@click.pass_context
def compare(ctx: click.Context, /, **options: Any) -> None:
    """Mixers side by side: FLOPs, memory, decode state, time and bytes sent over lengths; and exact crossovers.

    \b
    costmodel compare --seq 1Ki:16Mi --cluster 1xh100
    costmodel compare --seq 1Ki:16Mi --cluster 8xh100 --mixer attention,mamba2,gated-deltanet --plot mixers.pdf
    costmodel compare --seq 64Ki,1Mi --cluster 1xh100 --pass train --against mamba2 --csv mixers.csv
    """
    from costmodel.comparison import Setting
    from costmodel.hardware import parse_cluster
    from costmodel.mixer import mixers
    from costmodel.report import comparison_page

    plot = _plot_command(ctx, options["plot"])
    tables = _tables(options["table"], options["plot"])
    lengths = sorted(set(parse_counts(options["seq"], "--seq")))
    if options["phase"] == "decode":
        raise InputError("--pass", "decode", "compares whole sequences; what decoding keeps is told beside them")
    names = options["names"].split(",") if options["names"] else mixers.names()
    width = parse_count(options["width"], "--width")
    setting = Setting(parse_cluster(options["cluster"]), width, options["phase"], options["dtype"])
    found = _compared(list(dict.fromkeys([*names, options["against"]])), options["against"], setting, lengths)
    for option, path in tables.items():
        write(path, option, comparison_page.as_csv(found))
    if options["as_json"]:
        click.echo(comparison_page.as_json(found))
    else:
        comparison_page.print_comparison(found)
    if plot:
        ctx.invoke(plot, table=str(tables["--plot"]), output=options["plot"])


def _tables(table: str | None, drawn: str | None) -> dict[str, Path]:
    """Files that the numbers are saved in, by the options that ask for them.

    Raises:
        InputError: for one that cannot be written.
    """
    found = {} if table is None else {"--csv": writable(table, "--csv")}
    if drawn is not None:
        found["--plot"] = writable(picture(drawn, "--plot").with_suffix(".csv"), "--plot")
    return found


def _compared(names: list[str], against: str, setting: Any, lengths: list[int]) -> Any:
    from costmodel.comparison import compare as compare_mixers

    screen = sys.stderr
    with click.progressbar(length=len(names), label="Comparing", file=screen, hidden=not screen.isatty()) as bar:
        return compare_mixers(names, against, setting, lengths, lambda _: bar.update(1))


def _plot_command(ctx: click.Context, picture: str | None) -> Any:
    """The sub-command ``plot``, which another package registers; ``None`` where nothing is to be drawn."""
    if picture is None:
        return None
    commands = ctx.find_root().command
    plot = commands.get_command(ctx, "plot") if isinstance(commands, click.Group) else None
    if plot is None:
        raise InputError("--plot", picture, "the command plot is not installed", "pip install 'costmodel[plots]'")
    if find_spec("matplotlib") is None:
        raise InputError("--plot", picture, "matplotlib is not installed", "pip install 'costmodel[plots]'")
    return plot
