"""``costmodel calibrate``: a hardware profile fitted to measured runs."""

from __future__ import annotations

import datetime
from pathlib import Path

import click


@click.command()
@click.option(
    "--from", "source", metavar="RUNS", required=True, help="published/NAME, aiconfigurator:SYSTEM, or a CSV of runs."
)
@click.option(
    "--onto", metavar="PROFILE", help="The profile to start from: a name or a file; the runs' device unless given."
)
@click.option("--block", "names", metavar="NAME", multiple=True, help="Fit just these: gemm, attention, link, ...")
@click.option("--output", metavar="FILE", type=click.Path(dir_okay=False), help="Where to write the fitted profile.")
@click.option("--csv", "table", metavar="FILE", type=click.Path(dir_okay=False), help="Every run and its prediction.")
@click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")
def calibrate(
    source: str, onto: str | None, names: tuple[str, ...], output: str | None, table: str | None, as_json: bool
) -> None:
    """Fit a profile to measured kernels and collectives, and show how well it predicts runs left out.

    \b
    costmodel calibrate --from published/rtx4090
    costmodel calibrate --from aiconfigurator:h100_sxm --output h100-served.toml
    costmodel calibrate --from my-runs.csv --onto rtx4090 --output my-machine.toml
    """
    from calibrate.aiconfigurator import aiconfigurator
    from calibrate.block import blocks
    from calibrate.measurement import read_measurements
    from calibrate.profile_file import changes, profile_text, read, rewritten
    from calibrate.published import published
    from calibrate.report import Calibration, as_data, print_calibration, write_csv
    from costmodel.errors import InputError
    from costmodel.report import data

    found_there = aiconfigurator(source)
    measurements = read_measurements(published(source) or Path(source)) if found_there is None else found_there
    devices = sorted({row.device for row in measurements})
    if onto is None and len(devices) != 1:
        raise InputError(
            "--from", source, f"has runs of {', '.join(devices) or 'nothing'}", "name a profile with --onto"
        )
    text, name = profile_text(onto or devices[0])
    found = Calibration.of(read(text, name), measurements, blocks(names))
    only = "".join(f" --block '{block}'" for block in names)
    made = changes(found.fits, f"costmodel calibrate --from {source}{only}", datetime.date.today().isoformat())
    written = rewritten(text, made)
    read(written, output or name)
    if as_json:
        click.echo(data.dump("calibrate", as_data(found)))
    else:
        print_calibration(found, onto or devices[0])
    if table:
        write_csv(found, Path(table))
    if output:
        Path(output).write_text(written, encoding="utf-8")
        click.echo(f"Written to {output}", err=as_json)
