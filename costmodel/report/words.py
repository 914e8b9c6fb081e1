"""Plans, resources and differences between plans in words."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from costmodel.arrangement import Way
from costmodel.data_parallel import Sharing
from costmodel.plan import Plan
from costmodel.report import frameworks
from costmodel.units import format_bytes, format_seconds

COLLECTIVE = {
    "ring_shift": "ring shift",
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "all_reduce": "all-reduce",
    "all_to_all": "all-to-all",
}

#: Plans whose times differ by less than this factor are as fast as each other.
EQUAL = 1.0005

#: Times that differ by less than this factor may be the same sum, rounded apart.
ROUNDING = 1 + 1e-9


def name(plan: Plan) -> str:
    """A plan in a few words: its strategy with the ranks along each of its axes, and what is combined with it.

    ``ulysses-zigzag 2x4 + tensor 2`` has 2 Ulysses ranks, 4 context ranks and 2 tensor-parallel ranks.
    """
    ways = plan.arrangement.ways
    ranks = "x".join(str(plan.mesh[axis]) for axis in plan.arrangement.axes)
    parts = [f"{_each(way.strategy.name for way in ways)} {ranks}".rstrip()]
    parts += [f"{axis} {plan.mesh[axis]}" for axis in ("tensor", "data") if plan.mesh[axis] > 1]
    first = [layer.mixer.kernels[0] for layer in plan.alone.evaluator.subject.layers]
    kernels = [way.kernel for way in ways]
    return " + ".join(parts) + ("" if kernels == first else f", {_each(kernels)}")


def _each(names: Iterable[str]) -> str:
    """What each kind of layer has, in the order of the model; once where all have the same."""
    every = list(names)
    return every[0] if len(set(every)) == 1 else " & ".join(every)


def mesh(plan: Plan) -> str:
    """The axes of the mesh that have more than one rank, outermost first: ``context 4 x tensor 2``."""
    return " x ".join(f"{axis} {ranks}" for axis, ranks in frameworks.axes(plan).items()) or "1 device"


def details(plan: Plan, train: bool) -> list[str]:
    """What else a plan decides, a phrase each."""
    kernel = {"fused": "fused kernel", "vanilla": "vanilla kernel, scores in memory"}
    said = [f"mesh {mesh(plan)}", *(kernel.get(used, f"{used} kernel") for used in plan.arrangement.kernels)]
    asked = plan.alone.evaluator.workload.length
    if plan.length > asked:
        said.append(f"{asked:,} tokens padded to {plan.length:,} (+{plan.length / asked - 1:.2%})")
    if round(plan.imbalance, 2) > 1:
        said.append(f"the busiest rank computes {plan.imbalance:.2f} times as long as the mean one")
    if train:
        said.append("each layer run again before its backward pass" if plan.recompute else "all activations kept")
        said += _shared(plan)
    return said


def _shared(plan: Plan) -> list[str]:
    replicas = plan.mesh["data"] * plan.mesh["context"] * plan.mesh["ulysses"]
    if replicas == 1:
        return []
    held = {
        Sharing.NOTHING: f"{replicas} replicas each with all of the optimizer state",
        Sharing.OPTIMIZER: f"optimizer state shared out over {replicas} replicas (ZeRO-1)",
        Sharing.EVERYTHING: f"weights, gradients and optimizer state shared out over {replicas} replicas (ZeRO-3)",
    }
    return [held[plan.sharing]]


def ways(refused: Iterable[Way], kernels: Collection[str], verbose: bool) -> Iterator[str]:
    """Ways by their strategies, with the kernels where it is not all of them.

    Args:
        kernels: all of the mixers at hand.
        verbose: also those that only add tensor parallelism to another one.
    """
    found: dict[tuple[str, bool], list[str]] = {}
    for way in refused:
        found.setdefault((way.strategy.name, way.tensor), []).append(way.kernel)
    for (strategy, tensor), used in found.items():
        if verbose or not tensor or not set(used) <= set(found.get((strategy, False), ())):
            told = "" if set(used) == set(kernels) else f" ({' and '.join(used)} kernel{'s' * (len(used) > 1)})"
            yield f"{strategy}{' + tensor parallel' if tensor else ''}{told}"


def counted(number: float, what: str) -> str:
    """So many of a thing.

    >>> counted(1, "message"), counted(1200, "message")
    ('1 message', '1,200 messages')
    """
    return f"{number:,.0f} {what}{'s' if number != 1 else ''}"


def is_link(label: str) -> bool:
    """Whether an entry of a breakdown is a link (``axis collective``) and not a kernel family."""
    return " " in label


def busy(label: str) -> str:
    """What an entry of a breakdown keeps busy."""
    if label == "host":
        return "the host, which launches kernels"
    if not is_link(label):
        return f"{label.replace('_', ' ')} kernels"
    axis, collective = label.split()
    return f"{COLLECTIVE[collective]} over {ranks(axis)}"


def ranks(axis: str) -> str:
    """The ranks along an axis."""
    return "the replicas" if axis == "replicas" else f"{axis} ranks"


def slower(plan: Plan, best: Plan) -> str:
    """How much slower a plan is than the best."""
    ratio = plan.seconds / best.seconds
    return f"{ratio - 1:+.1%}" if ratio < 2 else f"{ratio:.3g}x"


def why(plan: Plan, best: Plan | None, capacity: float) -> str:
    """Why a plan is not chosen."""
    if plan.bytes > capacity:
        largest = max(plan.memory, key=lambda kind: plan.memory[kind])
        return f"{format_bytes(plan.bytes - capacity)} over: {largest} {format_bytes(plan.memory[largest])}"
    if best is None:
        return ""
    reason = f"{slower(plan, best)}: {_why_slower(plan, best)}" if plan.seconds > EQUAL * best.seconds else "as fast"
    if ROUNDING * plan.fastest < best.fastest:
        return f"{reason}; faster at the favourable end"
    return f"{reason}; faster at the unfavourable end" if ROUNDING * plan.slowest < best.slowest else reason


def _why_slower(plan: Plan, best: Plan) -> str:
    """The larger of what it computes more, and what it waits more for communication."""
    waits, computes = plan.exposed - best.exposed, plan.compute - best.compute
    links = waits > computes
    more = {
        label: seconds - best.breakdown.get(label, 0)
        for label, seconds in plan.breakdown.items()
        if is_link(label) == links
    }
    most = max(more, key=lambda label: more[label], default="communication")
    if links:
        what = COLLECTIVE[most.split()[1]] if is_link(most) else most
        return f"{format_seconds(waits)} more exposed, {what}"
    return f"{format_seconds(max(computes, 0))} more work, {most.replace('_', ' ')}"
