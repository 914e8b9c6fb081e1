"""Fits to runs that were made up from known numbers."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from msgspec.structs import replace as replace_struct

from calibrate.block import BLOCKS, blocks
from calibrate.fit import fit, fit_keys
from calibrate.held_out import Errors, by_shape, by_source, widened
from calibrate.measurement import Measurement
from calibrate.profile_numbers import HALF_90
from calibrate.synthetic import FORMS, Form, Shape, base
from costmodel.errors import UnknownNameError
from costmodel.hardware import Quantity
from costmodel.hardware.profile import placed

SEEDS = 20
GEMM, ATTENTION, LINK = (FORMS[name] for name in ("gemm", "attention", "link"))


def made_up(form: Form, kernel: str, shapes: list[Shape], truth: dict[str, float], seed: int) -> list[Measurement]:
    """Runs of other shapes and numbers."""
    return replace(form, shapes={kernel: shapes}, truth=truth).runs(seed)


@pytest.mark.parametrize("name", FORMS)
def test_intervals_contain_the_truth_as_often_as_they_say(name: str) -> None:
    form = FORMS[name]
    fits = [form.fit(seed) for seed in range(SEEDS)]
    assert 0.85 <= np.mean([list(form.inside(found)) for found in fits]) <= 0.95
    # and what differs between and within sources is found, where offsets take some of what differs within
    assert np.median([found.variances.between for found in fits]) == pytest.approx(form.between, rel=0.35)
    assert np.median([found.variances.within for found in fits]) == pytest.approx(form.within, rel=0.15)


@pytest.mark.parametrize("name", FORMS)
def test_many_runs_give_the_numbers_back(name: str) -> None:
    found = FORMS[name].fit(seed=1, sources=12)
    for key, true in FORMS[name].truth.items():
        assert found.values[key] == pytest.approx(true, rel=0.1), key
    assert found.unidentified == ()


def test_terms_that_are_not_there_are_rejected_and_others_taken_in() -> None:
    truth = {"device.kernels.attention.compute": 0.4, "device.kernels.attention.ramp": 300.0}
    shapes = [
        {"B": 1.0, "H": 16.0, "H_kv": 16.0, "n_q": n, "n_k": n, "d": d, "causal": causal}
        for n, d, causal in product((512.0, 1024.0, 4096.0, 8192.0), (64.0, 128.0), (0.0, 1.0))
    ]
    found = fit(ATTENTION.block, made_up(ATTENTION, "attention", shapes, truth, seed=2), base())
    assert found is not None
    assert "device.kernels.attention.ramp" in found.keys
    assert found.rejected == tuple(f"device.kernels.attention.{name}" for name in ("exposed", "uneven", "launch_s"))
    for key, true in truth.items():
        assert found.values[key] == pytest.approx(true, rel=0.1), key
    assert found.profile.device.kernels.attention.launch_s is None


def test_a_number_that_runs_do_not_depend_on_stays() -> None:
    large = [{"M": float(m), "K": 8192.0, "N": 8192.0} for m in (4096, 8192, 16384)]
    truth = {"device.kernels.gemm.compute": 0.7}
    found = fit(GEMM.block, made_up(GEMM, "gemm", large, truth, seed=3), base())
    assert found is not None
    assert found.profile.device.kernels.gemm.memory == base().device.kernels.gemm.memory
    assert found.values["device.kernels.gemm.compute"] == pytest.approx(0.7, rel=0.06)


def test_an_outlying_run_moves_little() -> None:
    runs = GEMM.runs(seed=4)
    slow = [*runs[:-1], Measurement(**{**vars(runs[-1]), "seconds": 20 * runs[-1].seconds})]
    plain, robust = (fit_keys(GEMM.block, rows, base(), tuple(GEMM.truth)) for rows in (runs, slow))
    for key in GEMM.truth:
        assert abs(np.log(robust.values[key] / plain.values[key])) < max(0.05, plain.error(key)), key


def test_what_is_left_out_is_predicted_within_intervals() -> None:
    found = GEMM.fit(5)
    shapes, sources = by_shape(found), by_source(found)
    assert len(shapes) == len(found.measurements)
    assert len(sources) > 0
    assert shapes.quantile(0.5) < 0.06
    assert 0.8 <= shapes.coverage <= 1
    assert sources.coverage >= 0.8


def test_one_source_cannot_be_left_out() -> None:
    assert len(by_source(GEMM.fit(6, sources=1))) == 0


def test_intervals_are_widened_to_what_sources_left_out_show() -> None:
    found = GEMM.fit(7)
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


def test_a_term_known_from_elsewhere_stays_where_runs_do_not_tell_it() -> None:
    # One head dimension: softmax and products are in one proportion in all runs.
    shapes = [shape for shape in ATTENTION.shapes["attention"] if shape["d"] == 128]
    truth = {"device.kernels.attention.compute": 0.5, "device.kernels.attention.exposed": 0.5}
    known = placed(base(), {"device.kernels.attention.exposed": Quantity(0.5, "the same kernel elsewhere", "derived")})
    known = replace_struct(known, correlations=())
    found = fit(ATTENTION.block, made_up(ATTENTION, "attention", shapes, truth, seed=8), known)
    assert found is not None
    assert found.profile.device.kernels.attention.exposed == known.device.kernels.attention.exposed
    assert "device.kernels.attention.exposed" not in (*found.keys, *found.rejected)
    assert found.values["device.kernels.attention.compute"] == pytest.approx(0.5, rel=0.1)
