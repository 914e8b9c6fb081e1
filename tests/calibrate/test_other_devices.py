"""How far off devices are that are predicted from the profiles of others."""

from __future__ import annotations

import pytest

from calibrate.other_devices import PAIRS, SHIPPED, Case, alike, cases, further
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
