"""Attention as in a textbook on one CPU core, against fused attention on two: where the speed-up comes from.

    python benchmarks/vanilla_against_distributed.py --memory 4GiB
    python benchmarks/vanilla_against_distributed.py --memory 64MiB --rounds 1

At the longest sequence whose materialised scores one process can hold in the given memory (four heads of 64, forward,
causal and full), the speed-up of distributed fused attention is split into steps that multiply to it: fusion (float32,
one process), ranks (two, float32), and precision (bfloat16, two ranks). The longest sequence of each within the same
memory of a process follows from measured bytes: in proportion to the square of the length for vanilla attention, to the
length for fused, inputs included.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from attention_methods import BY_NAME, Case, environment, run_method

from costmodel.units import format_bytes, format_count, parse_bytes
from validate.launch import RankPool

RANKS = 2
#: A tile of the fused kernel: lengths are whole numbers of them, for each rank.
GRAIN = 512
#: The length at which vanilla attention's memory is measured, to find the longest.
PROBED = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", default="4GiB", help="of one process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", type=Path, help="add to a JSON Lines file")
    asked = parser.parse_args()
    memory = parse_bytes(asked.memory, "--memory")
    where = environment()
    with RankPool(RANKS) as pool:
        for causal in (True, False):
            found = compare(pool, causal, memory, asked.rounds) | {"environment": where}
            if asked.save is not None:
                with asked.save.open("a") as file:
                    file.write(json.dumps(found) + "\n")
            sys.stdout.write("\n".join(told(found)) + "\n")


def compare(pool: RankPool, causal: bool, memory: float, rounds: int) -> dict[str, Any]:
    """Seconds and bytes of all ways at the longest length of vanilla attention, in interleaved rounds."""
    longest = _longest(pool, causal, memory)
    case = Case(longest, causal)
    ours = "zigzag" if causal else "ring"
    ways = {
        "vanilla": ("vanilla", case),
        "fused": ("one process", case),
        "ranks": (ours, case),
        "bfloat16": (ours, replace(case, dtype="bfloat16")),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    held: dict[str, int] = {}
    for _ in range(rounds):
        for way, (name, own) in ways.items():
            outcomes = pool.run(run_method, name, own, ranks=BY_NAME[name].ranks, timeout_s=3600)
            seconds[way].append(max(outcome.seconds for outcome in outcomes))
            held[way] = max(outcome.memory for outcome in outcomes) + _inputs(own, BY_NAME[name].ranks)
    lengths = {way: longest * memory / held[way] for way in ways} | {"vanilla": float(longest)}
    return {
        "case": asdict(case),
        "memory_limit_bytes": memory,
        "seconds": seconds,
        "memory_bytes": held,
        "longest": {way: math.floor(length / GRAIN) * GRAIN for way, length in lengths.items()},
    }


def _longest(pool: RankPool, causal: bool, memory: float) -> int:
    """Tokens at which vanilla attention fills the memory, from what it takes at a smaller size."""
    case = Case(PROBED, causal)
    (small,) = pool.run(run_method, "vanilla", case, ranks=1)
    scores = small.memory - 4 * PROBED * case.heads * case.d  # without the output
    longest = math.floor(PROBED * math.sqrt(memory / scores) / GRAIN) * GRAIN
    while scores * (longest / PROBED) ** 2 + _inputs(Case(longest, causal), 1) * 4 / 3 > memory:
        longest -= GRAIN
    return longest


def _inputs(case: Case, ranks: int) -> int:
    """Bytes of a rank's q, k and v."""
    return 3 * case.length // ranks * case.heads * case.d * (2 if case.dtype == "bfloat16" else 4)


def told(found: Mapping[str, Any]) -> Iterator[str]:
    """The split, as Markdown."""
    case, longest, held = found["case"], found["longest"], found["memory_bytes"]
    times = {way: statistics.median(seconds) for way, seconds in found["seconds"].items()}
    mask = "causal" if case["causal"] else "full"
    yield f"{mask}, {format_count(case['length'])} tokens, {format_bytes(found['memory_limit_bytes'])} a process"
    yield ""
    yield "| | seconds | times as fast as the line before | memory of a process | longest in the limit |"
    yield "|---|---|---|---|---|"
    before, titles = times["vanilla"], ("vanilla, one process", "fused", "on two ranks", "in bfloat16")
    for title, (way, time) in zip(titles, times.items(), strict=True):
        step = "" if way == "vanilla" else f"{before / time:.2f}"
        yield f"| {title} | {time:.3g} | {step} | {format_bytes(held[way])} | {longest[way]:,} |"
        before = time
    yield f"| together | | {times['vanilla'] / times['bfloat16']:.2f} | | |"
    yield ""


if __name__ == "__main__":
    main()
