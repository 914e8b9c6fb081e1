"""Predictions of published end-to-end runs that no fit has seen, against what was measured.

    python benchmarks/published_runs.py               a table of all runs, and how often the 90 % interval holds
    python benchmarks/published_runs.py --by run      every run
    python benchmarks/published_runs.py --by source   one line for each source

Attention alone is the strategy's own program without projections, on the rank with the most work; a step of a model is
what ``costmodel predict`` says of it. At the end: what has to be added to the ranges of kernels and messages for nine
in ten runs to be in their interval (``composition`` of the profiles), and how many are if a source's own runs are left
out of finding that.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from calibrate.composition import Missed, ends, held_out
from calibrate.published_runs import PublishedRun, read_runs
from costmodel.carries.pairs import Pairs
from costmodel.compiled import Compiled
from costmodel.data_parallel import Sharing
from costmodel.estimate import Chosen, estimate
from costmodel.expression import lift
from costmodel.hardware.cluster import Cluster
from costmodel.hardware.profile import Profile, load_profile, placed
from costmodel.hardware.provenance import numbers
from costmodel.hardware.quantity import Quantity
from costmodel.huggingface import read_config
from costmodel.masks import Mask
from costmodel.ops.mesh import Axis
from costmodel.rates import Rates
from costmodel.strategy import strategies
from costmodel.subject import from_model
from costmodel.tensor import Tensor
from costmodel.timing import times
from costmodel.trace import Tracer, Widths, trace
from costmodel.uncertainty import Uncertainty
from costmodel.workload import Workload

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

#: Clock of matrix units at 500 W instead of 700 W, with the cube root of power (frequency x voltage squared, and the
#: voltage as the frequency).
AT_500_W = (500 / 700) ** (1 / 3)

#: Profiles by what a source calls its machine, and factors on numbers of that profile where the machine differs.
MACHINES: dict[str, tuple[str, Mapping[str, float]]] = {
    "A100": ("a100", {}),
    "A100-80GB": ("a100", {}),
    "A100-SXM4-80GB": ("a100", {}),
    "H100-80GB": ("h100", {}),
    "H800": ("h100", {"links[0]": 400 / 900}),  # NVLink of 400 GB/s both ways instead of 900
    "H100 96GB HBM2e 2.4TB/s": (
        "h100",
        {
            "device.memory_bytes_per_s": 2.4 / 3.35,
            "device.memory_bytes": 96 / 80,
            **{f"device.kernels.{family}.compute": AT_500_W for family in ("gemm", "attention", "attention_backward")},
        },
    ),
}

#: Relative errors in the groups of the table beyond this are worth a look.
NOTABLE = 0.3


@dataclass(frozen=True)
class Prediction:
    """What is said of a run.

    Attributes:
        own: ends of the 90 % interval from kernels and messages alone.
        ends: those of the whole interval.
    """

    seconds: float
    own: tuple[float, float]
    ends: tuple[float, float]

    def missed(self, run: PublishedRun) -> Missed:
        """The run against this prediction."""
        low, high = (float(abs(np.log(end / self.seconds))) for end in self.own)
        return Missed(run.source, float(np.log(run.seconds / self.seconds)), low, high)


def machine(name: str) -> Profile:
    """The profile of a source's machine."""
    profile, factors = MACHINES[name]
    held = load_profile(profile)
    changed: dict[str, Quantity | None] = {}
    for start, factor in factors.items():
        for key, quantity in numbers(held):
            if key == start or (key.startswith(f"{start}.") and _is_rate(key)):
                ends = [None if end is None else end * factor for end in (quantity.low, quantity.high)]
                changed[key] = replace(quantity, value=quantity.value * factor, low=ends[0], high=ends[1])
    return placed(held, changed)


def _is_rate(key: str) -> bool:
    return key.endswith("bytes_per_s") or ".collectives." in key


def predicted(run: PublishedRun) -> Prediction:
    """What this project says of a run."""
    profile = machine(run.hardware)
    return _step(run, profile) if run.model else _attention(run, profile)


def _step(run: PublishedRun, profile: Profile) -> Prediction:
    subject = from_model(read_config(EXAMPLES / f"{run.model}.json"))
    ranks = {"context": run.context, "ulysses": run.ulysses, "data": run.devices // run.context // run.ulysses}
    sharing = Sharing(run.sharing) if run.devices > 1 else Sharing.NOTHING
    chosen = Chosen((run.strategy,), ranks, recompute=bool(run.recompute), sharing=sharing)
    ranking = estimate(subject, Workload(run.length, run.batch, "train"), Cluster(profile, run.devices), chosen)
    group = ranking.groups[0]
    own = group.evaluator.uncertainty.interval(group.moved_seconds())
    return Prediction(float(group.costs()["seconds"][0]), own, group.interval())


def _attention(run: PublishedRun, profile: Profile) -> Prediction:
    seconds = _formula(run, profile.device.kernels.attention.tile or 1)
    uncertainty = Uncertainty.of(profile)
    every = np.array([seconds(moved_profile) for _, moved_profile in uncertainty.moved])
    composition = [profile.composition.layer] if profile.composition else []
    return Prediction(float(every[0]), uncertainty.interval(every), uncertainty.interval(every, composition))


def _formula(run: PublishedRun, tile: int) -> Callable[[Profile], float]:
    """Seconds of attention alone by a profile."""
    sizes = {name: size for name, size in (("ulysses", run.ulysses), ("context", run.context)) if size > 1}
    axes = {name: Axis(name, size, size - 1) for name, size in sizes.items()}
    strategy = strategies.get(run.strategy)
    tokens = run.length // run.context // run.ulysses
    shapes = [(run.batch, heads, tokens, run.head_dim) for heads in (run.heads, run.kv_heads, run.kv_heads)]

    def attention(ops: Tracer, q: Tensor, k: Tensor, v: Tensor, _: object) -> Tensor:
        return strategy.apply(ops, axes, Pairs(q, k, v, Mask(causal=True), run.head_dim**-0.5))

    program = trace(
        Tracer(Widths(2, 4, 4), tile),
        attention,
        [Tensor.new(shape, 2) for shape in shapes],
        {},
        train=run.phase == "train",
    )
    formula = lift(times(program.forward).total + times(program.backward).total)
    compiled = Compiled({"seconds": formula})
    apart = {"ulysses": 1, "context": run.ulysses}

    def seconds(profile: Profile) -> float:
        rates = Rates(Cluster(profile, run.devices), "bf16")
        spans = ({name: np.full(1, values[name]) for name in sizes} for values in (sizes, apart))
        values = rates.device(compiled.symbols) | rates.links(compiled.symbols, *spans)
        return float(np.reshape(compiled(values)["seconds"], -1)[0])

    return seconds


Predicted = list[tuple[PublishedRun, Prediction]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--by", choices=("group", "run", "source"), default="group")
    by = parser.parse_args().by
    found = [(run, predicted(run)) for run in read_runs()]
    groups: dict[str, Predicted] = {}
    for run, prediction in found:
        kind = run.model or f"attention {run.phase}, {'one device' if run.devices == 1 else run.strategy}"
        groups.setdefault(run.source if by == "source" else f"{run.what}: {kind}", []).append((run, prediction))
    for name, pairs in groups.items():
        sys.stdout.write(_line(name, pairs))
        for run, prediction in pairs if by == "run" else ():
            shape = f"L={run.length} B={run.batch} H={run.heads}/{run.kv_heads} d={run.head_dim}"
            sys.stdout.write(_line(f"  {shape} ulysses={run.ulysses} context={run.context}", [(run, prediction)]))
    sys.stdout.write(_line("all", found))
    sys.stdout.writelines(_composition(found))


def _composition(found: Predicted) -> Iterator[str]:
    """What composition is found to be, of attention alone and of models, and how well each source's is foreseen."""
    for kind, of_models in (("layer", False), ("model", True)):
        missed = [prediction.missed(run) for run, prediction in found if bool(run.model) is of_models]
        low, high = ends(missed)
        yield f"composition of a {kind}: {low:.3f} to {high:.3f} times as long\n"
        for source, ((low, high), inside, count) in held_out(missed).items():
            yield f"  from all sources but {source}: {low:.3f} to {high:.3f}, {inside} of its {count} in 90%\n"


def _line(name: str, pairs: Predicted) -> str:
    """Median of predicted over measured, the median and largest relative error, and runs in their interval."""
    ratios = np.array([prediction.seconds / run.seconds for run, prediction in pairs])
    errors = np.abs(ratios - 1)
    inside = sum(prediction.ends[0] <= run.seconds <= prediction.ends[1] for run, prediction in pairs)
    mark = "  <-" if np.median(errors) > NOTABLE else ""
    return (
        f"{name[:100]:100}  {len(pairs):3} runs  predicted/measured {np.median(ratios):5.2f}  "
        f"error {np.median(errors):5.1%}, at most {np.max(errors):6.1%}  in 90% {inside}/{len(pairs)}{mark}\n"
    )


if __name__ == "__main__":
    main()
