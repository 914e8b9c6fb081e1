"""A million tokens through every kind of token mixing whose cost allows it, on two CPU ranks, beside the prediction.

    python benchmarks/million_tokens.py
    python benchmarks/million_tokens.py --seq 16Ki --only attention,mamba2 --results /tmp/try

Exact softmax attention (causal, one head of 64, bfloat16, zigzag ring) and families of linear cost (float32; width 64,
one head of 64 where there are heads; state spaces that make filters or scans in memory: width 16): one layer, forward.
Every method is predicted before it runs, checked against one process in float64 on its first tokens, then run: families
three times (to warm up, for time, for memory), attention once. One that a probe of fewer tokens shows to be too large
for the memory is left out. Predictions and results (time, bytes, memory of every rank) go to a log and a JSON Lines
file; a method that the file has at this length is not run again, so that a run that was cut off goes on where it ended.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from costmodel.mixer import mixers
from costmodel.subject import from_mixer
from costmodel.units import format_bytes, format_count, format_seconds, parse_count
from validate.job import Job
from validate.launch import RankError, RankPool
from validate.measured import Measured, measure
from validate.measuring import WrongResultError, peak
from validate.predicted import Predicted, predict
from validate.run_page import as_record, save, total

RANKS, PROFILE = 2, "cpu"
#: One head of 64, by the symbols of hyperparameters.
SMALL = {"H": 1, "H_kv": 1, "d": 64, "e": 64}
#: A probe of so many times fewer tokens says what memory the whole will take, and this part of what is free it may.
PROBE, SHARE = 16, 0.85


@dataclass(frozen=True)
class Method:
    """A mixer and how it is spread.

    Attributes:
        sizes: hyperparameters besides ``SMALL``; channels are as many as the ``width`` of the model.
        kernel: implementation; the mixer's first if not given.
        repetitions: as of ``validate.measured.measure``: 0 runs it once, timed and followed at the same time.
    """

    name: str
    mixer: str
    strategy: str
    sizes: Mapping[str, int] = field(default_factory=dict)
    axis: str = "context"
    dtype: str = "fp32"
    kernel: str | None = None
    width: int = 64
    repetitions: int = 1

    def job(self, length: int) -> Job:
        known = mixers.get(self.mixer).sizes
        small = SMALL | {"D_i": self.width}
        sizes = {name: small[size.symbol] for name, size in known.items() if size.symbol in small} | dict(self.sizes)
        subject = from_mixer(self.mixer, self.width, **sizes)
        kernel = self.kernel or subject.layers[0].mixer.kernels[0]
        way = self.mixer, self.strategy, kernel, {self.axis: RANKS}
        return Job(*way, length, 1, "forward", subject.causal, self.dtype, sizes, self.width)


def _states(*names: str) -> list[Method]:
    return [Method(name, name, "state-gather") for name in names]


METHODS = [
    Method("sliding window of 4Ki", "attention", "window-halo", {"window": 4096}),
    Method("longformer", "longformer", "pattern-exchange"),
    Method("bigbird", "bigbird", "pattern-exchange"),
    Method("longnet", "longnet", "pattern-exchange"),
    *_states("linear-attention", "retnet", "lightning", "gla", "hgrn2", "mamba2"),
    *_states("deltanet", "gated-deltanet", "rwkv7", "performer", "log-linear-mamba2"),
    Method("kda", "kda", "state-gather", {"chunk": 16}),  # more overflows float32 with random weights
    Method("based", "based", "state-gather", {"head_dim": 16}),
    Method("mamba1", "mamba1", "state-gather", kernel="associative", width=16),
    Method("s5", "s5", "state-gather", width=16),
    Method("hyena", "hyena", "distributed-fft"),
    Method("h3", "h3", "distributed-fft", width=16),
    Method("s4", "s4", "ulysses", axis="ulysses", width=16),
    Method("s4d", "s4d", "distributed-fft", width=16),
    Method("fnet", "fnet", "distributed-fft"),
    Method("shortconv", "shortconv", "halo"),
    Method("lightconv", "lightconv", "halo"),
    Method("poolformer", "poolformer", "halo"),
    Method("nystromformer", "nystromformer", "all-reduce"),
    Method("attention", "attention", "zigzag", dtype="bf16", repetitions=0),
]


def main() -> None:
    asked = _asked()
    length = parse_count(asked.seq, "--seq")
    asked.results.mkdir(parents=True, exist_ok=True)
    records, log = asked.results / "million_tokens.jsonl", asked.results / "million_tokens.log"

    def tell(what: str) -> None:
        line = f"{datetime.now(UTC).isoformat(timespec='seconds')} {what}\n"
        sys.stderr.write(line)
        with log.open("a") as file:
            file.write(line)

    wanted = None if asked.only is None else asked.only.split(",")
    methods = [method for method in METHODS if wanted is None or method.name in wanted]
    done = _done(records, length)
    tell(f"{format_count(length)} tokens on {RANKS} ranks; {len(done)} of {len(METHODS)} methods have been run")
    for method in methods:
        if method.name not in done:
            _run(method, length, asked.timeout, records, tell)


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seq", default="1Mi", help="tokens")
    parser.add_argument("--only", metavar="NAME,...", help="methods; all by default")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder of the files")
    parser.add_argument("--timeout", type=float, default=7200.0, help="seconds that one method may take")
    return parser.parse_args()


def _done(records: Path, length: int) -> set[str]:
    """Methods that have been run at this length."""
    if not records.exists():
        return set()
    found = (json.loads(line) for line in records.read_text().splitlines())
    return {record["method"] for record in found if record["job"]["length"] == length}


def _run(method: Method, length: int, timeout_s: float, records: Path, tell: Callable[[str], None]) -> None:
    """Predict and run one method; processes are its own, so that it finds memory as the first one did."""
    job = method.job(length)
    predicted = predict(job, PROFILE)
    tell(f"{method.name} ({job.mixer}, {job.strategy}, {job.dtype}): {_foretold(predicted)}")
    try:
        with RankPool(job.ranks) as pool:
            if (needed := PROBE * sum(pool.run(peak, job.of(length // PROBE), timeout_s=timeout_s))) > _allowed():
                tell(f"{method.name} is left out: it would take {format_bytes(needed)} of memory")
                return
            found = measure(pool, job, method.repetitions, timeout_s, lambda what: tell(f"{method.name}: {what}"))
    except (RankError, WrongResultError) as error:
        tell(f"{method.name} failed: {error}")
        return
    save(records, {"method": method.name} | as_record(job, predicted, found))
    tell(f"{method.name}: {_seen(predicted, found)}")


def _allowed() -> float:
    return SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _foretold(predicted: Predicted) -> str:
    plan = predicted.ranking.plan(0)
    limits = f"{format_seconds(plan.fastest)} to {format_seconds(plan.slowest)}"
    sent = ", ".join(f"{total(own).bytes:,}" for own in predicted.sent)
    held = format_bytes(max(predicted.held))
    return f"predicted {format_seconds(plan.seconds)} ({limits}), {sent} bytes sent, {held} held by a rank"


def _seen(predicted: Predicted, found: Measured) -> str:
    ratio = found.median / predicted.ranking.plan(0).seconds
    sent = ", ".join(f"{total(own).bytes:,}" for own in found.sent)
    error = f"off by {found.checked.error:.1e} on the first {format_count(found.checked.length)} tokens"
    held = format_bytes(max(found.peaks))
    return f"took {format_seconds(found.median)} ({ratio:.2f} x), {sent} bytes sent, {held} held by a rank; {error}"


if __name__ == "__main__":
    main()
