"""Fused attention on four cards against materialised attention on one, as predicted from a profile.

    python benchmarks/fused_on_four.py
    python benchmarks/fused_on_four.py --cluster 4xrtx4090_p2p --heads 32 --head-dim 128
    python benchmarks/fused_on_four.py --save benchmarks/results/fused_on_four.jsonl

One attention layer with its projections, batch 1, causal and full, forward and training: at lengths that materialised
attention can hold on one card (powers of two, and the longest), the time of the best strategy on all cards, of fused
attention on one, and how many times faster all cards are, with the 90 % interval of each; then the longest sequence
that each can hold. Weights and activations are of ``--dtype``; materialised attention is also told in float32, in which
textbooks run it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from costmodel.estimate import Chosen, estimate
from costmodel.hardware.cluster import Cluster, parse_cluster
from costmodel.plan import Plan, Ranking, rank, speedup
from costmodel.subject import Subject, from_mixer
from costmodel.units import format_count, format_seconds
from costmodel.workload import WIDTHS, Phase, Workload

#: The shortest length told.
SHORTEST = 1024

#: Lengths are whole numbers of so many tokens, which every mesh of four divides.
GRAIN = 512

Range = tuple[float, float, float]  #: a number and the ends of its 90 % interval


@dataclass(frozen=True)
class Asked:
    """What is compared."""

    cluster: Cluster
    subject: Subject
    phase: Phase
    causal: bool
    dtype: str
    plain_dtype: str  #: of materialised attention

    def workload(self, length: int, dtype: str) -> Workload:
        return Workload(length, 1, self.phase, self.causal, dtype)

    def on_one(self, kernel: str, length: int, dtype: str) -> Ranking:
        """One implementation on one card."""
        workload, chosen = self.workload(length, dtype), Chosen(("whole",), {}, (kernel,))
        return estimate(self.subject, workload, Cluster(self.cluster.profile, 1), chosen)

    def on_all(self, length: int) -> Ranking:
        """Fused attention in every way that is valid on all cards."""
        return rank(self.subject, self.workload(length, self.dtype), self.cluster, ("fused",))


@dataclass(frozen=True)
class Row:
    """Predictions at one length: seconds, and times as fast as materialised attention on one card."""

    length: int
    strategy: str
    materialised: Range
    fused_on_one: Range
    fused_on_all: Range
    faster_on_one: Range
    faster_on_all: Range


@dataclass(frozen=True)
class Found:
    """The answer to one question.

    Attributes:
        longest: tokens that fit, for materialised and fused attention on one card and for the best way on all.
        longest_strategy: the way on all cards that holds most.
    """

    cluster: str
    heads: int
    head_dim: int
    phase: str
    causal: bool
    dtype: str
    materialised_dtype: str
    rows: tuple[Row, ...]
    longest: tuple[int, int, int]
    longest_strategy: str


def answer(asked: Asked) -> Found:
    """Compare at every length."""
    longest = asked.on_one("vanilla", SHORTEST, asked.plain_dtype).longest(0) // GRAIN * GRAIN
    everywhere = asked.on_all(SHORTEST)
    most, where = everywhere.longest_of_all
    sizes = asked.subject.layers[0].sizes
    return Found(
        str(asked.cluster),
        int(sizes["H"]),
        int(sizes["d"]),
        asked.phase,
        asked.causal,
        asked.dtype,
        asked.plain_dtype,
        tuple(_row(asked, length) for length in _lengths(longest)),
        (longest, asked.on_one("fused", SHORTEST, asked.dtype).longest(0), most),
        _way(everywhere.plan(where)),
    )


def _lengths(longest: int) -> Iterator[int]:
    length = SHORTEST
    while length < longest:
        yield length
        length *= 2
    yield longest


def _row(asked: Asked, length: int) -> Row:
    plain = asked.on_one("vanilla", length, asked.plain_dtype).plan(0)
    fused = asked.on_one("fused", length, asked.dtype).plan(0)
    best = asked.on_all(length).best(1)[0]
    times = [(plan.seconds, *plan.interval) for plan in (plain, fused, best)]
    return Row(length, _way(best), times[0], times[1], times[2], speedup(fused, plain), speedup(best, plain))


def _way(plan: Plan) -> str:
    """The strategy, and the ranks along its axes."""
    names = "+".join(way.strategy.name for way in plan.arrangement.ways)
    axes = " ".join(f"{axis} {ranks}" for axis, ranks in plan.mesh.items() if ranks > 1)
    return f"{names}, {axes}"


def told(found: Found) -> Iterator[str]:
    """The answer as Markdown."""
    mask = "causal" if found.causal else "full"
    yield (
        f"{mask}, {found.phase}, {found.heads} heads of {found.head_dim}, {found.cluster}, fused in {found.dtype}, "
        f"materialised in {found.materialised_dtype}"
    )
    yield ""
    yield "| tokens | materialised, one | fused, one | fused, all | best way on all | one, times as fast | all |"
    yield "|---:|---:|---:|---:|---|---:|---:|"
    for row in found.rows:
        seconds = " | ".join(_seconds(x) for x in (row.materialised, row.fused_on_one, row.fused_on_all))
        ratios = " | ".join(_times(x) for x in (row.faster_on_one, row.faster_on_all))
        yield f"| {row.length:,} | {seconds} | {row.strategy} | {ratios} |"
    one, fused, every = found.longest
    yield ""
    yield (
        f"Longest: materialised on one card {one:,} tokens, fused on one {format_count(fused)}, on all "
        f"{format_count(every)} ({found.longest_strategy})."
    )
    yield ""


def _seconds(found: Range) -> str:
    return f"{format_seconds(found[0])} ({format_seconds(found[1])} to {format_seconds(found[2])})"


def _times(found: Range) -> str:
    return f"{found[0]:.3g} ({found[1]:.3g} to {found[2]:.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cluster", default="4xrtx4090")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--dtype", choices=WIDTHS, default="bf16")
    parser.add_argument("--save", type=Path, help="write a JSON Lines file")
    given = parser.parse_args()
    subject = from_mixer("attention", heads=given.heads, head_dim=given.head_dim)
    phases: tuple[Phase, ...] = ("forward", "train")
    questions = [
        Asked(parse_cluster(given.cluster), subject, phase, causal, given.dtype, plain)
        for plain in dict.fromkeys((given.dtype, "fp32"))
        for phase in phases
        for causal in (True, False)
    ]
    found = [answer(asked) for asked in questions]
    if given.save is not None:
        given.save.write_text("".join(f"{json.dumps(asdict(one))}\n" for one in found), encoding="utf-8")
    for one in found:
        sys.stdout.write("\n".join(told(one)) + "\n")


if __name__ == "__main__":
    main()
