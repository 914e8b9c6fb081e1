"""What is timed is what the fit reads: every case runs on real tensors of the shapes that its program says."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from calibrate.cases import CASES, program
from calibrate.kernels import Bench
from calibrate.measure import expected_s
from calibrate.measurement import Measurement
from calibrate.shapes import SWEEPS, Choice, Shape, Span, Sweep, rounds
from validate.executor import Executor

SWEPT = {sweep.kernel: sweep for sweep in SWEEPS}


def smallest(kernel: str, dtype: str = "fp32") -> Shape:
    return Shape(kernel, dtype, next(SWEPT[kernel].points()))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kernel", SWEPT)
def test_a_case_runs_as_its_program_says(kernel: str, dtype: str) -> None:
    shape, seen = smallest(kernel, dtype), []

    class Watching(Executor):
        def apply(self, primitive, *inputs):
            outputs = super().apply(primitive, *inputs)
            seen.append((type(primitive).__name__, [tuple(x.shape) for x in outputs]))
            return outputs

    bench = Bench("cpu", 2**16)
    bench.work(shape)()
    if kernel == "adam":
        return
    case, ops = CASES[kernel], Watching({"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    case.run(ops, shape.sizes, *bench._sets(case.operands(shape.sizes), ops)[0])
    row = Measurement("cpu", kernel, "", dtype, shape.sizes, 1.0, "time", "", "-", "", "", "", "fit", "")
    traced = program(row, 1).forward.nodes
    if kernel in ("token_scan", "chunk_scan"):
        body = [(leaf.name, [x.shape for x in leaf.outputs]) for leaf in traced[0].body.nodes]
        assert seen == body * shape.sizes["n"]
    else:
        assert seen == [(leaf.name, [x.shape for x in leaf.outputs]) for leaf in traced]


def test_every_family_of_a_profile_is_measured() -> None:
    families = {CASES[kernel].family for kernel in SWEPT}
    assert families == {
        "gemm", "attention", "attention_backward", "elementwise", "reduction", "gather", "copy", "scan", "recurrence",
        "fft", "sort", "convolution",
    }  # fmt: skip


def test_operands_lie_apart_and_are_more_than_a_cache_holds() -> None:
    bench, case = Bench("cpu", 2**20), CASES["mul"]
    sets = bench._sets(case.operands({"n": 2**16}), Executor())
    places = {x.data_ptr() for operands in sets for x in operands}
    assert len(places) == 2 * len(sets)
    assert sum(x.nbytes for operands in sets for x in operands) > 2**21
    assert all(x.min() >= 0.5 and x.max() <= 1.5 for x in sets[0])


@pytest.mark.parametrize("kernel", ["gemm", "sort", "depthwise"])
def test_every_beginning_of_the_shapes_covers_the_region(kernel: str) -> None:
    sweep = SWEPT[kernel]
    points = list(islice(sweep.points(), 24))
    assert points[0] == {name: span.at(0) for name, span in sweep.sizes.items()}
    assert points[1] == {name: span.at(1) for name, span in sweep.sizes.items()}
    for name, span in sweep.sizes.items():
        middle = [span.at(part) for part in (1 / 3, 2 / 3)]
        for part in (points[:12], points[12:]):  # a third of the scale at each end and in the middle
            sizes = [point[name] for point in part]
            assert min(sizes) <= middle[0]
            assert max(sizes) >= middle[1]


def test_points_are_not_repeated_and_end() -> None:
    points = list(Sweep("sort", {"n": Span(1, 4), "D": Choice((16, 32))}).points())
    assert len(points) == len({tuple(point.values()) for point in points}) == 8


def test_queries_of_a_causal_shape_have_keys() -> None:
    points = list(islice(SWEPT["attention"].points(), 200))
    assert any(point["n_q"] > point["n_k"] for point in points)
    assert not any(point["causal"] and point["n_q"] > point["n_k"] for point in points)
    assert all(point["H"] % point["H_kv"] == 0 for point in points)


def test_a_round_has_every_kernel_and_each_third_has_every_dtype() -> None:
    first, second, third, fourth = islice(rounds(["fp32", "bf16"]), 4)
    assert {shape.kernel for shape in first} == set(SWEPT)
    assert [{shape.dtype for shape in turn} for turn in (first, second, third, fourth)] == [
        {"fp32", "bf16"}, {"fp32"}, {"fp32"}, {"fp32", "bf16"},
    ]  # fmt: skip


def test_long_shapes_are_expected_to_be_long() -> None:
    # 2 x 4096^3 FLOP at 30 GFLOP/s are 4.6 s
    assert expected_s(Shape("gemm", "fp32", {"M": 4096, "K": 4096, "N": 4096})) == pytest.approx(4.6, rel=0.02)
    assert expected_s(Shape("token_scan", "fp32", {"B": 1, "H": 1, "n": 5000, "d": 8})) > 0.1
