"""What a fit found and how well it predicts, as text and as plain data."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrate.block import BLOCKS, Block
from calibrate.fit import fit_profile
from calibrate.fitted import Fit
from calibrate.held_out import Errors, by_shape, by_source, checked, widened
from calibrate.measurement import Measurement
from calibrate.profile_numbers import HALF_90
from costmodel.hardware.profile import Profile
from costmodel.outputs import replacing
from costmodel.report.page import Page


@dataclass(frozen=True)
class Calibration:
    """A profile fitted to measurements.

    Attributes:
        shapes, sources: errors on shapes and on sources left out, in the order of fits.
        checks: errors on runs kept for checking, by what ran.
    """

    profile: Profile
    fits: Sequence[Fit]
    shapes: Sequence[Errors]
    sources: Sequence[Errors]
    checks: Mapping[str, Errors]

    @classmethod
    def of(cls, profile: Profile, measurements: Sequence[Measurement], blocks: Sequence[Block] = BLOCKS) -> Calibration:
        """Fit and hold out.

        Raises:
            InputError: for a measurement that cannot be predicted.
        """
        fitted, fits = fit_profile(profile, measurements, blocks)
        fits = [widened(fit, by_source(fit)) for fit in fits]
        shapes, sources = [by_shape(fit) for fit in fits], [by_source(fit) for fit in fits]
        return cls(fitted, fits, shapes, sources, checked(fitted, measurements))


def print_calibration(found: Calibration, name: str) -> None:
    """Errors on what was left out, the numbers, and what else was compared."""
    with Page() as page:
        page.heading(f"{name}: predictions of runs that the fit has not seen")
        columns = ["", "runs", "from", "new shapes", "in 90%", "new sources", "in 90%"]
        rows = [
            [fit.block.name, str(len(fit.measurements)), str(len(fit.offsets)), *_cells(shapes), *_cells(sources)]
            for fit, shapes, sources in zip(found.fits, found.shapes, found.sources, strict=True)
        ]
        page.table(columns, rows, right=columns[1:])
        page.note(
            "Relative error of the time where shapes, or sources, are left out: median and 90% point; from: how many "
            "sources; in 90%: part of the runs in their 90% interval, which is made wide enough for sources left out "
            "where there are many such runs. Sources are left out as far as the others tell the numbers that their "
            "runs depend on."
        )
        page.heading("Fitted numbers")
        rows = [
            [key, f"{value:.4g}", f"{HALF_90 * fit.error(key):.1%}"]
            for fit in found.fits
            for key, value in fit.values.items()
        ]
        page.table(["number", "value", "90% interval, +-"], rows, right=["value", "90% interval, +-"])
        kept = [key for fit in found.fits for key in fit.unidentified]
        if kept:
            page.note(f"Not told by these runs, and left as they were: {', '.join(kept)}.")
        if found.checks:
            page.heading("Other kernels, predicted by this profile")
            rows = [[what, str(len(errors)), *_cells(errors)[:1]] for what, errors in found.checks.items()]
            page.table(["kernel", "runs", "error"], rows, right=["runs", "error"])


def _cells(errors: Errors) -> list[str]:
    if not len(errors):
        return ["-", "-"]
    return [f"{errors.quantile(0.5):.1%}, {errors.quantile(0.9):.1%}", f"{errors.coverage:.0%}"]


def as_data(found: Calibration) -> dict[str, Any]:
    """The same with stable keys."""
    blocks = [
        {
            "name": fit.block.name,
            "runs": len(fit.measurements),
            "sources": list(fit.offsets),
            "between_sources": fit.variances.between,
            "within_source": fit.variances.within,
            "shapes_left_out": _data(shapes),
            "sources_left_out": _data(sources),
            "numbers": {
                key: {"value": value, "log_standard_error": fit.error(key)} for key, value in fit.values.items()
            },
            "unidentified": list(fit.unidentified),
        }
        for fit, shapes, sources in zip(found.fits, found.shapes, found.sources, strict=True)
    ]
    return {"blocks": blocks, "checks": {what: _data(errors) for what, errors in found.checks.items()}}


def _data(errors: Errors) -> dict[str, float] | None:
    if not len(errors):
        return None
    median, most = errors.quantile(0.5), errors.quantile(0.9)
    return {"runs": len(errors), "median_error": median, "error_of_90_percent": most, "coverage": errors.coverage}


def write_csv(found: Calibration, path: Path) -> None:
    """Every run, and what a fit without its shape predicts, with the 90 % interval."""
    with replacing(path, "--csv") as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("block", "kernel", "source", "measured_s", "predicted_s", "low_s", "high_s"))
        for fit, errors in zip(found.fits, found.shapes, strict=True):
            for run, error, half in zip(errors.runs, errors.logarithms, errors.halves, strict=True):
                ends = (run.seconds * math.exp(error + shift) for shift in (0.0, -half, half))
                numbers = (f"{number:.6g}" for number in (run.seconds, *ends))
                writer.writerow((fit.block.name, run.kernel, run.source, *numbers))
