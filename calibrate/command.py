"""``costmodel calibrate``: a hardware profile fitted to measured runs."""

from __future__ import annotations

import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from costmodel.cli.options import JSON
from costmodel.errors import InputError
from costmodel.outputs import writable, write

#: How the names of files of own measurements end.
OWN = (".jsonl", ".jsonl.xz")


@click.command()
@click.option("--from", "source", metavar="RUNS", help="Fit published/NAME, aiconfigurator:SYSTEM, or a file of runs.")
@click.option("--into", metavar="FILE", type=click.Path(dir_okay=False), help="Measure this machine into a file.")
@click.option("--budget", metavar="TIME", default="5m", show_default=True, help="Time for all of FILE: 90s, 2m, 10m.")
@click.option("--on", "device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="What.")
@click.option("--check", metavar="PROFILE", help="Compare a profile with whole mixers, or with FILE.jsonl.")
@click.option(
    "--onto", metavar="PROFILE", help="The profile to start from: a name or a file; the runs' device unless given."
)
@click.option("--block", "names", metavar="NAME", multiple=True, help="Fit just these: gemm, attention, link, ...")
@click.option(
    "--profile", "--output", "output", metavar="FILE", type=click.Path(dir_okay=False), help="Write the profile here."
)
@click.option("--csv", "table", metavar="FILE", type=click.Path(dir_okay=False), help="Every run and its prediction.")
@JSON
@click.pass_context
def calibrate(ctx: click.Context, /, **options: Any) -> None:
    """Fit a profile to measured kernels and collectives, and show how well it predicts runs left out.

    \b
    costmodel calibrate --into cpu.jsonl --budget 5m --profile my_cpu.toml
    costmodel calibrate --check my_cpu.toml
    costmodel calibrate --check my_cpu.toml --from other.jsonl
    costmodel calibrate --from published/rtx4090
    costmodel calibrate --from aiconfigurator:h100_sxm --output h100-served.toml

    With --into, this machine is measured: kernels, then collectives between two processes. Every run is on the disk
    before the next, and the same command goes on where it was stopped. Then, or with --from FILE.jsonl, they are fitted
    and the profile is written; --cluster 2x./my_cpu.toml plans with it.
    """
    asked = [name for name in ("source", "into", "check") if options[name] is not None]
    if len(asked) != 1 and asked != ["source", "check"]:
        given = " ".join(f"--{'from' if name == 'source' else name} {options[name]}" for name in asked) or "neither"
        rule = "give one of them, or --check with --from"
        raise InputError("--into, --from or --check", given, rule, "for example --into cpu.jsonl")
    _check_the_others(ctx, asked)
    for name, option in (("output", "--profile"), ("table", "--csv")):
        if options[name] is not None:
            writable(options[name], option)
    if len(asked) == 2:
        _against(options)
    elif options["check"] is not None:
        _check(options)
    elif options["into"] is not None or options["source"].endswith(OWN):
        _machine(options)
    else:
        _published(options)


#: Options that are not for all of --from, --into and --check, and which they are for.
ONLY_FOR = {
    "budget": ("into", "check"),
    "device": ("into",),
    "onto": ("source", "into"),
    "names": ("source",),
    "output": ("source", "into"),
    "table": ("source",),
}


def _check_the_others(ctx: click.Context, asked: list[str]) -> None:
    """Refuse an option that would change nothing.

    Raises:
        InputError: saying what it is for.
    """
    opts = {parameter.name: parameter.opts for parameter in ctx.command.params}
    here = " with ".join(opts[name][0] for name in reversed(asked))
    for name, kinds in ONLY_FOR.items():
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE and (len(asked) > 1 or asked[0] not in kinds):
            rule = f"is for {' and '.join(opts[kind][0] for kind in kinds)}, not for {here}"
            given = ctx.params[name]
            shown = " ".join(given) if isinstance(given, tuple) else given
            raise InputError(opts[name][0], shown, rule, "leave it out")


def _needs(package: str, extra: str, what: str) -> None:
    if find_spec(package) is None:
        raise InputError(what, package, "is not installed", f"pip install 'costmodel[{extra}]'")


def _machine(options: dict[str, Any]) -> None:
    """Measure, unless there are measurements already, and fit."""
    _needs("scipy", "calibrate", "calibrate")
    from calibrate.machine_report import calibrated
    from calibrate.profile_file import profile_text
    from calibrate.session import measured

    for option in ("names", "table"):
        if options[option]:
            raise InputError({"names": "--block", "table": "--csv"}[option], options[option], "is for published runs")
    if options["onto"] is not None:
        profile_text(options["onto"])  # refuses an unknown one before minutes of measuring
    path = Path(options["into"] or options["source"])
    if options["into"] is not None:
        _needs("torch", "validate", "--into")
        measured(path, options["device"], options["budget"], options["output"])
    calibrated(path, options["onto"], options["output"], options["as_json"])


def _against(options: dict[str, Any]) -> None:
    """A profile against a file of measured runs."""
    _needs("scipy", "calibrate", "calibrate")
    from calibrate.against import print_against

    if not options["source"].endswith(OWN):
        raise InputError("--from", options["source"], "with --check it must be a file of runs, FILE.jsonl")
    print_against(options["check"], Path(options["source"]), options["as_json"])


def _check(options: dict[str, Any]) -> None:
    """Whole mixers against their predictions."""
    _needs("torch", "validate", "--check")
    from calibrate.whole import check, print_check

    print_check(check(options["check"], options["budget"]), options["check"], options["as_json"])


def _published(options: dict[str, Any]) -> None:
    """Fit to published runs."""
    _needs("scipy", "calibrate", "calibrate")
    from calibrate.aiconfigurator import aiconfigurator
    from calibrate.block import blocks
    from calibrate.measurement import read_measurements
    from calibrate.profile_file import changes, profile_text, read, rewritten
    from calibrate.published import published
    from calibrate.report import Calibration, as_data, print_calibration, write_csv
    from costmodel.report import data

    source, onto, names, output = (options[name] for name in ("source", "onto", "names", "output"))
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
    if options["as_json"]:
        click.echo(data.dump("calibrate", as_data(found)))
    else:
        print_calibration(found, onto or devices[0])
    if options["table"]:
        write_csv(found, Path(options["table"]))
    if output:
        write(Path(output), "--profile", written)
        click.echo(f"Written to {output}", err=options["as_json"])
