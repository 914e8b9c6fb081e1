"""This machine measured into a file, with what is being done and the time left shown."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Literal

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from calibrate.collectives import Ranks
from calibrate.environment import environment
from calibrate.kernels import Bench, clock_for
from calibrate.measure import COLLECTIVE_PART, Session, parse_budget
from calibrate.store import Contents, Store
from costmodel.errors import InputError
from validate.allocations import keep_memory
from validate.launch import RankError, RankPool

DTYPES = ("fp32", "bf16")

#: Seconds without which there are too few shapes to fit anything, and with which a slip is likely.
LEAST_S, MOST_S = 20.0, 24 * 3600.0

#: Processes between which collectives run.
RANKS = 2


def measured(path: Path, device: Literal["cpu", "cuda"], budget: str, profile: str | None) -> None:
    """Measure until the time is spent.

    Args:
        budget: time for all sessions that add to the file.
        profile: the file that the fitted profile is to be written to, if any.

    Raises:
        InputError: for a bad budget, a device that is not there, or a file that cannot be added to.
    """
    budget_s = parse_budget(budget)
    if not LEAST_S <= budget_s <= MOST_S:
        raise InputError("--budget", budget, f"must be between {LEAST_S:g} seconds and a day", "for example 5m")
    torch.set_num_threads(1)  # a device of a CPU profile is one core
    keep_memory()
    clock = clock_for(device)
    here = environment(device, clock.name, shlex.join(["costmodel", *sys.argv[1:]]))
    name = Path(profile).stem if profile else device
    with Store(path, here) as store, _bar() as bar:
        tell_of(path, store.found)
        task = bar.add_task("starting", total=budget_s)

        def tell(what: str, part: float) -> None:
            bar.update(task, description=what, completed=part * budget_s)

        bench = Bench(device, here.cache_bytes)
        session = Session(store, here, name, budget_s, bench, clock, tell)
        try:
            session.kernels(DTYPES, 1 - COLLECTIVE_PART if device == "cpu" else 1.0)
            if device == "cpu":
                _collectives(session)
        except KeyboardInterrupt:
            click.echo(f"Stopped. What was measured is in {path}; the same command goes on from there.", err=True)
            raise


def _collectives(session: Session) -> None:
    if session.spent_s >= session.budget_s:
        return
    try:
        with RankPool(RANKS) as pool:
            session.collectives(Ranks(pool))
    except RankError as error:
        click.echo(f"Collectives were not all measured: {str(error).splitlines()[0]}", err=True)


def _bar() -> Progress:
    columns = (TextColumn("{task.description:28.28}"), BarColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), refresh_per_second=2)


def tell_of(path: Path, found: Contents) -> None:
    """What is wrong with a file that goes on being used."""
    for number, reason in found.damaged.items():
        click.echo(f"{path}, line {number} is damaged and not used: {reason}", err=True)
    if found.torn:
        click.echo(f"{path}: {found.torn} bytes after the last whole line are of a run that was cut off", err=True)
