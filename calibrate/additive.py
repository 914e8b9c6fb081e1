"""A kernel's time as a sum of what it does, each at a cost of its own: least squares with costs that are not negative.

On one core arithmetic, traffic and overheads add up (``costmodel.timing``), so that costs follow without a start and
without local minima; what does not cost anything is left out. From here the numbers of a profile are refined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import nnls

from calibrate.predictor import Floats
from costmodel.hardware.profile import Device, Kernel
from costmodel.hardware.quantity import ALLOWED, Quantity
from costmodel.ops.primitive import Reading
from costmodel.program import Fused, Operation
from costmodel.rates import OVERHEADS, SECONDS
from costmodel.timing import IN_TURN, UNCACHED, UNITS, missed_part

#: Residuals of logarithms from which on a run weighs less, and rounds of weighing.
OUTLYING, ROUNDS = 0.1, 12

#: Costs that kernels of one family have much alike, and what the likeness weighs, a run's relative error weighing 1.
ALIKE, LIKENESS = ("launch", "memory", "beyond"), 0.05

#: A part of a run's time below which a cost is nothing, in every run.
NOTHING = 1e-3

#: How far within what a number may be it starts: derivatives need room.
ROOM = 1.01

SOURCE = "where the fit starts: least squares of the runs"
ADDED = "arithmetic and traffic of one core add up (execution-cache-memory model, arXiv 1511.03639)"


def amounts(operation: Operation, cache_bytes: float, alone: bool) -> dict[str, float]:
    """What one run does: launches, FLOP, bytes, those of them that a cache does not hold, overheads.

    Args:
        alone: whether special functions run at the kernel's own rate.
    """
    flops = operation.flops(Reading.EXECUTED)
    matrix, vector, special = (sum(float(flops.get(kind, 0)) for kind in unit) for unit in UNITS.values())
    moved = float(sum(operation.traffic()))
    found = {"launch": 1.0}
    if operation.family not in IN_TURN:  # where it adds nothing to arithmetic that takes longer
        found["memory"] = moved
    if operation.family in UNCACHED:
        found["compute"] = matrix
    elif alone:
        found["compute"] = max(matrix + vector, special)
    else:
        found |= {"compute": matrix + vector, "special": special}
    if operation.family not in UNCACHED:
        found["beyond"] = moved * (1 - float(np.clip(2 - moved / cache_bytes, 0, 1)))
    if isinstance(operation, Fused):
        return found | {"line": float(operation.repeat)}
    counts = operation.primitive.overheads(operation.inputs, operation.outputs)
    missed = operation.primitive.missed(operation.inputs, operation.outputs)
    beyond = {name: count * missed_part(name, held, cache_bytes) for name, (count, held) in missed.items()}
    return found | {name: float(count) for name, count in (*counts.items(), *beyond.items())}


def costs(
    each: Sequence[Mapping[str, float]], measured: Floats, usual: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Seconds of one of each of what runs do, of what costs anything.

    Args:
        each: ``amounts`` of every run.
        measured: its seconds.
        usual: costs of kernels like this one, for what its own runs tell too little of.
    """
    names = list(dict.fromkeys(name for row in each for name in row))
    done = np.array([[row.get(name, 0.0) for name in names] for row in each])
    known = {name: (usual or {}).get(name, 0.0) for name in names}
    seen = done.max(axis=0) > 0
    found = np.array(list(known.values()))
    found[seen] = _weighted(done[:, seen], measured, found[seen])
    shares = np.max((done * found) / (done @ found)[:, None], axis=0)
    kept = (shares > NOTHING) | ~seen & (found > 0)
    return {name: cost for name, cost, keep in zip(names, found, kept, strict=True) if keep}


def predicted(each: Sequence[Mapping[str, float]], costs: Mapping[str, float]) -> Floats:
    """Seconds of runs by these costs, a millionth of one at the least."""
    return np.array([max(1e-6, sum(row.get(name, 0.0) * cost for name, cost in costs.items())) for row in each])


def _weighted(done: Floats, measured: Floats, usual: Floats) -> Floats:
    """Costs for which relative errors are least, those of outlying runs weighing less.

    How far a cost is from what is usual, relative to the larger of both, counts as the error of a run of little weight.
    """
    size, likely = done.max(axis=0), usual > 0
    weights, found = 1 / measured, usual
    for _ in range(ROUNDS):
        pull = LIKENESS / np.maximum(usual, found)[likely]
        likeness = np.diag(1 / size)[likely] * pull[:, None]
        rows = np.vstack([done / size * weights[:, None], likeness])
        found = nnls(rows, np.concatenate([measured * weights, pull * usual[likely]]))[0] / size
        predicted = np.maximum(done @ found, 1e-3 * measured)
        residuals = np.log(predicted / measured) / OUTLYING
        weights = 1 / np.sqrt(measured * predicted) / (1 + residuals**2) ** 0.25
    return found


def kernel(costs: Mapping[str, float], device: Device, family: str) -> Kernel:
    """The numbers of a kernel with these costs."""
    products, attention = family in UNCACHED, family in IN_TURN
    peak = device.peak("fp32").value if products else device.vector_flop_per_s.value
    bandwidth = device.memory_bytes_per_s.value
    inside = costs.get("memory", 0.0)
    slow = max(inside + costs.get("beyond", 0.0), 1 / bandwidth / ALLOWED["memory"].high)
    numbers = {
        "compute": 1 / costs["compute"] / peak if "compute" in costs else ALLOWED["compute"].high,
        "memory": 1 / slow / bandwidth if inside or "beyond" in costs else ALLOWED["memory"].high,
        "launch_s": costs.get("launch", ALLOWED["launch_s"].low),
    }
    if "beyond" in costs or not (inside or products):
        numbers["cached"] = slow / inside if inside else ALLOWED["cached"].high
    for name, key in OVERHEADS.items():
        if name in costs:
            numbers[key] = costs[name] if key in SECONDS else 1 / costs[name]
    held = {key: _within(key, value) for key, value in numbers.items()}
    return Kernel(**held, exposed=None if attention else Quantity(1.0, ADDED, "derived"))


def special_rate(costs: Mapping[str, float]) -> Quantity | None:
    """Special functions in a second, where they cost anything of their own."""
    return _within("special_op_per_s", 1 / costs["special"]) if "special" in costs else None


def _within(key: str, value: float) -> Quantity:
    allowed = ALLOWED[key]
    inside = float(np.clip(value, allowed.low * ROOM, allowed.high / ROOM))
    return Quantity(inside, SOURCE, "measured")
