"""Ranks that fail: an error that names the rank, in time, and no process left."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest
import torch

from benchmarks.fault_injection import Fault, Upset, held, inject, listening, upset
from costmodel.carries.pairs import Pairs
from costmodel.masks import Mask
from costmodel.strategies.zigzag import zigzag
from validate.communication import Transport
from validate.executor import Executor
from validate.launch import GRACE_S, Rank, RankError, RankPool, run_ranks
from validate.mesh import Mesh

#: Seconds a function may take; an error must come soon after.
LIMIT_S = 4.0
SLACK_S = 4.0


def processes() -> set[int]:
    """Living descendants of this process, but for the helper that ranks are forked from."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_text()
            except OSError:
                continue
            if fields[0] != "Z" and "resource_tracker" not in command:
                parents[int(entry.name)] = int(fields[1])
    found, waiting = set(), {os.getpid()}
    while waiting:
        waiting = {child for child, parent in parents.items() if parent in waiting}
        found |= waiting
    return found


def index_of(rank: Rank) -> tuple[int, int, int]:
    return rank.index, rank.size, os.getpid()


def ring(rank: Rank) -> float:
    """A few rounds of a ring, in which every rank needs every other."""
    transport = Transport(Mesh.of({"context": rank.size}, rank.index), rank.timeout_s)
    axis, x = transport.mesh.axes["context"], torch.ones(3) * rank.index
    for step in range(rank.size):
        (x,) = transport.shift(axis, [x], f"ring step {step}").finish()
    return float(x[0])


def raising(rank: Rank, culprit: int) -> float:
    if rank.index == culprit:
        raise ArithmeticError("no such number")
    return ring(rank)


def killed(rank: Rank, culprit: int) -> float:
    if rank.index == culprit:
        os.kill(os.getpid(), signal.SIGKILL)
    return ring(rank)


def hanging(rank: Rank, culprit: int) -> float:
    if rank.index == culprit:
        time.sleep(3600)
    return ring(rank)


def with_wrong_shape(rank: Rank, culprit: int, size: int) -> float:
    transport = Transport(Mesh.of({"context": rank.size}, rank.index), rank.timeout_s)
    x = torch.ones(size if rank.index == culprit else 100)
    (x,) = transport.shift(transport.mesh.axes["context"], [x], "ring step 0").finish()
    return float(x.sum())


def exiting(rank: Rank, culprit: int) -> float:
    if rank.index == culprit:
        os._exit(3)
    return ring(rank)


def test_results_come_by_rank_and_processes_stay() -> None:
    with RankPool(3) as pool:
        first, second = pool.run(index_of), pool.run(index_of, ranks=2)
        assert [result[:2] for result in first] == [(0, 3), (1, 3), (2, 3)]
        assert [result[:2] for result in second] == [(0, 2), (1, 2)]
        assert [result[2] for result in second] == [result[2] for result in first[:2]]
        assert pool.run(ring) == [0.0, 1.0, 2.0]
    assert not {result[2] for result in first} & processes()


def test_as_many_ranks_as_there_are() -> None:
    pool = RankPool(2)
    for ranks in (0, 3):
        with pytest.raises(ValueError, match=f"{ranks} ranks of a pool of 2"):
            pool.run(index_of, ranks=ranks)


FAULTS = {
    raising: r"rank {culprit} raised ArithmeticError: no such number",
    killed: r"rank {culprit} died \(signal SIGKILL\)",
    exiting: r"rank {culprit} died \(exit status 3\)",
}


@pytest.mark.parametrize("culprit", [0, 2])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_rank_that_fails_is_named(fault, culprit: int) -> None:
    before = processes()
    with RankPool(3) as pool:
        assert pool.run(ring) == [0.0, 1.0, 2.0]
        started = time.monotonic()
        with pytest.raises(RankError, match=FAULTS[fault].format(culprit=culprit)):
            pool.run(fault, culprit, timeout_s=60)
        assert time.monotonic() - started < GRACE_S + SLACK_S
        assert processes() <= before | helpers()
        assert pool.run(ring) == [0.0, 1.0, 2.0]  # a pool starts anew
    assert processes() <= before | helpers()


def helpers() -> set[int]:
    """The fork server, which stays for the next pool and ends with this process."""
    from multiprocessing.forkserver import _forkserver

    return {_forkserver._forkserver_pid}


def test_a_rank_that_hangs_is_named_in_time() -> None:
    before = processes()
    with RankPool(3) as pool:
        pool.run(ring)
        started = time.monotonic()
        with pytest.raises(RankError) as caught:
            pool.run(hanging, 1, timeout_s=LIMIT_S)
        assert time.monotonic() - started < LIMIT_S + SLACK_S
    # Its neighbours wait for it, and say so before the time is up.
    assert re.search(r"rank [02]: ring step 0 along axis 'context': no message (from|to) rank 1", str(caught.value))
    assert processes() <= before | helpers()


def test_a_rank_that_hangs_alone_is_named() -> None:
    with RankPool(2) as pool:
        pool.run(index_of)
        with pytest.raises(RankError, match=r"rank 1 did not finish within 1 s; all 2 were ended"):
            pool.run(sleeping, 1, timeout_s=1)


def sleeping(rank: Rank, culprit: int) -> None:
    if rank.index == culprit:
        time.sleep(3600)


@pytest.mark.parametrize("size", [99, 1000])
def test_a_tensor_of_the_wrong_shape_is_missed_not_taken(size: int) -> None:
    before = processes()
    with RankPool(3) as pool:
        pool.run(ring)
        started = time.monotonic()
        with pytest.raises(RankError, match=r"ring step 0 along axis 'context': no message (from|to) rank [012]"):
            pool.run(with_wrong_shape, 1, size, timeout_s=LIMIT_S)
        assert time.monotonic() - started < LIMIT_S + SLACK_S
    assert processes() <= before | helpers()


def test_what_others_felt_is_told_after_the_cause() -> None:
    with RankPool(3) as pool, pytest.raises(RankError) as caught:
        pool.run(killed, 1)
    first, *others = str(caught.value).splitlines()
    assert first == "rank 1 died (signal SIGKILL)"
    told = r"rank (\d) raised CommunicationError: rank \1: ring step \d along axis 'context': no message (from|to) rank"
    assert others and all(re.match(told, line) for line in others)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        Fault("killed", "ring", 4, 2, 0.1),
        Fault("stopped", "all-gather", 4, 2, 0.1),
        Fault("raises", "ulysses", 4, 3, 0.0),
        Fault("wrong shape", "zigzag", 2, 1, 0.1),
    ],
    ids=lambda fault: fault.kind,
)
def test_a_fault_amid_the_work_is_told_in_time(fault: Fault) -> None:
    with RankPool(4) as pool:
        found = inject(pool, fault)
    assert found.right, found


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        Upset("ctrl-C", False),
        Upset("rank killed", False),
        Upset("rank stopped, command killed", False),
        Upset("ctrl-C", True),
        Upset("rank killed", True),
    ],
    ids=lambda fault: f"{fault.kind}, {'torchrun' if fault.launched else 'own ranks'}",
)
def test_a_command_leaves_no_process_and_no_port(fault: Upset) -> None:
    found = upset(fault)
    assert found.right, found
    assert fault.launched or "Traceback" not in found.error


def test_a_port_that_is_listened_on_is_seen_and_held() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert port in listening([os.getpid()])
        assert held([port]) == [port]
    assert port not in listening([os.getpid()])
    assert held([port]) == []


def not_finite(rank: Rank, culprit: int) -> float:
    """Attention over a ring in which one rank's values are broken; with a mask, some rows of which see nothing."""
    mesh = Mesh.of({"context": rank.size}, rank.index)
    ops = Executor(torch.float64, mesh, timeout_s=rank.timeout_s, finite=True)
    q = k = v = torch.ones(1, 1, 4, 2, dtype=torch.float64)
    v = v * torch.nan if rank.index == culprit else v
    out = zigzag.apply(ops, mesh.axes, Pairs(q, k, v, Mask(causal=True), 1.0))
    return float(out.sum())


def test_a_value_that_is_no_number_is_told_with_rank_and_step() -> None:
    with RankPool(3) as pool:
        assert pool.run(not_finite, -1) == [8.0] * 3  # averages of ones
        with pytest.raises(RankError) as caught:
            pool.run(not_finite, 1)
    told = r"rank (\d): NaN in the result of ring step \d along axis 'context', the block of rank 1, operation \d"
    assert re.search(told, str(caught.value)), caught.value


def test_run_ranks_starts_and_ends_processes() -> None:
    before = processes()
    assert [result[:2] for result in run_ranks(index_of, 2)] == [(0, 2), (1, 2)]
    assert processes() <= before | helpers()
