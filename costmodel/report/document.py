"""The answer of ``costmodel plan`` as a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from costmodel.advice import Advice, Change
from costmodel.arrangement import Way
from costmodel.hardware.cluster import Cluster
from costmodel.hardware.provenance import kinds
from costmodel.model import Model
from costmodel.plan import Plan
from costmodel.report import frameworks, words
from costmodel.report.answer import Answer
from costmodel.report.page import Page
from costmodel.subject import Subject
from costmodel.units import format_bytes, format_count, format_rate, format_seconds
from costmodel.workload import LONGEST, Workload

PASS = {
    "forward": "Forward pass",
    "train": "Training step: forward, backward, gradient exchange, optimizer",
    "prefill": "Prefill: forward pass that fills the KV cache",
    "decode": "Decoding: one new token for every sequence",
}
REFUSALS_SHOWN = 3
DOCUMENTS_NOTE = (
    "Documents are kept apart: attention's kernels leave out what lies between two, and states are reset at the first "
    "token of each, in chunks that stay where they are; no rank leaves out messages. FLOPs and time are of the rank "
    "that computes longest; a ring's steps before its own block, and after it, are each taken at their mean, and tiles "
    "as those of whole documents."
)


def print_answers(answers: Sequence[Answer], model: Model | None, verbose: bool) -> None:
    """All passes of one question."""
    ranking = answers[0].ranking
    with Page() as page:
        print_question(page, ranking.subject, ranking.workload, ranking.cluster, ranking.capacity)
        for answer in answers:
            page.heading(PASS[answer.ranking.workload.phase])
            if answer.best is None:
                _print_advice(page, answer)
            else:
                page.facts(_facts(answer, answer.best, verbose))
            _print_others(page, answer, verbose)
            _print_refused(page, answer, verbose)
        page.heading("About these numbers")
        print_notes(page, ranking.cluster, ranking.workload, model)


def print_question(
    page: Page, subject: Subject, workload: Workload, cluster: Cluster, capacity: float, one_length: bool = True
) -> None:
    """What was asked, and of which devices."""
    page.title(subject.name, f"{cluster.devices} x {cluster.profile.device.name}")
    sequences = words.counted(workload.batch, "sequence")
    mask = "causal" if workload.causal else "every token sees every other"
    if workload.documents:
        mask = f"{_documents(workload.documents)}, {mask}"
    length = f" of {_tokens(workload.length)}" if one_length else ""
    after = f" after {_tokens(workload.cached)} in the cache" if workload.cached else ""
    whole = ", logits of all tokens at once" if workload.whole_logits else ""
    gradients = f", gradients of ranks added up in {workload.dtype}" if workload.gradient == "model" else ""
    page.line(f"{sequences}{length}{after}, {mask}, {workload.dtype}{whole}{gradients}")
    page.line(f"{sizes(subject)}", "dim")
    page.line(f"{cluster.profile.title}; {format_bytes(capacity)} usable on each device", "dim")


def _documents(lengths: Sequence[int]) -> str:
    """Packed documents in words."""
    least, most = min(lengths), max(lengths)
    spread = _tokens(most) if least == most else f"{format_count(least)} to {_tokens(most)}"
    return f"packed with {words.counted(len(lengths), 'document')} of {spread}"


def sizes(subject: Subject) -> str:
    """The sizes of a subject's layers by their symbols."""
    said = []
    for layer in subject.layers:
        numbers = " ".join(f"{key}={value}" for key, value in layer.sizes.items())
        window = f" w={layer.window}" if layer.window else ""
        alone = " without feed-forward" if layer.mlp is None else ""
        name = f"{layer.count} x {layer.mixer.name}{alone} "
        said.append(f"{name if subject.vocabulary else ''}{numbers}{window}")
    return "; ".join(said)


def print_notes(page: Page, cluster: Cluster, workload: Workload, model: Model | None) -> None:
    """How far the numbers are to be trusted, and where they come from."""
    profile = cluster.profile
    whole = (
        " It includes how much longer whole runs were seen to take than their kernels." if profile.composition else ""
    )
    page.note(
        "The range is a 90% interval: what the ranges of the profile's numbers do to the prediction, those fitted "
        f"together with their correlation and all others as independent.{whole}"
    )
    counted = kinds(profile)
    number = ", ".join(f"{count} {kind}" for kind, count in counted.items())
    other = f", and has the kernels of {profile.like.profile}" if profile.like else ""
    fitted = "has numbers fitted to published runs" if profile.calibrated else f"is not calibrated{other}"
    page.note(f"{profile.name} {fitted}: {sum(counted.values())} numbers, {number}. Each with its source:")
    page.indented(f"costmodel list profiles {profile.name}", 2)
    if workload.documents:
        page.note(DOCUMENTS_NOTE)
    if model and model.max_positions and workload.length + workload.cached > model.max_positions:
        page.note(f"{model.name} was made for {format_count(model.max_positions)} positions.")


def plan_facts(plan: Plan, workload: Workload, capacity: float) -> Iterator[tuple[str, str | Text]]:
    """What one plan is and costs."""
    train = workload.phase == "train"
    yield "Plan", Text(words.name(plan), "bold green")
    yield (
        "",
        f"{' & '.join(strategy.title for strategy in plan.arrangement.strategies)}; "
        + "; ".join(words.details(plan, train)),
    )
    tokens = workload.batch * (1 if workload.phase == "decode" else workload.length)
    yield (
        "Time",
        Text.assemble(
            (format_seconds(plan.seconds), "bold"),
            f", between {format_seconds(plan.fastest)} and {format_seconds(plan.slowest)}; ",
            format_rate(tokens / plan.seconds, "token"),
        ),
    )
    if plan.extrapolated:
        yield "", f"extrapolated beyond what was measured: {', '.join(_extrapolated(plan))}"
    share = plan.breakdown[plan.bottleneck] / plan.seconds
    seconds = format_seconds(plan.breakdown[plan.bottleneck])
    yield "Bottleneck", f"{words.busy(plan.bottleneck)}, busy for {seconds} ({share:.0%} of the time)"
    yield "Sent", _sent(plan)
    yield "Memory", memory(plan, capacity)


def _extrapolated(plan: Plan) -> Iterator[str]:
    for label, factor in sorted(plan.extrapolated.items(), key=lambda item: -item[1]):
        yield f"{words.busy(label)} {factor:.3g}x"


def memory(plan: Plan, capacity: float) -> Text:
    """Bytes by kind against what there is."""
    kinds = [f"{kind} {format_bytes(size)}" for kind, size in plan.memory.items() if size]
    used = f"{format_bytes(plan.bytes)} of {format_bytes(capacity)} a device ({plan.bytes / capacity:.0%})"
    over = plan.bytes - capacity
    told = f"{used}, {format_bytes(over)} over" if over > 0 else used
    return Text.assemble((told, "bold red" if over > 0 else ""), f": {', '.join(kinds)}")


def _sent(plan: Plan) -> str:
    axes = [
        f"{format_bytes(size)} in {words.counted(plan.messages[axis], 'message')} over {words.ranks(axis)}"
        for axis, size in plan.wire.items()
        if size
    ]
    if not axes:
        return "nothing"
    total = format_seconds(plan.communication)
    hidden = f"{format_seconds(plan.exposed)} of its {total} exposed" if plan.exposed else f"all {total} of it hidden"
    return f"{' and '.join(axes)}, by each device; {hidden}"


def _facts(answer: Answer, best: Plan, verbose: bool) -> Iterator[tuple[str, str | Text]]:
    yield from plan_facts(best, answer.ranking.workload, answer.ranking.capacity)
    held, most = answer.longest
    also = "" if most <= held else f"; {_tokens(most)} in {words.name(answer.longest_plan)}"
    yield "Longest", f"{_tokens(held)} would fit in this plan{also}"
    if verbose:
        yield from frameworks.facts(best)


def _tokens(length: int) -> str:
    if length > LONGEST - 2**16:
        return "any number of tokens"
    return f"{format_count(length)} token{'s' if length != 1 else ''}"


def _print_others(page: Page, answer: Answer, verbose: bool) -> None:
    others = answer.others if verbose else answer.others[: answer.top]
    if not others:
        return
    page.table(
        ["other plans", "time", "memory", "why not"], [_row(plan, answer) for plan in others], right=["time", "memory"]
    )
    if len(others) < len(answer.others):
        page.note(f" and {len(answer.others) - len(others)} more (--top {len(answer.others)})")


def _row(plan: Plan, answer: Answer) -> list[str | Text]:
    capacity = answer.ranking.capacity
    reason = words.why(plan, answer.best, capacity)
    cells = [words.name(plan), format_seconds(plan.seconds), format_bytes(plan.bytes), reason]
    return [Text(cell, "" if plan.bytes <= capacity else "dim") for cell in cells]


def _print_refused(page: Page, answer: Answer, verbose: bool) -> None:
    by_reason: dict[str, list[Way]] = {}
    for way, reasons in answer.ranking.refused.items():
        by_reason.setdefault("; ".join(reasons), []).append(way)
    kernels = {kernel for layer in answer.ranking.subject.layers for kernel in layer.mixer.kernels}
    shown = list(by_reason.items())[: None if verbose else REFUSALS_SHOWN]
    page.gap()
    page.facts(
        ("Refused" if number == 0 else "", f"{', '.join(words.ways(ways, kernels, verbose))}: {reason}")
        for number, (reason, ways) in enumerate(shown)
    )
    if len(shown) < len(by_reason):
        more = len(by_reason) - len(shown)
        page.note(f" and {more} more reason{'s' if more > 1 else ''} (--verbose)")
    page.facts([("Searched", _searched(answer))])


def _searched(answer: Answer) -> str:
    ranking = answer.ranking
    return f"{len(ranking.places):,} plans in {format_seconds(answer.took)}; {len(ranking.order):,} of them fit"


def _print_advice(page: Page, answer: Answer) -> None:
    assert answer.advice is not None
    advice, capacity = answer.advice, answer.ranking.capacity
    page.line(f"No plan fits: the nearest is {format_bytes(advice.missing)} a device too large.", "bold red")
    page.gap()
    page.facts(_advice_facts(answer, advice, capacity))


def _advice_facts(answer: Answer, advice: Advice, capacity: float) -> Iterator[tuple[str, str | Text]]:
    profile = answer.ranking.cluster.profile.name
    yield "Nearest", Text(words.name(advice.nearest), "bold")
    yield "", memory(advice.nearest, capacity)
    yield "", f"it would take {format_seconds(advice.nearest.seconds)}"
    if advice.longest:
        yield "Shorter", f"{_tokens(advice.longest)} fit, in {words.name(advice.longest_plan)}"
    else:
        yield "Shorter", "no length fits: weights and their state alone are too large"
    if advice.devices:
        yield "More", f"{advice.devices}x{profile} would hold it: the smallest such number of 2^k or 3 x 2^k devices"
    else:
        yield "More", f"no number of {profile} up to 4096 was found that would hold it"
    for change in advice.changes:
        yield "Instead" if change is advice.changes[0] else "", _change(change)


def _change(change: Change) -> str:
    note = f" ({change.note})" if change.note else ""
    if change.fits:
        return f"{change.what}: fits, with {format_bytes(change.bytes)} a device{note}"
    if change.bytes == float("inf"):
        return f"{change.what}: not possible{note}"
    over = format_bytes(change.bytes - change.capacity)
    return f"{change.what}: not enough, still {over} a device too large{note}"
