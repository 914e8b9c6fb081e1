"""The answer of ``costmodel run``: a page, and a record to keep."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import torch

from costmodel import __version__
from costmodel.plan import Plan
from costmodel.report import words
from costmodel.report.document import PASS, print_notes, print_question
from costmodel.report.page import Page
from costmodel.units import format_bytes, format_count, format_seconds
from validate.communication import Traffic
from validate.job import Job
from validate.measured import Checked, Measured
from validate.predicted import Predicted

SENT_NOTE = (
    "sent: bytes and messages of the layer that each rank handed to its transport, and in the formula. memory: the "
    "most that its allocator handed out at once, with the input and the gradients of weights; the formula counts what "
    "one operation leaves for another, so that what kernels need for themselves comes on top."
)


def print_run(job: Job, predicted: Predicted, found: Measured) -> None:
    """Prediction and measurement side by side."""
    ranking, columns = (
        predicted.ranking,
        ["rank", "time", "sent", "formula", "messages", "formula", "memory", "formula"],
    )
    with Page() as page:
        print_question(page, ranking.subject, ranking.workload, ranking.cluster, ranking.capacity)
        page.heading(PASS[job.phase])
        page.facts(_facts(job, ranking.plan(0), found))
        page.table(columns, _rows(predicted, found), right=columns)
        page.note(SENT_NOTE)
        page.heading("About these numbers")
        if (cores := len(os.sched_getaffinity(0))) < job.ranks:
            page.note(f"The {job.ranks} ranks shared {cores} cores; the prediction gives each a device of its own.")
        print_notes(page, ranking.cluster, ranking.workload, None)


def _facts(job: Job, plan: Plan, found: Measured) -> Iterator[tuple[str, str]]:
    yield "Plan", f"{words.name(plan)}; {'; '.join(words.details(plan, False))}"
    yield "Checked", _checked(job, found.checked)
    runs = f"{len(found.steps)} runs" if len(found.steps) > 1 else "1 run"
    spread = f"{format_seconds(min(found.seconds))} to {format_seconds(max(found.seconds))} in {runs}"
    yield "Time", f"{format_seconds(found.median)}, {spread}"
    limits = f"between {format_seconds(plan.fastest)} and {format_seconds(plan.slowest)}"
    ratio = found.median / plan.seconds
    yield "Predicted", f"{format_seconds(plan.seconds)}, {limits}; measured is {ratio:.2f} times that"
    if job.phase == "train":
        last = found.steps[-1]
        busiest = max((own.exchanged for own in last), key=lambda sent: sent.bytes)
        sent = f"{format_bytes(busiest.bytes)} of weights' gradients in {busiest.messages} messages by each rank"
        yield "Update", f"{format_seconds(max(own.update for own in last))} of the time: {sent}, and Adam"


def _checked(job: Job, checked: Checked) -> str:
    tokens = f"the first {format_count(checked.length)} tokens"
    if job.phase == "decode":
        tokens = f"token {format_count(checked.length)}"
    elif checked.length == job.length:
        tokens = f"all {format_count(checked.length)} tokens"
    if checked.cached:
        tokens += f" after {format_count(checked.cached)} cached ones"
    told = f"off by {checked.error:.1e}, where {job.dtype} allows {checked.tolerance:g}"
    return f"{tokens} against one process in float64: {told}"


def _rows(predicted: Predicted, found: Measured) -> Iterator[list[str]]:
    for rank, (sent, told) in enumerate(zip(found.sent, predicted.sent, strict=True)):
        own, formula = total(sent), total(told)
        yield [
            str(rank),
            format_seconds(found.of_rank(rank)),
            f"{own.bytes:,}",
            _same(own.bytes, formula.bytes),
            f"{own.messages:,}",
            _same(own.messages, formula.messages),
            format_bytes(found.peaks[rank]),
            format_bytes(predicted.held[rank]),
        ]


def _same(measured: int, predicted: int) -> str:
    return "same" if measured == predicted else f"{predicted:,}"


def total(sent: Mapping[str, Traffic]) -> Traffic:
    """Along all axes together."""
    return Traffic(sum(t.bytes for t in sent.values()), sum(t.messages for t in sent.values()))


# The record -----------------------------------------------------------------------------------------------------------


def as_record(job: Job, predicted: Predicted, found: Measured) -> dict[str, Any]:
    """Everything that was asked, predicted and measured, in SI base units."""
    plan = predicted.ranking.plan(0)
    return {
        "schema": "validate.run/1",
        "environment": environment(),
        "job": msgspec.to_builtins(job),
        "predicted": {
            "profile": predicted.ranking.cluster.profile.name,
            "seconds": plan.seconds,
            "seconds_interval_90": list(plan.interval),
            "ranks": [_rank(*each) for each in zip(predicted.sent, predicted.held, strict=True)],
        },
        "measured": {
            "checked_tokens": found.checked.length,
            "checked_cached_tokens": found.checked.cached,
            "relative_error": found.checked.error,
            "tolerance": found.checked.tolerance,
            "seconds": found.seconds,
            "seconds_by_rank": [[own.seconds for own in every] for every in found.steps],
            "update_seconds_by_rank": [[own.update for own in every] for every in found.steps],
            "gradient_bytes_sent": [own.exchanged.bytes for own in found.steps[-1]],
            "ranks": [_rank(*each) for each in zip(found.sent, found.peaks, strict=True)],
        },
    }


def _rank(sent: Mapping[str, Traffic], held: int) -> dict[str, Any]:
    """Of one rank."""
    return {"sent": {axis: msgspec.to_builtins(t) for axis, t in sent.items() if t.messages}, "memory_bytes": held}


def environment() -> dict[str, Any]:
    """Where and how this is run."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "costmodel": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": device,
        "cores": len(os.sched_getaffinity(0)),
    }


def save(path: Path, record: Mapping[str, Any]) -> None:
    """Add a record to a JSON Lines file; it is on the disk when this returns."""
    with path.open("a") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
