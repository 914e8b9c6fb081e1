"""The answer of ``costmodel compare``: in a terminal, as CSV or as JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from costmodel.comparison import METRICS, Comparison, Crossing, Sample
from costmodel.ops.primitive import FLOP_CLASSES
from costmodel.report import data, words
from costmodel.report.document import PASS
from costmodel.report.page import Page
from costmodel.units import format_bytes, format_count, format_flop, format_seconds

#: Columns of the CSV file, with their units.
COLUMNS = (
    *("mixer", "structure", "causal", "tokens", "flop", *(f"{kind}_flop" for kind in FLOP_CLASSES)),
    *("memory_bytes", "state_bytes"),
    *("seconds", "seconds_least", "seconds_most", "plan", "device_bytes", "sent_bytes"),
)
WHAT = (
    "One layer of each mixer alone, of one sequence, at the same model width. FLOP: useful ones of all classes, with "
    "the first kernel; memory: weights and activations at their peak where one device has the whole sequence; state: "
    "what decoding keeps. These are exact. time: predicted, of the fastest plan that fits the cluster; sent: bytes "
    "that one of its ranks sends."
)
RULE = (
    "From which length on a mixer needs less: exact, in whole chunks of both; the time is of each mixer's fastest "
    "plan at that length."
)
#: Columns of a terminal that has room for plans.
WIDE = 110


def print_comparison(found: Comparison) -> None:
    """All mixers at the longest length, fastest first, and from which lengths on each is cheaper."""
    setting, last = found.setting, found.lengths[-1]
    with Page() as page:
        cluster = setting.cluster
        asked = f"{len(found.samples)} mixers, model width {setting.width}, {setting.dtype}"
        page.title(asked, f"{cluster.devices} x {cluster.profile.device.name}")
        page.line(WHAT)
        page.heading(f"{PASS[setting.phase]} of {format_count(last)} tokens")
        ordered = sorted((samples[-1] for samples in found.samples.values()), key=_seconds)
        numbers = ["FLOP", "memory", "state", "time", "sent"]
        columns = ["mixer", *numbers, *(["plan"] if page.width >= WIDE else [])]
        page.table(columns, [_row(sample)[: len(columns)] for sample in ordered], right=numbers, whole=["mixer"])
        between = f"{format_count(found.lengths[0])} to {format_count(last)} tokens"
        page.heading(f"Less than {found.against}: {between}")
        told = [[name, *(_told(by[metric]) for metric in METRICS)] for name, by in found.crossings.items()]
        page.table(["mixer", "FLOP", "memory", "state", "time"], told, whole=["mixer"])
        page.note(RULE)
        for name, reason in found.left_out.items():
            page.note(f"{name} is left out: {reason}")
        full = [name for name, samples in found.samples.items() if samples[0].mixer.causality == "full"]
        if full:
            page.note(f"Without a causal mask, as they are defined: {', '.join(full)}.")


def _seconds(sample: Sample) -> float:
    return sample.plan.seconds if sample.plan else float("inf")


def _row(sample: Sample) -> list[str]:
    plan = sample.plan
    exact = [format_flop(float(sample.flop)), format_bytes(float(sample.memory))]
    exact.append("none" if sample.state is None else format_bytes(float(sample.state)))
    if plan is None:
        return [sample.mixer.name, *exact, "", "", "nothing fits"]
    timed = [format_seconds(plan.seconds), format_bytes(sum(plan.wire.values())), words.name(plan)]
    return [sample.mixer.name, *exact, *timed]


def _told(crossings: Sequence[Crossing]) -> str:
    """``always``, ``never``, or the lengths between which a mixer is cheaper."""
    if not crossings:
        return "-"
    first, *changes = crossings
    if not changes:
        return "always" if first.cheaper else "never"
    return ", ".join(f"{'from' if change.cheaper else 'to'} {change.length:,}" for change in changes)


def as_csv(found: Comparison) -> str:
    """A row for each mixer and length, which ends in what they are compared under; empty where there is nothing."""
    text = io.StringIO()
    setting = found.setting
    under = {"cluster": str(setting.cluster), "pass": setting.phase, "width": setting.width, "dtype": setting.dtype}
    writer = csv.DictWriter(text, (*COLUMNS, *under), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | under for row in rows(found))
    return text.getvalue()


def rows(found: Comparison) -> Iterator[dict[str, Any]]:
    """What the CSV file and the JSON document hold."""
    for samples in found.samples.values():
        for sample in samples:
            yield dict.fromkeys(COLUMNS) | _known(sample)


def _known(sample: Sample) -> dict[str, Any]:
    mixer, plan = sample.mixer, sample.plan
    known = {
        "mixer": mixer.name,
        "structure": mixer.structure.value,
        "causal": mixer.causality != "full",
        "tokens": sample.length,
        "flop": float(sample.flop),
        **{f"{kind}_flop": float(sample.classes.get(kind, 0)) for kind in FLOP_CLASSES},
        "memory_bytes": float(sample.memory),
        "state_bytes": None if sample.state is None else float(sample.state),
    }
    if plan is not None:
        known |= {"seconds": plan.seconds, "seconds_least": plan.fastest, "seconds_most": plan.slowest}
        known |= {"plan": words.name(plan), "device_bytes": plan.bytes, "sent_bytes": sum(plan.wire.values())}
    return known


def as_json(found: Comparison) -> str:
    """The document of ``costmodel compare --json``."""
    setting = found.setting
    content = {
        "width": setting.width,
        "pass": setting.phase,
        "dtype": setting.dtype,
        "cluster": data.cluster(setting.cluster),
        "against": found.against,
        "mixers": list(rows(found)),
        "crossings": {
            name: {metric: [{"tokens": c.length, "cheaper": c.cheaper} for c in by[metric]] for metric in METRICS}
            for name, by in found.crossings.items()
        },
        "left_out": dict(found.left_out),
    }
    return data.dump("comparison", content)
