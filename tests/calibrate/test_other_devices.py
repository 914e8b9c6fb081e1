"""How far off devices are that are predicted from the profiles of others."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.published_runs import MACHINES, predicted
from calibrate.other_devices import PAIRS, SHIPPED, Case, alike, cases, further
from calibrate.published_runs import read_runs
from costmodel.hardware import load_profile
from costmodel.hardware.like import FURTHER
from costmodel.hardware.profile import look_up


@pytest.fixture(scope="module")
def found() -> list[Case]:
    return cases()


def test_every_measured_device_is_predicted(found: list[Case]) -> None:
    assert {case.device for case in found} == {device for device, _, _ in PAIRS} | set(SHIPPED)


@pytest.mark.parametrize("what", FURTHER)
def test_ranges_are_as_wide_as_it_takes(found: list[Case], what: str) -> None:
    needed = further(found, what)
    assert needed <= FURTHER[what] <= 1.05 * needed


@pytest.mark.parametrize("what", FURTHER)
def test_nine_in_ten_runs_are_inside(found: list[Case], what: str) -> None:
    missed = [missed for case in found if case.what == what for missed in case.missed]
    inside = sum(one.inside((1 / FURTHER[what], FURTHER[what])) for one in missed)
    assert inside >= 0.9 * len(missed)
    assert len(missed) >= 20


def test_a_device_alike_keeps_only_what_a_datasheet_says() -> None:
    found, h100, a100 = (
        alike(load_profile("h100"), load_profile("a100"), "another"),
        *map(load_profile, ("h100", "a100")),
    )
    assert found.device.peak("bf16") == h100.device.peak("bf16")
    assert found.device.kernels.attention.fill == h100.device.kernels.attention.fill
    assert found.device.kernels.gemm.compute.value == a100.device.kernels.gemm.compute.value
    assert found.links[0].latency_s.value == a100.links[0].latency_s.value
    # NVLink: 204 of 300 GB/s on A100, so 306 of 450.
    assert found.links[0].bytes_per_s.value == pytest.approx(306e9)
    assert look_up(found, "device.kernels.scan.spread.source") is not None


def test_rings_on_eight_h800_are_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    # ring-flash-attention's own runs: nothing of the profile is fitted to them, nor to any other run of an H800.
    monkeypatch.setitem(MACHINES, "H800", ("h800", {}))
    runs = [run for run in read_runs() if run.hardware == "H800"]
    found = [predicted(run) for run in runs]
    assert len(runs) == 8
    assert all(one.ends[0] <= run.seconds <= one.ends[1] for run, one in zip(runs, found, strict=True))
    assert np.median([abs(one.seconds / run.seconds - 1) for run, one in zip(runs, found, strict=True)]) < 0.07
