"""Exact softmax attention on two CPU ranks, beside one process and beside other implementations, in one run.

    python benchmarks/distributed_attention.py --lengths 4Ki,16Ki --save benchmarks/results/distributed_attention.jsonl
    python benchmarks/distributed_attention.py --table benchmarks/results/distributed_attention.jsonl

Four heads of 64, float32, one thread a rank. One process is torch's ``scaled_dot_product_attention``. Peers are
yunchang (with ``AttnType.TORCH_MATH``, which has no backward on a CPU) and ring-attention-pytorch, where they are
installed (``pip install 'costmodel[benchmarks]'``); those that are not are named. Rounds are interleaved: every round
runs every method once. A run that is expected to take longer than ``--limit`` seconds, or to hold more scores than
memory is free, is left out, and the record says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby, product
from pathlib import Path
from typing import Any

from attention_methods import BY_NAME, METHODS, Case, Method, Outcome, environment, free_bytes, run_method

from costmodel.units import format_count, parse_count
from validate.launch import RankError, RankPool

#: The part of free memory that scores may take.
SHARE = 0.75
RANKS = 2
ONE = "one process"
OURS = ("ring", "zigzag", "ulysses")


def main() -> None:
    asked = _asked()
    if asked.table is not None:
        records = [json.loads(line) for line in asked.table.read_text().splitlines()]
        sys.stdout.write("\n".join(table(records)) + "\n")
        return
    methods = [method for method in METHODS if method.name != "vanilla"]
    absent = [method.name for method in methods if not method.there]
    if absent:
        _tell(f"left out, because not installed: {', '.join(absent)}")
    methods = [method for method in methods if method.there]
    rows = [
        Case(parse_count(length, "--lengths"), causal == "causal", way == "training")
        for way, causal, length in product(asked.passes.split(","), asked.masks.split(","), asked.lengths.split(","))
    ]
    where, records = environment(), []
    with RankPool(RANKS) as pool:
        _warm_up(pool, methods)
        slowest: dict[tuple[str, bool, bool], tuple[float, float]] = {}
        for case in rows:
            for record in _row(pool, methods, case, asked, slowest):
                records.append(record | {"environment": where})
                if asked.save is not None:
                    with asked.save.open("a") as file:
                        file.write(json.dumps(records[-1]) + "\n")
    sys.stdout.write("\n".join(table(records)) + "\n")


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="4Ki,8Ki,16Ki,32Ki,64Ki")
    parser.add_argument("--masks", default="causal,full")
    parser.add_argument("--passes", default="forward,training")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds that one run may take")
    parser.add_argument("--save", type=Path, help="add to a JSON Lines file")
    parser.add_argument("--table", type=Path, help="only print the table of saved records")
    return parser.parse_args()


def _warm_up(pool: RankPool, methods: Sequence[Method]) -> None:
    """What is imported and compiled at a first call is not timed."""
    for method, causal, train in product(methods, (False, True), (False, True)):
        if method.backward or not train:
            pool.run(run_method, method.name, Case(512, causal, train), ranks=method.ranks)


def _row(
    pool: RankPool,
    methods: Sequence[Method],
    case: Case,
    asked: argparse.Namespace,
    slowest: dict[tuple[str, bool, bool], tuple[float, float]],
) -> Iterator[dict[str, Any]]:
    """The records of one case, one for each method."""
    reasons = {method.name: _left_out(method, case, asked.limit, slowest) for method in methods}
    done: dict[str, list[list[Outcome]]] = {method.name: [] for method in methods}
    for _ in range(asked.rounds):
        for method in methods:
            if reasons[method.name] is not None:
                continue
            try:
                found = pool.run(run_method, method.name, case, ranks=method.ranks, timeout_s=10 * asked.limit)
            except RankError as error:
                reasons[method.name] = str(error).splitlines()[0]
                continue
            done[method.name].append(found)
            _tell(f"{case}: {method.name} {max(own.seconds for own in found):.3f} s")
    for method in methods:
        if done[method.name] and reasons[method.name] is None:
            yield _record(method, case, done[method.name], slowest)
        else:
            yield {"method": method.name, "case": asdict(case), "left_out": reasons[method.name]}


def _left_out(
    method: Method, case: Case, limit: float, slowest: Mapping[tuple[str, bool, bool], tuple[float, float]]
) -> str | None:
    """Why a method does not run a case, if so."""
    if method.name == "zigzag" and not case.causal:
        return "balances causal masks"
    if method.name == "ring" and case.causal:
        return "unbalanced under a causal mask: zigzag"
    if case.train and not method.backward:
        return "has no backward on a CPU"
    if (needed := method.ranks * method.scores(case)) > SHARE * free_bytes():
        return f"would hold {needed / 2**30:.0f} GiB of scores"
    if (known := slowest.get((method.name, case.causal, case.train))) is not None:
        expected = known[1] * case.flops / known[0]
        if expected > limit:
            return f"would take about {expected:.0f} s"
    return None


def _record(
    method: Method,
    case: Case,
    rounds: Sequence[Sequence[Outcome]],
    slowest: dict[tuple[str, bool, bool], tuple[float, float]],
) -> dict[str, Any]:
    seconds = [max(own.seconds for own in every) for every in rounds]
    slowest[method.name, case.causal, case.train] = case.flops, statistics.median(seconds)
    return {
        "method": method.name,
        "case": asdict(case),
        "seconds": seconds,
        "cpu_seconds": [max(own.cpu_seconds for own in every) for every in rounds],
        "memory_bytes": [max(every[rank].memory for every in rounds) for rank in range(method.ranks)],
        "relative_error": max(own.error for every in rounds for own in every),
        "relative_error_of_gradient": max((own.gradient_error or 0.0 for own in rounds[0]), default=0.0),
    }


def table(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Seconds, and memory with accuracy, as two tables in Markdown."""
    names = [name for name in BY_NAME if any(record["method"] == name for record in records)]
    where = records[0]["environment"]
    yield f"{where['machine']}, torch {where['torch']}, {where['date'][:10]}."
    yield ""
    yield "Seconds: the median of the rounds (least to most); x: how many times as long as the fastest of ours."
    yield ""
    yield from _rows(records, names, _seconds)
    yield ""
    yield "The most MiB that a rank allocates, without its inputs; the worst error of a few queries against float64,"
    yield "relative to the root mean square."
    yield ""
    yield from _rows(records, names, _memory)


def _rows(
    records: Sequence[Mapping[str, Any]], names: Sequence[str], cell: Callable[[Mapping[str, Any], float], str]
) -> Iterator[str]:
    yield f"| pass, mask, tokens | {' | '.join(names)} |"
    yield f"|---|{'---|' * len(names)}"
    for case, group in groupby(records, lambda record: record["case"]):
        found = {record["method"]: record for record in group}
        best = min((statistics.median(found[n]["seconds"]) for n in OURS if "seconds" in found.get(n, ())), default=1.0)
        cells = [
            cell(found[n], best) if "seconds" in found.get(n, ()) else found.get(n, {}).get("left_out", "")
            for n in names
        ]
        title = f"{'training' if case['train'] else 'forward'}, {'causal' if case['causal'] else 'full'}"
        yield f"| {title}, {format_count(case['length'])} | {' | '.join(cells)} |"


def _seconds(record: Mapping[str, Any], best: float) -> str:
    seconds = record["seconds"]
    told = f"{statistics.median(seconds):.3g} ({min(seconds):.3g} to {max(seconds):.3g})"
    return told if record["method"] in OURS else f"{told}, **{statistics.median(seconds) / best:.2f} x**"


def _memory(record: Mapping[str, Any], best: float) -> str:
    return f"{max(record['memory_bytes']) / 2**20:.0f}; {record['relative_error']:.0e}"


def _tell(what: str) -> None:
    sys.stderr.write(f"{what}\n")


if __name__ == "__main__":
    main()
