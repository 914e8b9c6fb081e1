"""Faults in real runs: does every run end in time, with an error that names the rank, and leave nothing behind?

Run ``python benchmarks/fault_injection.py [RUNS] [SEED]`` (Linux). Each run is attention on 2 to 4 ranks that work
round after round; after a random while one of them is killed (SIGKILL), stopped (SIGSTOP), raises, ends, or brings a
tensor of the wrong shape. Then ``costmodel run`` is upset, on ranks of its own and on those of ``torchrun``: by ctrl-C,
by a rank that is killed or stopped, and, where the ranks are its own, by killing the command. Left behind would be a
process of the run, or a port that one of them listened on, the launcher's rendezvous among them, and that cannot be
bound again.

Prints one line for each run and a summary; the exit status is 1 if any run failed the question above.
"""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        held: ports that they listened on, and that could not be bound again.
    """

    fault: Fault
    seconds: float
    error: str
    left: int
    held: Collection[int]

    @property
    def right(self) -> bool:
        """Whether it ended in time, said who, and left nothing behind."""
        named = re.search(r"ranks? \d", self.error) is not None
        if self.fault.kind in ("killed", "raises", "ends"):
            named = f"rank {self.fault.culprit}" in self.error
        elif self.fault.kind == "stopped":
            named = re.search(rf"ranks? [\d, ]*\b{self.fault.culprit}\b", self.error) is not None
        return named and self.left == 0 and not self.held and self.seconds < LIMIT_S + GRACE_S + SLACK_S


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
    ports = listening(pids)
    started, error = time.monotonic() + fault.after_s, ""
    try:
        pool.run(work, fault, ranks=fault.ranks, timeout_s=LIMIT_S + fault.after_s)
    except RankError as found:
        error = str(found)
    seconds = time.monotonic() - started
    return Ended(fault, seconds, error, len(alive(pids)), held(ports))


def _pid(_: Rank) -> int:
    return os.getpid()


# A command that is upset ----------------------------------------------------------------------------------------------

#: Seconds that a command may take to get to work; in which a rank waits for a message; and, once a rank is lost, until
#: all has ended, as torchrun gives those that do not end of themselves 30.
BEGIN_S, PATIENCE_S, END_S = 240.0, 5.0, 60.0

LAYER = ("--mixer", "attention", "--set", "heads=2", "--set", "head_dim=8", "--strategy", "ring", "--seq", "64")
UPSETS = ("ctrl-C", "rank killed", "rank stopped")
OF_ITS_OWN = (*UPSETS, "command killed", "rank stopped, command killed")


@dataclass(frozen=True)
class Upset:
    """What is done to ``costmodel run`` amid its work; ``launched``: by torchrun, meeting on a given port."""

    kind: str
    launched: bool

    def command(self, port: int) -> list[str]:
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
        run = ["-m", "costmodel", "run", *LAYER, "--repetitions", "1000000", "--timeout", f"{PATIENCE_S:g}"]
        return [sys.executable, *(launcher if self.launched else []), *run]


@dataclass(frozen=True)
class Upsetting:
    """How a command that was upset ended.

    Attributes:
        status: its exit status; ``None`` where it did not end.
        ports: on which its processes listened.
    """

    upset: Upset
    seconds: float
    status: int | None
    error: str
    ports: Collection[int]
    left: int
    held: Collection[int]

    @property
    def right(self) -> bool:
        """Whether it ended in time with an error that names a rank, if one was lost, and left nothing behind."""
        lost = self.upset.kind in ("rank killed", "rank stopped")
        named = not lost or re.search(r"ranks? \d", self.error) is not None
        return bool(self.status) and named and len(self.ports) > 0 and self.left == 0 and not self.held


def upset(fault: Upset) -> Upsetting:
    """Upset a command, once it is at work."""
    port = _unused_port()
    with tempfile.TemporaryFile("w+") as told:
        command = subprocess.Popen(
            fault.command(port), stdout=subprocess.DEVNULL, stderr=told, start_new_session=True, text=True
        )
        family = {command.pid}
        try:
            _wait_for("run 2 of", told, command)
            family |= descendants(command.pid)
            ports, ranks = listening(family), ranks_among(family)
            began = time.monotonic()
            _strike(fault.kind, command.pid, ranks)
            status = _ended(command)
            while time.monotonic() < began + END_S and alive(family):
                time.sleep(0.1)
            seconds = time.monotonic() - began
            told.seek(0)
            return Upsetting(fault, seconds, status, told.read(), ports, len(alive(family)), held(ports))
        finally:
            for pid in alive(family):
                os.kill(pid, signal.SIGKILL)
            command.wait()


def _unused_port() -> int:
    with socket.socket() as asked:
        asked.bind(("", 0))
        return int(asked.getsockname()[1])


def _wait_for(words: str, told: Any, command: subprocess.Popen[str]) -> None:
    """Until a command has said so.

    Raises:
        RuntimeError: where it ends before, or takes too long.
    """
    deadline = time.monotonic() + BEGIN_S
    while True:
        told.seek(0)
        text = told.read()
        if words in text:
            return
        if command.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the command did not get to work: {text}")
        time.sleep(0.1)


def _strike(kind: str, command: int, ranks: Collection[int]) -> None:
    """Do what a fault is."""
    if kind == "ctrl-C":
        os.killpg(command, signal.SIGINT)  # as a terminal does
    if "rank stopped" in kind:
        os.kill(max(ranks), signal.SIGSTOP)
    if kind == "rank killed":
        os.kill(max(ranks), signal.SIGKILL)
    if "command killed" in kind:
        os.kill(command, signal.SIGKILL)


def _ended(command: subprocess.Popen[str]) -> int | None:
    try:
        return command.wait(END_S)
    except subprocess.TimeoutExpired:
        return None


# Processes and ports --------------------------------------------------------------------------------------------------


def _table() -> Iterator[tuple[int, int, str]]:
    """Each process, its parent, and its state."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            yield int(entry.name), int(fields[1]), fields[0]


def descendants(pid: int) -> set[int]:
    """Processes that come from one."""
    parents = {child: parent for child, parent, _ in _table()}
    found, waiting = set(), {pid}
    while waiting:
        waiting = {child for child, parent in parents.items() if parent in waiting}
        found |= waiting
    return found


def alive(pids: Collection[int]) -> set[int]:
    """Those that have not ended."""
    return {pid for pid, _, state in _table() if pid in pids and state != "Z"}


def ranks_among(family: Collection[int]) -> set[int]:
    """Processes that listen, and have no children of their own."""
    with_children = {parent for _, parent, _ in _table()}
    return {pid for pid in family if pid not in with_children and listening([pid])}


def listening(pids: Collection[int]) -> set[int]:
    """TCP ports on which processes listen."""
    sockets = {link for pid in pids for link in _open_files(pid)}
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return {
        int(line[1].rpartition(":")[2], 16) for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets
    }


def _open_files(pid: int) -> Iterator[str]:
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            yield os.readlink(entry)
        except OSError:  # closed meanwhile
            continue


def held(ports: Collection[int]) -> list[int]:
    """Ports that cannot be bound, as a server would."""
    return [port for port in sorted(ports) if not _free(port)]


def _free(port: int) -> bool:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have ended linger for a minute
        try:
            tried.bind(("", port))
        except OSError:
            return False
    return True


# All of it ------------------------------------------------------------------------------------------------------------


def main(runs: int, seed: int) -> int:
    """Inject so many faults, and upset a command in every way."""
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
    upsets = [upset(Upset(kind, False)) for kind in OF_ITS_OWN] + [upset(Upset(kind, True)) for kind in UPSETS]
    for done in upsets:
        mark, who = "ok " if done.right else "BAD", "torchrun" if done.upset.launched else "costmodel run"
        told = f"{done.left} processes left, {len(done.held)} of {len(done.ports)} ports held"
        sys.stdout.write(f"     {mark} {done.seconds:5.2f} s  {who}, {done.upset.kind}: status {done.status}, {told}\n")
    return bool(wrong) or not all(done.right for done in upsets)


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*(numbers + [100, 0][len(numbers) :])))
