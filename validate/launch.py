"""Ranks as processes: a function run on each of them, and an error that names the rank when one fails.

Processes are started once and run one function after another (``RankPool``); they talk over gloo on the loopback
interface, or over NCCL where each has a GPU of its own. Under ``torchrun``, the processes are those it started.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from validate.allocations import keep_memory
from validate.communication import CommunicationError

#: Seconds for all ranks to import torch and find each other.
STARTUP_S = 120.0
#: What Linux calls it that a process is sent a signal when its parent ends (prctl(2)).
PR_SET_PDEATHSIG = 1
#: Seconds in which other ranks may report, after the first failure: the first to report need not be the cause.
GRACE_S = 1.0


Device = Literal["cpu", "cuda"]


class RankError(RuntimeError):
    """A rank raised, died, or did not finish in time."""


@dataclass(frozen=True)
class Rank:
    """What a function that runs on ranks is given: which one it is on.

    Attributes:
        index: from 0 to ``size`` - 1, of the ranks that run the function.
        timeout_s: seconds it should wait for a message, a little less than the function has, so that the rank which
            waits says for whom.
    """

    index: int
    size: int
    timeout_s: float


@dataclass(frozen=True)
class _Failure:
    """What a rank reports in place of a result; ``follows``: it lost another rank, so look there for the cause."""

    rank: int
    text: str
    follows: bool


class RankPool:
    """Processes that stay, and run one function after another.

    After a failure all of them are ended, and started anew by the next ``run``.

    Args:
        ranks: processes; a function may run on the first few of them.
        device: ``"cpu"``, or ``"cuda"`` for a GPU of its own for each rank.
        needed: modules that every rank would import, and that the helper which they are forked from (``_context``)
            imports before; only the first pool of a process can say so.
    """

    def __init__(self, ranks: int, device: Device = "cpu", needed: Sequence[str] = ()) -> None:
        self.ranks, self._device, self._needed = ranks, device, needed
        self._processes: list[Any] = []
        self._connections: list[Connection] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> RankPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self, function: Callable[..., Any], *arguments: Any, ranks: int | None = None, timeout_s: float = 60.0
    ) -> list[Any]:
        """``function(Rank, *arguments)`` on each rank: their results, by rank.

        Args:
            function: of a module, so that it can be sent by its name.
            ranks: how many run it; all by default.

        Raises:
            RankError: when a rank raises, dies or takes longer than ``timeout_s``; no process is left then.
        """
        count = self.ranks if ranks is None else ranks
        if not 1 <= count <= self.ranks:
            raise ValueError(f"{count} ranks of a pool of {self.ranks}")
        job = pickle.dumps((function, arguments, count, 0.8 * timeout_s))
        try:
            self._start()
            for connection in self._connections[:count]:
                connection.send_bytes(job)
            return self._collect(count, timeout_s)
        except BaseException:
            self.close(at_once=True)
            raise

    def close(self, at_once: bool = False) -> None:
        """End all processes: of themselves, or killed if they are at work."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            if not at_once:
                process.join(5)
            process.kill()
            process.join()
            process.close()
        self._processes, self._connections = [], []
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _start(self) -> None:
        if self._processes and all(process.is_alive() for process in self._processes):
            return
        self.close(at_once=True)
        context = _context(self._needed)
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-")
        store = str(Path(self._folder.name) / "store")
        for index in range(self.ranks):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(index, self.ranks, self._device, store, theirs), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)
        self._collect(self.ranks, STARTUP_S)

    def _collect(self, count: int, timeout_s: float) -> list[Any]:
        """One answer of each rank."""
        deadline = time.monotonic() + timeout_s
        answers: dict[int, Any] = {}
        failures: list[_Failure] = []
        while len(answers) + len(failures) < count:
            done = {*answers, *(failure.rank for failure in failures)}
            waiting = [rank for rank in range(count) if rank not in done]
            ready = self._ready(waiting, deadline - time.monotonic())
            if not ready:
                break
            for rank in ready:
                answer = self._answer(rank)
                if isinstance(answer, _Failure):
                    deadline = min(deadline, time.monotonic() + GRACE_S)
                    failures.append(answer)
                else:
                    answers[rank] = answer
        silent = [rank for rank in range(count) if rank not in {*answers, *(failure.rank for failure in failures)}]
        if failures:
            raise RankError(_told(failures, silent))
        if late := silent:
            who = f"rank {late[0]}" if len(late) == 1 else f"ranks {', '.join(map(str, late))}"
            raise RankError(f"{who} did not finish within {timeout_s:g} s; all {count} were ended")
        return [answers[rank] for rank in range(count)]

    def _ready(self, ranks: Sequence[int], timeout_s: float) -> list[int]:
        """Ranks that have answered or died; none if that takes too long."""
        sources: list[Any] = [self._connections[rank] for rank in ranks]
        sources += [self._processes[rank].sentinel for rank in ranks]
        found = wait(sources, max(timeout_s, 0))
        return sorted({ranks[sources.index(source) % len(ranks)] for source in found})

    def _answer(self, rank: int) -> Any:
        connection, process = self._connections[rank], self._processes[rank]
        try:
            if connection.poll():
                return pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            pass
        process.join(GRACE_S)
        return _Failure(rank, f"rank {rank} died ({_death(process.exitcode)})", follows=False)


@dataclass(frozen=True)
class Launched:
    """The processes that a launcher started, one of which this is; every one of them calls ``run`` alike."""

    rank: Rank

    def run(self, function: Callable[..., Any], *arguments: Any, timeout_s: float = 60.0) -> list[Any]:
        """``function(Rank, *arguments)`` on each rank: their results, by rank, on every rank.

        Raises:
            RankError: when it raises on this rank, or another does not answer; the launcher then ends all of them.
        """
        results: list[Any] = [None] * self.rank.size
        try:
            own = function(replace(self.rank, timeout_s=timeout_s), *arguments)
        except Exception as error:
            raise RankError(f"rank {self.rank.index} raised {type(error).__name__}: {error}") from error
        try:
            dist.all_gather_object(results, own)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise RankError(f"rank {self.rank.index} waited for the results of others: {reason}") from error
        return results


@contextmanager
def started(ranks: int, timeout_s: float = 60.0) -> Iterator[RankPool | Launched]:
    """So many ranks: those that ``torchrun`` started, or processes of their own, each on its GPU if there are enough.

    Args:
        timeout_s: seconds to wait for any message between a launcher's ranks.

    Raises:
        ValueError: when ``torchrun`` started another number of processes.
    """
    rank = init_from_environment(timeout_s)
    if rank is None:
        with RankPool(ranks, "cuda" if torch.cuda.device_count() >= ranks else "cpu") as pool:
            yield pool
        return
    if rank.size != ranks:
        raise ValueError(f"{ranks} ranks were asked for, but the environment says WORLD_SIZE={rank.size}")
    yield Launched(rank)


def run_ranks(function: Callable[..., Any], ranks: int, *arguments: Any, timeout_s: float = 60.0) -> list[Any]:
    """``function(Rank, *arguments)`` on as many ranks: their results, by rank; see ``started``.

    Raises:
        RankError: when a rank raises, dies or takes longer than ``timeout_s``.
        ValueError: when ``torchrun`` started another number of processes.
    """
    with started(ranks, timeout_s) as processes:
        return processes.run(function, *arguments, timeout_s=timeout_s)


def init_from_environment(timeout_s: float = 60.0) -> Rank | None:
    """Join the ranks that a launcher such as ``torchrun`` started; ``None`` where there is no launcher.

    They talk over NCCL where there are GPUs, of which each takes that of its ``LOCAL_RANK``, and else over gloo.

    Args:
        timeout_s: seconds to find each other in, and to wait for any message of a collective.
    """
    if "WORLD_SIZE" not in os.environ:
        return None
    if not dist.is_initialized():
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout_s))
    return Rank(dist.get_rank(), dist.get_world_size(), timeout_s)


def _context(needed: Sequence[str]) -> Any:
    """Processes forked from a helper that has imported torch but used none of it, where there is such a thing."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *needed])
    return context


def _serve(index: int, size: int, device: Device, store: str, connection: Connection) -> None:
    """The life of a rank: join the others, then run what is asked until the pool goes away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal tells all processes: the pool's owner ends the ranks
    _end_with_owner(Path(store).parent)
    torch.set_num_threads(1)
    keep_memory()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    connection.send_bytes(_reply(index, pickle.dumps((_join, (device, store), size, STARTUP_S))))
    while True:
        try:
            connection.send_bytes(_reply(index, connection.recv_bytes()))
        except (EOFError, ConnectionError):  # the pool has ended
            break
    if dist.is_initialized():
        dist.destroy_process_group()


def _join(rank: Rank, device: Device, store: str) -> None:
    if device == "cuda":
        torch.cuda.set_device(rank.index)
    limit, backend = timedelta(seconds=rank.timeout_s), "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, f"file://{store}", rank=rank.index, world_size=rank.size, timeout=limit)


def _reply(index: int, job: bytes) -> bytes:
    """The pickled result of a job, or what went wrong."""
    try:
        function, arguments, count, timeout_s = pickle.loads(job)
        return pickle.dumps(function(Rank(index, count, timeout_s), *arguments))
    except Exception as error:
        text = f"rank {index} raised {type(error).__name__}: {error}\n\n{traceback.format_exc()}"
        return pickle.dumps(_Failure(index, text, isinstance(error, CommunicationError)))


def _end_with_owner(folder: Path) -> None:
    """Have this process end when the pool's owner does, however that ends, and the folder in which ranks met go.

    A thread waits for the owner. It cannot where the process is stopped, or a kernel holds the interpreter: then Linux
    kills it with the fork server, which ends once nobody holds the pipe that every rank has inherited of the owner.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait_and_end() -> None:
        parent.join()
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=wait_and_end, daemon=True).start()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.close(forkserver._forkserver._forkserver_alive_fd)


def _told(failures: Sequence[_Failure], silent: Sequence[int]) -> str:
    """The cause, and then what the ranks that lost another say: step, collective, and whom they waited for.

    Where all that is known is that ranks lost others, the cause is a rank that says nothing.
    """
    causes = [failure for failure in failures if not failure.follows]
    text = causes[0].text if causes else failures[0].text
    if not causes and silent:
        who = f"rank {silent[0]}" if len(silent) == 1 else f"ranks {', '.join(map(str, silent))}"
        text = f"{who} did not answer, and was waited for: {text}"
    others = [failure for failure in failures if failure.follows and failure.text not in text]
    return "\n".join([text, *(failure.text.splitlines()[0] for failure in others)])


def _death(code: int | None) -> str:
    if code is None:
        return "its connection broke"
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
