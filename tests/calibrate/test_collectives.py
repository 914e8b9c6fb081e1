"""Collectives are timed on real ranks, the slowest of which counts: alone, beside computation, and several at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from msgspec import structs

from calibrate import collectives
from calibrate.cases import COLLECTIVES, ONE_WAY, SEVERAL
from calibrate.collectives import BESIDE_BYTES, BYTES, FEWEST, MOST, Pairs, Ranks
from calibrate.fit import fit
from calibrate.machine import ONE_SOURCE, link_block
from calibrate.measurement import Measurement
from calibrate.predictor import Predictor
from calibrate.shapes import Shape
from costmodel.hardware import Profile, Quantity, load_profile
from costmodel.hardware.profile import placed
from tests.ranks import NEEDED
from validate.launch import Rank, RankPool

KERNELS = (*COLLECTIVES, *ONE_WAY)


@pytest.mark.slow
def test_every_collective_is_timed_alone_and_beside_computation() -> None:
    with RankPool(2, needed=NEEDED) as pool:
        ranks = Ranks(pool)
        for kernel in KERNELS:
            message = Shape(kernel, "fp32", {"P": 2, "bytes": 4096})
            found = ranks.timed(message, 0.02)
            assert FEWEST <= len(found.samples) <= MOST
            assert found.calls == 1  # between processes that do not run ahead of each other
            assert 0 < found.seconds < 10
            assert all(0 < seconds < 10 for seconds in ranks.beside(message, 0.04))


@pytest.mark.slow
def test_pairs_are_timed_one_alone_and_all_at_once() -> None:
    with RankPool(4, needed=NEEDED) as pool:
        messages = [message for message in Pairs(pool).messages() if message.sizes["bytes"] == 2**18]
        assert [(message.kernel, message.sizes["groups"]) for message in messages] == [
            ("ring_shifts", 1), ("ring_shifts", 2), ("all_to_alls", 1), ("all_to_alls", 2),
        ]  # fmt: skip
        for message in messages:
            assert 0 < Pairs(pool).timed(message, 0.02).seconds < 10


def test_a_collective_is_started_beside_this_thread_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    may_end, ran_on = threading.Event(), list[int]()

    def work() -> None:
        assert may_end.wait(10)
        ran_on.append(threading.get_ident())
        raise RuntimeError("a rank is gone")

    monkeypatch.setattr(collectives, "_device", lambda: "cpu")
    monkeypatch.setattr(collectives, "_work", lambda rank, message: work)
    message = Shape("all_reduce", "fp32", {"P": 2, "bytes": 4096})
    with collectives._starter(Rank(0, 2, 60.0), message) as start:
        wait = start()
        assert ran_on == []
        may_end.set()
        with pytest.raises(RuntimeError, match="a rank is gone"):
            wait()
    assert len(ran_on) == 1 and ran_on[0] != threading.get_ident()


def test_all_collectives_come_at_one_size_before_the_next() -> None:
    ranks = Ranks(RankPool(2))
    for found, sizes in ((ranks.messages(), BYTES), (ranks.overlaps(), BESIDE_BYTES)):
        messages = [(message.kernel, message.sizes["bytes"]) for message in found]
        assert messages == [(kernel, size) for size in sizes for kernel in KERNELS]
        assert (min(sizes), max(sizes), len(set(sizes))) == (2**10, 2**28, 10)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("size", [2**10, 2**20])
@pytest.mark.parametrize("kernel", [*COLLECTIVES, *SEVERAL])
def test_the_larger_buffer_has_the_messages_bytes(
    kernel: str, size: int, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collectives, "_device", lambda: "cpu")
    x = collectives._operand(Shape(kernel, "fp32", {"P": ranks, "groups": 1, "bytes": size}))
    assert x.nbytes * (ranks if kernel == "all_gather" else 1) == size
    assert x.shape[0] % ranks == 0


# What is fitted -------------------------------------------------------------------------------------------------------


def number(value: float) -> Quantity:
    return Quantity(value, "made up", "assumed")


def machine(shared: float | None) -> Profile:
    numbers = {"latency_s": number(1e-4), "bytes_per_s": number(1e9), "collectives.ring_shift": None}
    numbers |= {"shared_bytes_per_s": None if shared is None else number(shared), "collectives.all_to_all": None}
    plain = structs.replace(load_profile("cpu"), correlations=())
    return placed(plain, {f"links[0].{key}": quantity for key, quantity in numbers.items()})


def rows() -> Iterator[Measurement]:
    for size in (2**10, 2**14, 2**18, 2**22, 2**25):
        for kernel, groups in (("ring_shift", 0), ("ring_shifts", 1), ("ring_shifts", 2), ("all_to_alls", 2)):
            sizes = {"P": 2.0, "bytes": float(size)} | ({"groups": float(groups)} if groups else {})
            yield Measurement("cpu", kernel, "", "fp32", sizes, 1.0, "time", "", "a CPU", "", "", "", "fit", "")


def test_groups_at_once_share_what_all_devices_send_together() -> None:
    # Of 1.2 GB/s for all, two devices could have 0.6 GB/s each, and four have 0.3 GB/s; an all-to-all of two ranks
    # sends half of its buffer.
    profile, each = machine(1.2e9), list(rows())
    found = Predictor(each, profile)(profile)
    rates = {("ring_shift", 0): 0.6e9, ("ring_shifts", 1): 0.6e9, ("ring_shifts", 2): 0.3e9, ("all_to_alls", 2): 0.6e9}
    for row, seconds in zip(each, found, strict=True):
        rate = rates[row.kernel, int(row.sizes.get("groups", 0))]
        assert seconds == pytest.approx(1e-4 + row.sizes["bytes"] / rate)


@pytest.mark.slow
def test_the_shared_rate_is_found_again() -> None:
    true = machine(2.4e9)  # two devices have their own 1 GB/s each, four 0.6 GB/s
    each = list(rows())
    noise = np.exp(np.random.default_rng(1).normal(0, 0.03, len(each)))
    each = [replace(row, seconds=float(s)) for row, s in zip(each, Predictor(each, true)(true) * noise, strict=True)]
    found = fit(link_block(each), each, machine(None), ONE_SOURCE)
    assert found is not None
    assert found.values["links[0].shared_bytes_per_s"] == pytest.approx(2.4e9, rel=0.05)
    assert found.values["links[0].bytes_per_s"] == pytest.approx(1e9, rel=0.05)
