"""What ranges of a profile's numbers do to a prediction."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from costmodel.errors import InputError
from costmodel.hardware import Profile, Quantity, load_profile
from costmodel.hardware.cluster import Cluster
from costmodel.hardware.profile import Correlation, look_up, placed
from costmodel.hardware.provenance import numbers
from costmodel.huggingface import read_config
from costmodel.plan import rank
from costmodel.subject import from_mixer, from_model
from costmodel.uncertainty import Uncertainty, moved
from costmodel.workload import Workload

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

Matrix = tuple[tuple[float, ...], ...]

COMPUTE, MEMORY = "device.kernels.gemm.compute", "device.kernels.gemm.memory"


def certain() -> Profile:
    """A profile of which no number has a range."""
    profile = load_profile("h100")
    points = {key: Quantity(held.value, held.source, held.kind) for key, held in numbers(profile)}
    profile = placed(profile, points)
    return msgspec.structs.replace(profile, correlations=())


def uncertain(*correlations: Correlation) -> Profile:
    profile = certain()
    for key, factor in ((COMPUTE, 1.1), (MEMORY, 1.2)):
        value = 0.5
        held = Quantity(value, "for the test", "assumed", low=value / factor, high=value * factor)
        profile = placed(profile, {key: held})
    return msgspec.structs.replace(profile, correlations=correlations)


def product(profile: Profile) -> float:
    """A prediction that is the product of two fractions, so that relative changes add."""
    fractions = [look_up(profile, key) for key in (COMPUTE, MEMORY)]
    return float(np.prod([fraction.value for fraction in fractions if isinstance(fraction, Quantity)]))


def interval(profile: Profile) -> tuple[float, float]:
    uncertainty = Uncertainty.of(profile)
    return uncertainty.interval(np.array([product(other) for _, other in uncertainty.moved]))


def test_without_ranges_a_prediction_is_a_point() -> None:
    assert Uncertainty.of(certain()).keys == ()
    at = product(certain())
    assert interval(certain()) == (at, at)


def test_independent_errors_add_in_squares() -> None:
    # sqrt(ln(1.1)^2 + ln(1.2)^2) = sqrt(0.09531^2 + 0.18232^2) = 0.20573
    low, high = interval(uncertain())
    assert (low, high) == pytest.approx((0.25 * np.exp(-0.20573), 0.25 * np.exp(0.20573)), rel=1e-4)


@pytest.mark.parametrize(("correlation", "factor"), [(1.0, 1.1 * 1.2), (-1.0, 1.2 / 1.1), (0.0, np.exp(0.20573))])
def test_correlated_errors(correlation: float, factor: float) -> None:
    together = Correlation((COMPUTE, MEMORY), ((1.0, correlation), (correlation, 1.0)))
    assert interval(uncertain(together)) == pytest.approx((0.25 / factor, 0.25 * factor), rel=1e-4)


def test_factors_on_the_whole_are_independent_errors() -> None:
    # 0.20573 from the numbers (above); ln 1.3 = 0.26236 and ln 0.9 = -0.10536 of a factor, or the reverse.
    factor, uncertainty = Quantity(1.0, "for the test", "assumed", low=0.9, high=1.3), Uncertainty.of(uncertain())
    found = np.array([product(other) for _, other in uncertainty.moved])
    low, high = np.hypot(0.20573, 0.10536), np.hypot(0.20573, 0.26236)
    assert uncertainty.interval(found, [factor]) == pytest.approx((0.25 * np.exp(-low), 0.25 * np.exp(high)), rel=1e-4)
    assert uncertainty.interval(found, [], [factor]) == pytest.approx(
        (0.25 * np.exp(-high), 0.25 * np.exp(low)), rel=1e-4
    )


def test_a_model_has_more_that_kernels_do_not_tell_than_a_layer() -> None:
    composition = load_profile("h100").composition
    assert composition is not None
    for subject, factor in (
        (from_mixer("attention"), composition.layer),
        (from_model(read_config(EXAMPLES / "llama-3-8b.json")), composition.model),
    ):
        group = rank(subject, Workload(4096), Cluster(load_profile("h100"), 1)).best(1)[0].alone
        seconds = group.moved_seconds()
        own = np.log(Uncertainty.of(load_profile("h100")).interval(seconds)[1] / seconds[0])
        assert np.log(group.interval()[1] / seconds[0]) == pytest.approx(np.hypot(own, np.log(factor.hi)))


def test_numbers_without_time_do_not_count() -> None:
    keys = Uncertainty.of(load_profile("rtx4090")).keys
    assert "device.kernels.elementwise.compute" in keys
    assert "links[0].latency_s" in keys
    assert not [key for key in keys if "memory_bytes." in key or "reserved" in key or key.startswith("host")]


def test_a_moved_number_is_where_it_was_put() -> None:
    profile = moved(load_profile("h100"), {COMPUTE: 0.3, "links[0].latency_s": 1e-6})
    found = [look_up(profile, key) for key in (COMPUTE, "links[0].latency_s")]
    assert [number.value for number in found if isinstance(number, Quantity)] == [0.3, 1e-6]
    with pytest.raises(InputError, match=r"must be 0\.0001 to 1\.3"):
        moved(profile, {COMPUTE: 7.0})


@pytest.mark.parametrize(
    ("of", "matrix", "told"),
    [
        ((COMPUTE, COMPUTE), ((1.0, 0.0), (0.0, 1.0)), "must name each number once"),
        ((COMPUTE, MEMORY), ((1.0, 0.0),), "must be 2 x 2"),
        ((COMPUTE, MEMORY), ((1.0, 0.5), (0.0, 1.0)), "must be symmetric"),
        ((COMPUTE, MEMORY), ((2.0, 0.0), (0.0, 1.0)), "ones on its diagonal"),
        ((COMPUTE, MEMORY), ((1.0, 1.5), (1.5, 1.0)), "no negative eigenvalue"),
        (("device.kernels.gemm",), ((1.0,),), "must be the key of a number"),
        (("links[9].latency_s",), ((1.0,),), "must be the key of a number"),
    ],
)
def test_what_is_no_correlation_is_refused(
    of: tuple[str, ...], matrix: tuple[tuple[float, ...], ...], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        msgspec.structs.replace(load_profile("h100"), correlations=(Correlation(of, matrix),))
