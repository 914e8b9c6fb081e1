"""A profile's predictions of runs in a file that it was not fitted to, by kernel family."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from calibrate.cases import case, program
from calibrate.held_out import Errors
from calibrate.machine_report import cells, errors_by_name, tell_of_damage
from calibrate.measurement import Measurement
from calibrate.predictor import Floats, Predictor
from calibrate.store import read as read_store
from costmodel.errors import InputError
from costmodel.hardware import Profile, load_profile
from costmodel.ops.primitive import Reading
from costmodel.program import Operation, operations
from costmodel.report import data
from costmodel.report.page import Page
from costmodel.uncertainty import Uncertainty

#: Name of all runs that are larger or smaller than those that the profile was fitted to.
BEYOND = "sizes not fitted"

#: Measured sizes are written with four digits.
ROUNDED = 1.001


def print_against(name: str, path: Path, as_json: bool) -> None:
    """How far off a profile is in the runs of a file, and how many are in their intervals.

    Raises:
        InputError: for a file without runs, or a profile that cannot be read.
        UnknownNameError: for a profile or dtype that is not known.
    """
    found, profile = read_store(path), load_profile(name)
    tell_of_damage(path, found)
    known = [row for row in found.measurements if f"{row.dtype}_dense" in profile.device.peak_flop_per_s]
    if not known:
        raise InputError("measurements", str(path), "holds no runs in a dtype of the profile")
    errors = against(profile, [row for row in known if row.use == "fit" and row.dtype == "fp32"])
    if as_json:
        click.echo(data.dump("check", {"families": errors_by_name(errors)}))
        return
    with Page() as page:
        page.heading(f"{name}: predictions of the runs in {path.name}")
        columns = ["", "runs", "median error", "90% point", "in their 90% interval"]
        page.table(columns, [[family, *cells(one)] for family, one in errors.items()], columns[1:])


def against(profile: Profile, rows: Sequence[Measurement]) -> dict[str, Errors]:
    """Errors by family of kernels (``"link"`` for collectives), then those of all runs of ``BEYOND``."""
    logarithms, halves = _errors(profile, rows)
    families = [case(row).family for row in rows]
    names: dict[str, list[int]] = {}
    for place, family in enumerate(families):
        names.setdefault(family, []).append(place)
    names = dict(sorted(names.items()))
    names[BEYOND] = [place for place, row in enumerate(rows) if is_beyond(profile, row)]
    return {
        name: Errors(logarithms[places], halves[places], tuple(rows[place] for place in places))
        for name, places in names.items()
        if places
    }


def _errors(profile: Profile, rows: Sequence[Measurement]) -> tuple[Floats, Floats]:
    """Logarithms of predicted over measured seconds, and how far intervals reach to the side that was measured."""
    predictor, uncertainty = Predictor(rows, profile), Uncertainty.of(profile)
    seconds = np.array([predictor(moved) for _, moved in uncertainty.moved])
    ends = np.log([uncertainty.interval(each) for each in seconds.T])
    predicted, measured = np.log(seconds[0]), np.log([row.seconds for row in rows])
    return predicted - measured, np.where(measured > predicted, ends[:, 1] - predicted, predicted - ends[:, 0])


def is_beyond(profile: Profile, row: Measurement) -> bool:
    """Whether a run is of a kernel that does or moves less than any that the profile was fitted to, or more."""
    run = program(row, profile.device.attention_tile)
    known = [one for one, _ in operations(run.forward) if one.family not in ("view", "communication")]
    return any(_beyond(profile, operation) for operation in known)


def _beyond(profile: Profile, operation: Operation) -> bool:
    measured = profile.device.kernel(*operation.kernel).measured
    if measured is None:
        return False
    products = float(operation.flops(Reading.EXECUTED).get("contraction", 0))
    sizes = ((products, measured.flop), (float(sum(operation.traffic())), measured.bytes))
    return any(ends is not None and not ends[0] / ROUNDED <= size <= ends[1] * ROUNDED for size, ends in sizes)
