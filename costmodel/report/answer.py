"""The answer to "what is the best way to run this here?", before it is put into words."""

from __future__ import annotations

import time
from dataclasses import dataclass

from costmodel.advice import Advice, advise, valid_device_counts
from costmodel.errors import InputError
from costmodel.hardware.cluster import Cluster
from costmodel.plan import Plan, Ranking, rank
from costmodel.subject import Subject
from costmodel.workload import Workload


@dataclass(frozen=True)
class Answer:
    """The best plan of a workload and what it was chosen from, or advice where none fits.

    Attributes:
        others: the best plan of every other arrangement, the fastest first and then those that do not fit.
        top: how many of them to show.
        longest: tokens of the longest sequence that the best plan would hold (0 without one), and that any would.
        took: seconds that finding the answer took.
    """

    ranking: Ranking
    best: Plan | None
    others: tuple[Plan, ...]
    top: int
    longest: tuple[int, int]
    longest_plan: Plan
    advice: Advice | None
    took: float

    @classmethod
    def find(
        cls, subject: Subject, workload: Workload, cluster: Cluster, top: int, beside: Answer | None = None
    ) -> Answer:
        """Rank every plan.

        Args:
            beside: the answer for another workload of the subject on the cluster, what is traced for which serves both.

        Raises:
            InputError: when no plan is even valid.
        """
        start = time.perf_counter()
        ranking = rank(subject, workload, cluster, beside=beside.ranking if beside else None)
        if not len(ranking.places):
            raise no_valid_plan(ranking)
        best = ranking.best(1)[0] if len(ranking.order) else None
        advice = None if best else advise(ranking)
        told = best.arrangement if best else advice.nearest.arrangement if advice else None
        others = tuple(plan for plan in ranking.best_of_each() if plan.arrangement != told)
        tokens, where = ranking.longest_of_all
        held = ranking.longest(int(ranking.order[0])) if best else 0
        took = time.perf_counter() - start
        return cls(ranking, best, others, top, (held, tokens), ranking.plan(where), advice, took)

    @property
    def tokens(self) -> int:
        """Tokens that one step takes in or, when decoding, gives out."""
        workload = self.ranking.workload
        return workload.batch * (1 if workload.phase == "decode" else workload.length)


def no_valid_plan(ranking: Ranking) -> InputError:
    """Why no plan is valid, and the nearest numbers of devices for which one is."""
    reasons = dict.fromkeys(reason for reasons in ranking.refused.values() for reason in reasons)
    counts = valid_device_counts(ranking)
    remedy = f"the nearest numbers of devices with a valid plan: {' and '.join(map(str, sorted(counts)))}"
    rule = f"no plan is valid for {ranking.workload.phase} on it: {'; '.join(reasons)}"
    return InputError("--cluster", str(ranking.cluster), rule, remedy if counts else "change --seq or --batch")
