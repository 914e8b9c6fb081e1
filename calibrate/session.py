"""This machine measured into a file, with what is being done and the time left shown."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from calibrate.collectives import Pairs, Ranks
from calibrate.environment import environment
from calibrate.kernels import Bench, clock_for
from calibrate.measure import Session, parse_budget
from calibrate.method import WallClock
from calibrate.store import Contents, Store
from costmodel.errors import InputError
from validate.allocations import keep_memory
from validate.launch import Device, Rank, RankError, RankPool

DTYPES = ("fp32", "bf16")

#: Seconds without which there are too few shapes to fit anything, and with which a slip is likely.
LEAST_S, MOST_S = 20.0, 24 * 3600.0

#: Parts of the time for copies between device and host, and for collectives: alone, beside products, several at once.
COPIES, COLLECTIVES, OVERLAPS, SEVERAL = 0.04, 0.1, 0.05, 0.03

#: Ranks between which collectives run on a CPU, or at least elsewhere, and those of which there are several pairs: each
#: has a core or a GPU of its own, or they would wait for cores and not for the link.
RANKS, PAIRED = 2, 4


def measured(path: Path, device: Device, budget: str, profile: str | None) -> None:
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
        stages = _stages(session, bench, device)
        end = 1 - sum(stage.part for stage in stages)
        try:
            if device == "cuda":
                session.launches(WallClock())
            session.kernels(DTYPES, end)
            for stage in stages:
                end += stage.part
                if session.spent_s < end * budget_s:
                    stage.measure(stage.part, end)
        except KeyboardInterrupt:
            click.echo(f"Stopped. What was measured is in {path}; the same command goes on from there.", err=True)
            raise


@dataclass(frozen=True)
class Stage:
    """What is measured after the kernels, in a part of the time: given that part, and the part at which it ends."""

    part: float
    measure: Callable[[float, float], None]


def _stages(session: Session, bench: Bench, device: Device) -> list[Stage]:
    """Those that the machine has: copies where the host is apart, collectives where there are ranks, pairs of these."""
    if device == "cpu":
        ranks, paired = RANKS, min(PAIRED, len(os.sched_getaffinity(0)))
    else:
        ranks = paired = torch.cuda.device_count()
    found = []
    if device == "cuda":
        found.append(Stage(COPIES, partial(session.copies, bench)))
    if ranks >= RANKS:
        found.append(Stage(COLLECTIVES + OVERLAPS, partial(_on_ranks, session, RankPool(ranks, device), _messages)))
    if paired >= PAIRED:
        found.append(Stage(SEVERAL, partial(_on_ranks, session, RankPool(paired, device), _several)))
    return found


def _messages(session: Session, pool: RankPool, part: float, end: float) -> None:
    """Collectives alone, and then beside products."""
    ranks = Ranks(pool)
    session.collectives(ranks, part - OVERLAPS, end - OVERLAPS)
    session.overlaps(ranks, OVERLAPS, end)


def _several(session: Session, pool: RankPool, part: float, end: float) -> None:
    session.collectives(Pairs(pool), part, end)


def _on_ranks(
    session: Session,
    ranks: RankPool,
    measure: Callable[[Session, RankPool, float, float], None],
    part: float,
    end: float,
) -> None:
    """Measure on ranks, whose start is not in the part of the time; what is measured until one fails is kept."""
    try:
        with ranks as pool:
            before = session.spent_s
            pool.run(_ready)
            measure(session, pool, part, end + (session.spent_s - before) / session.budget_s)
    except RankError as error:
        click.echo(f"Collectives were not all measured: {str(error).splitlines()[0]}", err=True)


def _ready(rank: Rank) -> None:
    """What a rank does that has just been started."""


def _bar() -> Progress:
    columns = (TextColumn("{task.description:28.28}"), BarColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), refresh_per_second=2)


def tell_of(path: Path, found: Contents) -> None:
    """What is wrong with a file that goes on being used."""
    for number, reason in found.damaged.items():
        click.echo(f"{path}, line {number} is damaged and not used: {reason}", err=True)
    if found.torn:
        click.echo(f"{path}: {found.torn} bytes after the last whole line are of a run that was cut off", err=True)
