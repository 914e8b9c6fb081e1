"""What every primitive is checked for: values, gradients, shapes, FLOPs, bytes; in numbers and in symbols."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from costmodel.dims import Dim, Shape
from costmodel.expression import Expression, symbol_named
from costmodel.ops.primitive import Primitive, Reading, View
from costmodel.program import Program, total_flops
from costmodel.tensor import Tensor as Traced
from costmodel.trace import Tracer, Widths, trace
from validate.counting import FlopCounter
from validate.executor import Executor

Sizes = Mapping[str, int]
#: By class of FLOP; those that do not occur may be left out.
Counts = Mapping[str, float]


@dataclass(frozen=True)
class Index:
    """An input of indices below a bound."""

    shape: Shape
    below: Dim


@dataclass(frozen=True)
class Case:
    """A method of one primitive, and what is known of it from elsewhere.

    Attributes:
        method: ``method(ops, *inputs)``, giving one tensor.
        reference: the same in plain torch.
        inputs: their shapes, from the sizes.
        forward, backward: FLOP by class, counted by hand.
        bytes: read and written in the forward pass in float32, counted by hand; ``None`` where every operand crosses
            once, as real tensors are large.
        positive: the inputs.
    """

    method: Callable[..., Any]
    reference: Callable[..., Tensor]
    inputs: Callable[[Any], tuple[Shape | Index, ...]]
    forward: Callable[[Any], Counts] = lambda s: {}
    backward: Callable[[Any], Counts] = lambda s: {}
    bytes: Callable[[Any], tuple[int, int]] | None = None
    positive: bool = False

    def tensors(self, sizes: Sizes, dtype: torch.dtype) -> list[Tensor]:
        """Random inputs; those that are no indices are differentiable."""
        random = torch.Generator().manual_seed(sum(sizes.values()))
        made = []
        for given in self.inputs(SimpleNamespace(**sizes)):
            if isinstance(given, Index):
                made.append(torch.randint(given.below, given.shape, generator=random))
            else:
                x = torch.randn(given, generator=random, dtype=torch.float64)
                made.append((x.abs() + 0.1 if self.positive else x).to(dtype).requires_grad_())
        return made

    def traced(self, sizes: Mapping[str, Dim]) -> tuple[Program, Shape]:
        """The program of a training step in float32, and the shape of its result."""
        ops, results = Tracer(Widths(4, 4, 4), 1), []
        inputs = [
            Traced.new(x.shape, 8, "table") if isinstance(x, Index) else Traced.new(x, 4)
            for x in self.inputs(SimpleNamespace(**sizes))
        ]

        def method(ops: Tracer, *tensors: Any) -> Any:
            results.append(self.method(ops, *tensors[:-1]))
            return results[-1]

        return trace(ops, method, inputs, {}, train=True), results[0].shape


class Weighed(Executor):
    """Adds up the bytes of the real tensors that primitives read and write; views move none."""

    read = written = 0

    def apply(self, primitive: Primitive, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = super().apply(primitive, *inputs)
        if not isinstance(primitive, View):
            self.read += sum(x.numel() * x.itemsize for x in inputs)
            self.written += sum(x.numel() * x.itemsize for x in outputs)
        return outputs


def check(case: Case, sizes: Sizes) -> None:
    """Everything, for inputs of these sizes."""
    check_values(case, sizes)
    check_counts(case, sizes)
    check_symbols(case, sizes)


def check_values(case: Case, sizes: Sizes) -> None:
    """Result and gradients equal the reference's and autograd's, in float64."""
    inputs = case.tensors(sizes, torch.float64)
    result, expected = case.method(Executor(torch.float64), *inputs), case.reference(*inputs)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)
    sources = [x for x in inputs if x.requires_grad]
    seed = torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = torch.autograd.grad(result, sources, seed)
    for actual, wanted in zip(found, torch.autograd.grad(expected, sources, seed), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-9)


def check_counts(case: Case, sizes: Sizes) -> None:
    """The traced shape, FLOPs and bytes are those of a real run and those counted by hand."""
    program, shape = case.traced(sizes)
    at = SimpleNamespace(**sizes)
    assert_flops(program.flops(), _sum(case.forward(at), case.backward(at)))
    assert_flops(total_flops(program.forward, Reading.EXECUTED), case.forward(at))
    ops, inputs = Weighed(torch.float32), case.tensors(sizes, torch.float32)
    with torch.no_grad():
        assert case.method(ops, *inputs).shape == shape
    forward = Program(program.forward, type(program.forward)(), (), ())
    assert forward.traffic() == (case.bytes(at) if case.bytes else (ops.read, ops.written))
    with FlopCounter() as counter:
        result = case.method(Executor(torch.float32), *inputs)
        result.backward(torch.ones_like(result))
    assert program.flops().get("contraction", 0) == counter.total


def check_symbols(case: Case, sizes: Sizes) -> None:
    """The method traced in symbols says for these sizes what it says traced in numbers."""
    program, shape = case.traced(sizes)
    formulas, formal_shape = case.traced({name: symbol_named(name) for name in sizes})

    def value(formula: Dim) -> Dim:
        return formula.evaluate(sizes) if isinstance(formula, Expression) else formula

    assert tuple(map(value, formal_shape)) == shape
    assert_flops({kind: value(flops) for kind, flops in formulas.flops().items()}, program.flops())
    assert tuple(map(value, formulas.traffic())) == program.traffic()
    assert {family: value(count) for family, count in formulas.kernels().items()} == program.kernels()


def assert_flops(actual: Mapping[str, Dim], expected: Counts) -> None:
    """Equal, up to the rounding of logarithms."""
    for kind in {*actual, *expected}:
        assert float(actual.get(kind, 0)) == pytest.approx(float(expected.get(kind, 0)), rel=1e-12), kind


def _sum(*counts: Counts) -> dict[str, float]:
    return {kind: sum(c.get(kind, 0) for c in counts) for kind in {kind for c in counts for kind in c}}


def mixed(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """A matrix applied along an axis."""
    return torch.tensordot(x, matrix, ([axis], [1])).movedim(-1, axis)


def named(cases: Mapping[str, Case]) -> Sequence[Any]:
    """Cases as parameters of a test."""
    return [pytest.param(case, id=name) for name, case in cases.items()]
