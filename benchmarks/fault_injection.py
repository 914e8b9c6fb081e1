"""Random faults in real runs: does every run end in time, with an error that names the rank, and no process left?

Run ``python benchmarks/fault_injection.py [RUNS] [SEED]``. Each run is attention on 2 to 4 ranks that work round after
round; after a random while one of them is killed (SIGKILL), stopped (SIGSTOP), raises, ends, or brings a tensor of the
wrong shape. Prints one line for each run and a summary; the exit status is 1 if any run failed the question above.
"""

from __future__ import annotations

import os
import random
import re
import signal
import sys
import time
from dataclasses import dataclass

import torch

from validate.job import Job
from validate.launch import GRACE_S, Rank, RankError, RankPool

#: Seconds a run may take, and after that until it must have ended.
LIMIT_S, SLACK_S = 5.0, 5.0

FAULTS = ("killed", "stopped", "raises", "ends", "wrong shape")
STRATEGIES = {"ring": "context", "zigzag": "context", "all-gather": "context", "ulysses": "ulysses"}


@dataclass(frozen=True)
class Fault:
    """What is done to which rank, and after how many seconds of work."""

    kind: str
    strategy: str
    ranks: int
    culprit: int
    after_s: float


@dataclass(frozen=True)
class Ended:
    """How a run with a fault ended.

    Attributes:
        seconds: from the fault until the error, or until the run was given up.
        error: what was told; nothing if nothing was noticed.
        left: processes of the run that were still there.
    """

    fault: Fault
    seconds: float
    error: str
    left: int

    @property
    def right(self) -> bool:
        """Whether it ended in time, said who, and left nothing behind."""
        named = re.search(r"ranks? \d", self.error) is not None
        if self.fault.kind in ("killed", "raises", "ends"):
            named = f"rank {self.fault.culprit}" in self.error
        elif self.fault.kind == "stopped":
            named = re.search(rf"ranks? [\d, ]*\b{self.fault.culprit}\b", self.error) is not None
        return named and self.left == 0 and self.seconds < LIMIT_S + GRACE_S + SLACK_S


def work(rank: Rank, fault: Fault) -> None:
    """Layers of attention one after the other, until the fault happens here or is felt."""
    axis = STRATEGIES[fault.strategy]
    job = Job("attention", fault.strategy, "fused", {axis: fault.ranks}, 64, sizes={"heads": 12, "head_dim": 4})
    layer = job.on(rank)
    end = time.monotonic() + fault.after_s
    x = torch.ones(1, 64 // fault.ranks, 48)
    while True:
        if rank.index == fault.culprit and time.monotonic() > end:
            _do(fault.kind)
            if fault.kind == "wrong shape":
                layer.block(64)(layer.ops, x[:, :-2], layer.tables(64), (), dict(layer.weights.items()))
        layer(x)


def _do(kind: str) -> None:
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "ends":
        os._exit(3)
    elif kind == "raises":
        raise ArithmeticError("no such number")


def drawn(random_: random.Random) -> Fault:
    """A random fault."""
    ranks = random_.choice((2, 3, 4))
    strategy = random_.choice(sorted(STRATEGIES))
    ranks = 2 if strategy == "zigzag" and ranks == 3 else ranks
    ranks = 4 if strategy != "zigzag" and ranks == 3 else ranks
    return Fault(random_.choice(FAULTS), strategy, ranks, random_.randrange(ranks), random_.uniform(0, 0.5))


def inject(pool: RankPool, fault: Fault) -> Ended:
    """Run with a fault."""
    pool.run(_pid, ranks=pool.ranks, timeout_s=120)
    pids = pool.run(_pid, ranks=pool.ranks)
    started, error = time.monotonic() + fault.after_s, ""
    try:
        pool.run(work, fault, ranks=fault.ranks, timeout_s=LIMIT_S + fault.after_s)
    except RankError as found:
        error = str(found)
    seconds = time.monotonic() - started
    return Ended(fault, seconds, error, sum(_alive(pid) for pid in pids))


def _pid(_: Rank) -> int:
    return os.getpid()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def main(runs: int, seed: int) -> int:
    """Inject so many faults."""
    random_, ended = random.Random(seed), list[Ended]()
    with RankPool(4) as pool:
        for number in range(runs):
            found = inject(pool, drawn(random_))
            ended.append(found)
            fault, told = found.fault, found.error.splitlines()[0][:110] if found.error else "nothing noticed"
            what = f"{fault.strategy} on {fault.ranks}, rank {fault.culprit} {fault.kind}"
            sys.stdout.write(
                f"{number + 1:4d} {'ok ' if found.right else 'BAD'} {found.seconds:5.2f} s  {what}: {told}\n"
            )
            sys.stdout.flush()
    wrong = [found for found in ended if not found.right]
    longest = {kind: max((e.seconds for e in ended if e.fault.kind == kind), default=0.0) for kind in FAULTS}
    told = ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in longest.items())
    sys.stdout.write(f"{runs} runs, {len(wrong)} not as they should be; longest until the error: {told}\n")
    return bool(wrong)


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*(numbers + [100, 0][len(numbers) :])))
