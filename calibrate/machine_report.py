"""A machine's own measurements fitted, the profile written, and how well it predicts what the fit has not seen."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from calibrate.cases import SEVERAL
from calibrate.held_out import Errors
from calibrate.host import NONE_ON_CPU, host_numbers, paths
from calibrate.machine import Machine, fit_machine, started_text
from calibrate.overlap import contention, overlap_numbers, told
from calibrate.profile_file import Changes, profile_text, read, rewritten
from calibrate.store import Contents, Environment
from calibrate.store import read as read_store
from costmodel.errors import InputError
from costmodel.hardware import profiles
from costmodel.outputs import write
from costmodel.report import data
from costmodel.report.page import Page
from costmodel.units import format_rate, format_seconds

#: Why nothing is known of transfers at once.
NO_PAIRS = "several transfers at once: that takes four ranks with a core or a GPU of their own, and their time"


def calibrated(path: Path, onto: str | None, output: str | None, as_json: bool) -> None:
    """Fit the runs of a file, print how well they are predicted, and write the profile if it has a name.

    Raises:
        InputError: for a file without runs, or a device that no profile is known of.
    """
    found = read_store(path)
    tell_of_damage(path, found)
    if not found.measurements:
        rule = "holds no runs" if path.exists() else "there is no such file"
        raise InputError("measurements", str(path), rule, f"costmodel calibrate --into {path}")
    (*_, environment) = found.environments.values()
    text, _ = profile_text(onto or _base(environment))
    name = Path(output).stem if output else environment.kind
    text = started_text(text, environment, found.measurements, name)
    text = rewritten(text, Changes({**overlap_numbers(found), **host_numbers(found)}, ()))
    with _bar() as bar:
        task = bar.add_task("fitting", total=1.0)
        fitted = fit_machine(
            text, name, found.measurements, lambda what, part: bar.update(task, description=what, completed=part)
        )
    written = fitted.file(f"costmodel calibrate --from {path.name}", datetime.date.today().isoformat())
    read(written, output or name)
    if as_json:
        click.echo(data.dump("calibrate", as_data(fitted, found)))
    else:
        print_machine(fitted, found, environment)
    if output:
        write(Path(output), "--profile", written)
        click.echo(f"Written to {output}", err=as_json)


def tell_of_damage(path: Path, found: Contents) -> None:
    """Say on standard error which lines are not used."""
    for number, reason in found.damaged.items():
        click.echo(f"{path}, line {number} is damaged and not used: {reason}", err=True)


def _bar() -> Progress:
    columns = (TextColumn("fitting {task.description:20.20}"), BarColumn())
    return Progress(*columns, console=Console(stderr=True), refresh_per_second=2, transient=True)


def _base(environment: Environment) -> str:
    """The profile that is nearest to a device."""
    if environment.kind == "cpu":
        return "cpu"
    name = environment.device.lower().replace(" ", "")
    for known in profiles():
        if known in name:
            return known
    raise InputError("--onto", environment.device, "no profile is known of it", "name the nearest one with --onto")


def print_machine(fitted: Machine, found: Contents, environment: Environment) -> None:
    """Errors by kernel family, drift, and what communication hides."""
    with Page() as page:
        page.heading(f"{environment.device}: predictions of shapes that the fit has not seen")
        columns = ["", "runs", "median error", "90% point", "in their 90% interval"]
        rows = [[family, *cells(errors)] for family, errors in sorted(fitted.errors.items()) if len(errors)]
        others = [[f"{what.removesuffix(' torch')}, not fitted", *cells(e)] for what, e in fitted.checks.items()]
        page.table(columns, [*rows, *others], columns[1:])
        page.heading("How it was measured")
        facts = [("timer", environment.timer), ("drift", _drift(found)), ("shapes", _known(found))]
        page.facts([*facts, *(("left out", what) for what in _left_out(found, environment))])
        _print_overlaps(page, found)
        _print_copies(page, found)


def _left_out(found: Contents, environment: Environment) -> Iterator[str]:
    """What this machine does not have, and why it is not measured."""
    if environment.kind == "cpu":
        yield NONE_ON_CPU
    if not any(row.kernel in SEVERAL for row in found.measurements):
        yield NO_PAIRS


def _print_overlaps(page: Page, found: Contents) -> None:
    """By what was sent: the part of the shorter that is hidden, and that of its time by which it delays computation."""
    if not found.overlaps:
        return
    page.heading("Communication beside computation, medians")
    columns = ["", "messages", "of the shorter is hidden", "delay, of its time"]
    rows = []
    for what in dict.fromkeys(pair.what for pair in found.overlaps):
        pairs = [pair for pair in found.overlaps if pair.what == what]
        hidden, delays = np.median([pair.hidden for pair in pairs]), told(pairs)
        rows.append([what, str(len(pairs)), f"{hidden:.0%}", f"{np.median(delays):.0%}" if delays else "-"])
    page.table(columns, rows, columns[1:])


def _print_copies(page: Page, found: Contents) -> None:
    """What copies between device and host take, of pinned and of pageable memory."""
    if not found.copies:
        return
    page.heading("Copies between device and host")
    columns = ["", "memory", "start", "rate one way", "median error"]
    rows = []
    for path in paths(found.copies):
        start, error = format_seconds(path.start_s), f"{path.error:.0%}"
        memory = "pinned" if path.pinned else "pageable"
        rows.append([path.way, memory, start, format_rate(path.bytes_per_s, "B"), error])
    page.table(columns, rows, columns[2:])


def cells(errors: Errors) -> list[str]:
    """Runs, median error, 90 % point, and the part of runs in their interval where intervals are known."""
    told = f"{errors.coverage:.0%}" if errors.halves.any() else "-"
    return [str(len(errors)), f"{errors.quantile(0.5):.1%}", f"{errors.quantile(0.9):.1%}", told]


def _drift(found: Contents) -> str:
    ratios = [check.ratio for check in found.drift]
    if not ratios:
        return "not looked for"
    return (
        f"the same product took {min(ratios):.2f} to {max(ratios):.2f} times as long as at first ({len(ratios)} times)"
    )


def _known(found: Contents) -> str:
    disturbed = np.mean([len(run.timing.disturbed) / len(run.timing.samples) for run in found.runs])
    return (
        f"{len(found.measurements)}, measured {len(found.runs)} times; {_agreement(found)}; samples that other work "
        f"interrupted: {disturbed:.0%}"
    )


def _agreement(found: Contents) -> str:
    """How well the fastest of several runs of a shape is known."""
    if not found.agreement:
        return "none at several times"
    median, most = np.quantile(found.agreement, [0.5, 0.9])
    return f"the two fastest runs of a shape differ by {median:.1%} in the median, {most:.1%} at the 90% point"


def as_data(fitted: Machine, found: Contents) -> dict[str, Any]:
    """The same with stable keys."""

    numbers = {key: value for fit in fitted.fits for key, value in fit.values.items()}
    return {
        "shapes_left_out": errors_by_name(fitted.errors),
        "not_fitted": errors_by_name(fitted.checks),
        "numbers": numbers,
        "drift": [check.ratio for check in found.drift],
        "hidden": [
            {"what": o.what, "bytes": o.bytes, "part": o.hidden, "contention": contention(o)} for o in found.overlaps
        ],
        "host_copies": [asdict(path) for path in paths(found.copies)],
        "damaged_lines": list(found.damaged),
    }


def errors_by_name(errors: Mapping[str, Errors]) -> dict[str, Any]:
    """Those of which there are any, as data."""
    return {name: _data(one) for name, one in errors.items() if len(one)}


def _data(errors: Errors) -> dict[str, float]:
    median, most = errors.quantile(0.5), errors.quantile(0.9)
    return {"runs": len(errors), "median_error": median, "error_of_90_percent": most, "coverage": errors.coverage}
