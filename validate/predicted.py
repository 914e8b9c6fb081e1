"""What a job is predicted to take, before it is run: time on a profile, and the exact counts of each rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from costmodel.estimate import Chosen, estimate
from costmodel.hardware import parse_cluster
from costmodel.plan import Ranking
from costmodel.subject import from_mixer
from validate.communication import Traffic
from validate.job import Job


@dataclass(frozen=True)
class Predicted:
    """A prediction.

    Attributes:
        ranking: of the one plan.
        sent: by axis, by each rank, without gradients of weights.
        held: bytes of activations at their peak, and of gradients of weights, on each rank.
    """

    ranking: Ranking
    sent: Sequence[Mapping[str, Traffic]]
    held: Sequence[int]


def predict(job: Job, profile: str) -> Predicted:
    """The prediction for as many devices of a profile as the job has ranks.

    Raises:
        InputError: where the layer cannot be run so.
    """
    subject = from_mixer(job.mixer, job.width, **job.sizes)
    workload = replace(job.workload, dtype=job.dtype)
    chosen = Chosen((job.strategy,), job.mesh, (job.kernel,), context_inside=job.context_inside)
    ranking = estimate(subject, workload, parse_cluster(f"{job.ranks}x{profile}"), chosen)
    known = job.expected
    sent = [known.sent(rank) for rank in range(job.ranks)]
    return Predicted(ranking, sent, [known.peak(rank) + known.gradients(rank) for rank in range(job.ranks)])
