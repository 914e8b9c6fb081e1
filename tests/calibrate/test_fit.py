"""Fits to runs that were made up from known numbers."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from calibrate.block import BLOCKS, Block, blocks
from calibrate.fit import fit, fit_keys
from calibrate.fitted import Fit
from calibrate.held_out import Errors, by_shape, by_source, widened
from calibrate.measurement import Measurement
from calibrate.predictor import Predictor
from calibrate.profile_numbers import HALF_90, started
from costmodel.errors import UnknownNameError
from costmodel.hardware import Profile, load_profile
from costmodel.uncertainty import moved

SEEDS = 40
BETWEEN, WITHIN = 0.03, 0.05
GEMM, ATTENTION, LINK = (
    next(block for block in BLOCKS if block.name == name) for name in ("gemm", "attention", "link")
)

GEMM_TRUTH = {
    "device.kernels.gemm.compute": 0.8,
    "device.kernels.gemm.memory": 0.7,
    "device.kernels.gemm.exposed": 0.3,
    "device.kernels.gemm.launch_s": 5e-6,
}
GEMM_SHAPES = [{"M": float(m), "K": 4096.0, "N": float(n)} for m, n in product((1, 128, 256, 1024), (64, 2048, 8192))]


def base() -> Profile:
    return load_profile("h100")


def made_up(
    block: Block, kernel: str, shapes: list[dict[str, float]], truth: dict[str, float], seed: int, sources: int = 6
) -> list[Measurement]:
    """Runs of some sources, with the times that a profile of known numbers predicts, and errors."""
    profile = moved(started(base(), truth), truth)
    rows = [
        Measurement("h100", kernel, "", "bf16", sizes, 1.0, "time", "", f"source {source}", "", "", "", "fit", "")
        for source in range(sources)
        for sizes in shapes
    ]
    random = np.random.default_rng(seed)
    offsets = np.repeat(random.normal(0, BETWEEN, sources), len(shapes))
    seconds = Predictor(rows, profile)(profile) * np.exp(offsets + random.normal(0, WITHIN, len(rows)))
    fields = {name: [getattr(row, name) for row in rows] for name in Measurement.__dataclass_fields__}
    fields["seconds"] = seconds.tolist()
    return [Measurement(**dict(zip(fields, values, strict=True))) for values in zip(*fields.values(), strict=True)]


def gemm_fit(seed: int) -> Fit:
    return fit_keys(GEMM, made_up(GEMM, "gemm", GEMM_SHAPES, GEMM_TRUTH, seed), base(), tuple(GEMM_TRUTH))


def test_intervals_contain_the_truth_as_often_as_they_say() -> None:
    fits = [gemm_fit(seed) for seed in range(SEEDS)]
    inside = [
        abs(np.log(found.values[key] / true)) <= HALF_90 * found.error(key)
        for found in fits
        for key, true in GEMM_TRUTH.items()
    ]
    assert 0.85 <= np.mean(inside) <= 0.95
    # and what differs between and within sources is found
    assert np.median([found.variances.between for found in fits]) == pytest.approx(BETWEEN, rel=0.35)
    assert np.median([found.variances.within for found in fits]) == pytest.approx(WITHIN, rel=0.1)


def test_many_runs_give_the_numbers_back() -> None:
    truth = {
        "links[0].latency_s": 6e-6,
        "links[0].collectives.all_reduce": 2e11,
        "links[0].start_s": 9e-6,
        "links[0].small_latency_s": 1.2e-6,
        "links[0].small_cost": 2.5,
    }
    shapes = [{"P": float(p), "bytes": float(2**n)} for p, n in product((2, 4, 8), range(10, 30, 2))]
    runs = made_up(LINK, "all_reduce", shapes, truth, seed=1, sources=12)
    found = fit_keys(LINK, runs, base(), tuple(truth))
    for key, true in truth.items():
        assert found.values[key] == pytest.approx(true, rel=0.1), key
    assert found.unidentified == ()


def test_terms_that_are_not_there_are_rejected_and_others_taken_in() -> None:
    truth = {"device.kernels.attention.compute": 0.4, "device.kernels.attention.ramp": 300.0}
    shapes = [
        {"B": 1.0, "H": 16.0, "H_kv": 16.0, "n_q": n, "n_k": n, "d": d, "causal": causal}
        for n, d, causal in product((512.0, 1024.0, 4096.0, 8192.0), (64.0, 128.0), (0.0, 1.0))
    ]
    found = fit(ATTENTION, made_up(ATTENTION, "attention", shapes, truth, seed=2), base())
    assert found is not None
    assert "device.kernels.attention.ramp" in found.keys
    assert found.rejected == ("device.kernels.attention.launch_s",)
    for key, true in truth.items():
        assert found.values[key] == pytest.approx(true, rel=0.1), key
    assert found.profile.device.kernels.attention.launch_s is None


def test_a_number_that_runs_do_not_depend_on_stays() -> None:
    large = [{"M": float(m), "K": 8192.0, "N": 8192.0} for m in (4096, 8192, 16384)]
    truth = {"device.kernels.gemm.compute": 0.7}
    found = fit(GEMM, made_up(GEMM, "gemm", large, truth, seed=3), base())
    assert found is not None
    assert found.profile.device.kernels.gemm.memory == base().device.kernels.gemm.memory
    assert found.values["device.kernels.gemm.compute"] == pytest.approx(0.7, rel=0.06)


def test_an_outlying_run_moves_little() -> None:
    runs = made_up(GEMM, "gemm", GEMM_SHAPES, GEMM_TRUTH, seed=4)
    slow = [*runs[:-1], Measurement(**{**vars(runs[-1]), "seconds": 20 * runs[-1].seconds})]
    plain, robust = (fit_keys(GEMM, rows, base(), tuple(GEMM_TRUTH)) for rows in (runs, slow))
    for key in GEMM_TRUTH:
        assert abs(np.log(robust.values[key] / plain.values[key])) < max(0.05, plain.error(key)), key


def test_what_is_left_out_is_predicted_within_intervals() -> None:
    found = gemm_fit(5)
    shapes, sources = by_shape(found), by_source(found)
    assert len(shapes) == len(found.measurements)
    assert len(sources) > 0
    assert shapes.quantile(0.5) < 0.06
    assert 0.8 <= shapes.coverage <= 1
    assert sources.coverage >= 0.8


def test_one_source_cannot_be_left_out() -> None:
    runs = made_up(GEMM, "gemm", GEMM_SHAPES, GEMM_TRUTH, seed=6, sources=1)
    assert len(by_source(fit_keys(GEMM, runs, base(), tuple(GEMM_TRUTH)))) == 0


def test_intervals_are_widened_to_what_sources_left_out_show() -> None:
    found = gemm_fit(7)
    # Errors of 0.3 in intervals of +-0.1: the variance between sources grows by (0.3^2 - 0.1^2) / 1.6449^2.
    wide = widened(found, Errors(np.full(20, 0.3), np.full(20, 0.1)))
    expected = np.sqrt(found.variances.between**2 + 0.08 / HALF_90**2)
    assert wide.variances.between == pytest.approx(expected)
    assert widened(found, Errors(np.full(20, 0.05), np.full(20, 0.1))).variances == found.variances
    assert widened(found, Errors(np.full(19, 0.3), np.full(19, 0.1))).variances == found.variances


def test_blocks_by_name() -> None:
    assert blocks(()) == BLOCKS
    assert [block.name for block in blocks(("link", "gemm"))] == ["gemm", "link"]
    with pytest.raises(UnknownNameError, match="Did you mean 'gemm'"):
        blocks(("gem",))
