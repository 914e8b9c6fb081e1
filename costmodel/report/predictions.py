"""The answers of ``costmodel predict``: one plan in full, or many plans and lengths as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from costmodel.estimate import Peak, flops
from costmodel.model import Model
from costmodel.ops.primitive import FLOP_CLASSES, Reading
from costmodel.plan import Plan, Ranking
from costmodel.report import data, frameworks, words
from costmodel.report.document import PASS, plan_facts, print_notes, print_question
from costmodel.report.page import Page
from costmodel.units import format_bytes, format_count, format_flop, format_seconds

READING = {
    Reading.USEFUL: "useful",
    Reading.EXECUTED: "executed",
    Reading.DENSE: "dense",
    Reading.MODEL: "model",
}
READINGS_NOTE = (
    "FLOP of the busiest rank, a multiply-add as 2. useful: the query-key pairs that the mask leaves; executed: whole "
    "tiles, as the kernel runs them; dense: without a mask; model: dense, without recomputation."
)
MFU_NOTE = (
    "MFU counts masked pairs, as it is defined (PaLM, arXiv 2204.02311), so that it may pass 100% under a causal mask; "
    "useful counts only the pairs that the mask leaves."
)


def print_predictions(rankings: Sequence[Ranking], model: Model | None) -> None:
    """One plan in full, several as a table."""
    first = rankings[0]
    with Page() as page:
        print_question(page, first.subject, first.workload, first.cluster, first.capacity, len(rankings) == 1)
        page.heading(PASS[first.workload.phase])
        if len(rankings) == 1 and len(first.places) == 1:
            _print_one(page, first)
        else:
            _print_table(page, rankings)
        page.heading("About these numbers")
        page.note(MFU_NOTE)
        print_notes(page, first.cluster, max((r.workload for r in rankings), key=lambda w: w.length), model)


def plans(ranking: Ranking) -> Iterator[tuple[int, Plan]]:
    """Every plan, the fastest that fits first, and then those that do not fit."""
    for candidate in (*ranking.order, *ranking.too_large):
        yield int(candidate), ranking.plan(int(candidate))


def _print_one(page: Page, ranking: Ranking) -> None:
    plan = ranking.plan(0)
    page.facts(plan_facts(plan, ranking.workload, ranking.capacity))
    page.facts([("Longest", f"{format_count(ranking.longest(0))} tokens would fit"), ("MFU", _mfu(ranking, plan))])
    page.facts(frameworks.facts(plan))
    counted = flops(ranking, 0)
    kinds = [kind for kind in FLOP_CLASSES if any(kind in classes for classes in counted.values())]
    rows = [[kind, *(format_flop(counted[reading].get(kind, 0)) for reading in Reading)] for kind in kinds]
    names = [READING[reading] for reading in Reading]
    page.table(["FLOP", *names], rows, right=names)
    page.note(READINGS_NOTE)
    rows = [
        [words.busy(label), format_seconds(seconds), f"{seconds / plan.seconds:.1%}"]
        for label, seconds in sorted(plan.breakdown.items(), key=lambda item: -item[1])
        if seconds
    ]
    page.table(["busy", "time", "of the step"], rows, right=["time", "of the step"])
    page.note("What communication and kernels do at the same time is in both.")


def _mfu(ranking: Ranking, plan: Plan) -> str:
    peak = Peak.of(ranking)
    return f"{peak.model / plan.seconds:.1%}; useful {peak.useful / plan.seconds:.1%}"


def _print_table(page: Page, rankings: Sequence[Ranking]) -> None:
    several = len(rankings) > 1
    rows = [row for ranking in rankings for row in _rows(ranking, page.width >= 100)]
    columns = ["tokens", "plan", "time", "range", "memory", "sent", "MFU", "useful", ""]
    wide = {"range", "sent"} if page.width < 100 else set()
    kept = [i for i, name in enumerate(columns) if name not in wide and (several or name != "tokens")]
    numbers = [name for name in columns if name not in ("plan", "")]
    page.table([columns[i] for i in kept], [[row[i] for i in kept] for row in rows], right=numbers)


def _rows(ranking: Ranking, wide: bool) -> Iterator[list[str]]:
    peak = Peak.of(ranking)
    for _, plan in plans(ranking):
        over = plan.bytes - ranking.capacity
        yield [
            format_count(ranking.workload.length),
            ", ".join([words.name(plan), *_choices(plan)]),
            format_seconds(plan.seconds),
            f"{format_seconds(plan.fastest)} to {format_seconds(plan.slowest)}",
            format_bytes(plan.bytes),
            format_bytes(sum(plan.wire.values())),
            f"{peak.model / plan.seconds:.1%}",
            f"{peak.useful / plan.seconds:.1%}",
            "" if over <= 0 else f"{format_bytes(over)} over" if wide else "over",
        ]


def _choices(plan: Plan) -> Iterator[str]:
    """What distinguishes plans of one arrangement and mesh."""
    if plan.context_inside:
        yield "context inside"
    if plan.recompute:
        yield "recompute"
    if plan.sharing.value != "replicated":
        yield plan.sharing.value


def predictions_as_json(rankings: Sequence[Ranking]) -> str:
    """The document of ``costmodel predict``."""
    first = rankings[0]
    content = {
        "subject": data.subject(first.subject),
        "cluster": data.cluster(first.cluster),
        "predictions": [prediction for ranking in rankings for prediction in _predictions(ranking)],
    }
    return data.dump("predict", content)


def _predictions(ranking: Ranking) -> Iterator[dict[str, Any]]:
    peak = Peak.of(ranking)
    for candidate, plan in plans(ranking):
        counted = {READING[reading]: classes for reading, classes in flops(ranking, candidate).items()}
        more = {
            "frameworks": frameworks.options(plan),
            "longest_tokens": ranking.longest(candidate),
            "flop_by_reading_and_class": counted,
            "mfu": peak.model / plan.seconds,
            "mfu_useful": peak.useful / plan.seconds,
        }
        yield data.workload(ranking.workload) | data.plan(plan, ranking.workload, ranking.capacity) | more
