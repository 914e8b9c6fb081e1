"""Whole mixers, which no fit has seen, run by the executor in one process and compared with their predictions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import click
import numpy as np
import torch

from calibrate.kernels import clock_for
from calibrate.measure import VISITS, parse_budget
from calibrate.method import Work, measure
from costmodel.arrangement import AXES, Way
from costmodel.errors import InputError
from costmodel.expression import lift
from costmodel.hardware import Cluster, Profile, load_profile
from costmodel.piece import Pieces
from costmodel.rates import Rates
from costmodel.report import data
from costmodel.report.page import Page
from costmodel.strategy import strategies
from costmodel.subject import Subject, at_width
from costmodel.timing import times
from costmodel.trace import Tracer, Widths
from costmodel.units import format_seconds
from costmodel.workload import Phase, Workload
from validate.allocations import keep_memory
from validate.executor import Executor
from validate.layer import DistributedLayer
from validate.task import Task

#: Of every structure some; those that go token by token in Python are left out, as nobody runs them so.
MIXERS = (
    "attention", "linear-attention", "retnet", "gla", "mamba2", "deltanet", "hyena", "fnet", "mlp-mixer",
    "performer", "linformer", "nystromformer", "cosformer", "poolformer", "synthesizer-random", "based",
)  # fmt: skip

#: Tokens and model width.
LENGTH, WIDTH = 2048, 512

PASSES: tuple[Phase, ...] = ("forward", "train")


@dataclass(frozen=True)
class Checked:
    """One mixer in one pass: seconds as predicted and as measured."""

    mixer: str
    phase: str
    predicted_s: float
    measured_s: float

    @property
    def error(self) -> float:
        """Relative error of the prediction, at least 0; as far off by a factor either way counts the same."""
        return math.expm1(abs(math.log(self.predicted_s / self.measured_s)))


def check(device: str, budget: str, names: Sequence[str] = MIXERS, length: int = LENGTH) -> list[Checked]:
    """Each mixer forward, and forward with backward, on one core.

    Raises:
        InputError: for a profile that cannot be read, or a bad budget.
        UnknownNameError: for an unknown mixer.
    """
    profile, seconds = load_profile(device), parse_budget(budget)
    if seconds <= 0:
        raise InputError("--budget", budget, "must be more than 0", "for example 2m")
    torch.set_num_threads(1)
    keep_memory()
    share = seconds / len(names) / len(PASSES) / VISITS
    runs = [_Run.of(name, phase, length) for name in names for phase in PASSES]
    found = [[min(measure(run.work, clock_for("cpu"), share).samples) for run in runs] for _ in range(VISITS)]
    fastest = [min(visits) for visits in zip(*found, strict=True)]
    return [run.checked(profile, measured) for run, measured in zip(runs, fastest, strict=True)]


@dataclass(frozen=True)
class _Run:
    """One mixer in one pass, ready to run."""

    subject: Subject
    way: Way
    workload: Workload
    work: Work

    @classmethod
    def of(cls, name: str, phase: Phase, length: int) -> _Run:
        subject = at_width(name, WIDTH)
        layer = subject.layers[0]
        way = Way(strategies.get("whole"), layer.mixer.kernels[0], False)
        layer_run = DistributedLayer(layer, Task(way, subject.causal, phase, length), Executor())
        return cls(subject, way, Workload(length, 1, phase, subject.causal, "fp32"), _work(layer_run, length))

    def checked(self, profile: Profile, measured: float) -> Checked:
        predicted = predicted_s(profile, self.subject, self.way, self.workload)
        return Checked(self.subject.layers[0].mixer.name, self.workload.phase, predicted, measured)


def _work(layer: DistributedLayer, length: int) -> Work:
    x = torch.rand(1, length, WIDTH)
    if layer.task.phase == "forward":
        call: Callable[..., object] = torch.no_grad()(layer.forward)
        return lambda: call(x)
    x.requires_grad_()
    wanted = [x, *(w for w in layer.weights.values() if w.requires_grad)]
    gradient = torch.rand(1, length, WIDTH)
    return lambda: torch.autograd.grad(layer(x), wanted, gradient, allow_unused=True)


def predicted_s(profile: Profile, subject: Subject, way: Way, workload: Workload) -> float:
    """Seconds of a layer."""
    ops = Tracer(Widths(4, 4, 4), profile.device.attention_tile, fuses=profile.device.fuses)
    pieces = Pieces(subject, workload, way.strategy.axes, way.tensor, ops)
    program = pieces.layer(subject.layers[0], way).program
    formula = lift(times(program.whole).total)
    values = {"B": workload.batch, "L": workload.length, "T": 0}
    values |= dict.fromkeys(AXES.values(), 1) | {f"rank_{size[-1]}": 0 for size in AXES.values()}
    rates = Rates(Cluster(profile, 1), workload.dtype).device(formula.symbols())
    return float(formula.approximate(values | {name: float(np.asarray(rate)) for name, rate in rates.items()}))


def print_check(found: Sequence[Checked], device: str, as_json: bool) -> None:
    """Each mixer, and the median and the 90 % point of all errors."""
    errors = [one.error for one in found]
    median, most = float(np.quantile(errors, 0.5)), float(np.quantile(errors, 0.9))
    if as_json:
        rows = [{"mixer": one.mixer, "pass": one.phase, "predicted_s": one.predicted_s} for one in found]
        rows = [row | {"measured_s": one.measured_s} for row, one in zip(rows, found, strict=True)]
        click.echo(data.dump("check", {"runs": rows, "median_error": median, "error_of_90_percent": most}))
        return
    with Page() as page:
        page.heading(f"{device}: whole mixers, which the fit has not seen")
        columns = ["mixer", "pass", "predicted", "measured", "error"]
        rows_of = [
            [one.mixer, one.phase, format_seconds(one.predicted_s), format_seconds(one.measured_s), f"{one.error:.0%}"]
            for one in found
        ]
        page.table(columns, rows_of, columns[2:])
        page.note(f"Error: median {median:.1%}, 90% point {most:.1%}, of {len(found)} runs.")
