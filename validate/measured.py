"""A job on ranks that have been started: checked on a slice, timed, counted; and what that gave."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from costmodel.candidates import Meshes, refusals
from costmodel.units import format_count, format_seconds
from validate.communication import Traffic
from validate.job import Job
from validate.launch import Launched, RankPool
from validate.measuring import TOLERANCE, Step, Values, WrongResultError, peak, step, step_and_peak, values, worst_error

#: What one process can afford in float64 for the check: FLOP, bytes of activations, and tokens.
AFFORDED_FLOP, AFFORDED_BYTES, AFFORDED_TOKENS = 5e10, 2**30, 2**13


@dataclass(frozen=True)
class Checked:
    """What the ranks were compared on with one process: the first ``length`` tokens, after so many cached ones; and the
    worst error.
    """

    length: int
    error: float
    tolerance: float
    cached: int = 0


@dataclass(frozen=True)
class Measured:
    """What a job did.

    Attributes:
        steps: of each repetition, what each rank did.
        peaks: bytes that each rank's allocator handed out at most, its input included.
    """

    checked: Checked
    steps: Sequence[Sequence[Step]]
    peaks: Sequence[int]

    @property
    def seconds(self) -> list[float]:
        """Of each repetition, until its last rank was done."""
        return [max(own.seconds for own in every) for every in self.steps]

    @property
    def median(self) -> float:
        """Seconds of a repetition in the middle."""
        return statistics.median(self.seconds)

    def of_rank(self, rank: int) -> float:
        """Seconds of a rank, of a repetition in the middle."""
        return statistics.median(every[rank].seconds for every in self.steps)

    @property
    def sent(self) -> list[Mapping[str, Traffic]]:
        """What each rank sent by axis, without gradients of weights."""
        return [own.sent for own in self.steps[-1]]


def measure(
    processes: RankPool | Launched, job: Job, repetitions: int, timeout_s: float, tell: Callable[[str], None]
) -> Measured:
    """Check, then run a job; ``tell`` is told what is being done.

    Args:
        repetitions: timed runs, between one that is not and one whose memory is followed; 0 for a job that takes so
            long that it is run once, timed and followed at the same time.

    Raises:
        RankError: when a rank fails.
        WrongResultError: when ranks and one process disagree, or an output is not finite.
    """
    part = slice_of(job)
    tell(f"checking {format_count(part.length)} tokens on {job.ranks} ranks against one process in float64")
    checked = _check(part, processes.run(values, part, job.dtype, timeout_s=timeout_s))
    if repetitions == 0:
        both = processes.run(step_and_peak, job, timeout_s=timeout_s)
        return Measured(checked, [_finite([done for done, _ in both])], [held for _, held in both])
    steps = []
    for number in range(repetitions + 1):
        done = _finite(processes.run(step, job, timeout_s=timeout_s))
        name = f"run {number} of {repetitions}" if number else "warm-up"
        tell(f"{name}: {format_seconds(max(own.seconds for own in done))}")
        steps.append(done)
    tell("memory")
    return Measured(checked, steps[1:], processes.run(peak, job, timeout_s=timeout_s))


def _finite(done: list[Step]) -> list[Step]:
    """What the ranks did.

    Raises:
        WrongResultError: where an output is not finite.
    """
    if lost := [rank for rank, own in enumerate(done) if not own.finite]:
        raise WrongResultError(f"the output of rank {lost[0]} holds values that are not finite")
    return done


def slice_of(job: Job) -> Job:
    """The job, or the longest beginning of it, halved as often as needed, that one process can afford.

    The last that the ranks can be given at all, where halving ends before.
    """
    part = job
    while not _affordable(part) and part.length > 1 and _runs(part.of(part.length // 2)):
        part = part.of(part.length // 2)
    return part


def _affordable(job: Job) -> bool:
    alone = job.alone().expected
    small = job.length + job.cached <= AFFORDED_TOKENS or job.phase == "decode"
    return small and alone.flops() <= AFFORDED_FLOP and alone.peak(0) <= AFFORDED_BYTES


def _runs(job: Job) -> bool:
    """Whether the strategy applies at this length."""
    _, reasons = refusals(job.layer, job.way, job.workload, Meshes.one(job.mesh))
    return not reasons


def _check(part: Job, found: list[Values]) -> Checked:
    """Compare what the ranks found.

    Raises:
        WrongResultError: where it is off by more than rounding.
    """
    error, tolerance = worst_error(part, found), TOLERANCE[part.dtype]
    if not error <= tolerance:  # also where it is not a number
        told = f"the ranks' result for the first {part.length} tokens is off by {error:.2g} from that of one process"
        raise WrongResultError(f"{told} in float64, relative to its usual size; {part.dtype} allows {tolerance:g}")
    return Checked(part.length, error, tolerance, part.cached)
