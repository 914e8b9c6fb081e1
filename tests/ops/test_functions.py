"""Elementwise functions: values, gradients, and FLOPs counted by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from costmodel.dims import Shape
from costmodel.ops.pointwise import FUNCTIONS
from tests.ops.checking import Case, Sizes, check, check_values, named

sizes = st.fixed_dictionaries({"B": st.integers(2, 4), "L": st.integers(2, 5)})

#: Reference, elementwise and special FLOP of an element forward, and backward.
Row = tuple[Callable[..., Tensor], tuple[int, int], tuple[int, int]]

UNARY: dict[str, Row] = {
    "neg": (lambda x: 0 - x, (1, 0), (1, 0)),
    "complement": (lambda x: 1 - x, (1, 0), (1, 0)),
    "square": (lambda x: x * x, (1, 0), (2, 0)),  # 2 x, g *
    "reciprocal": (lambda x: 1 / x, (1, 0), (3, 0)),  # y^2, g *, -
    "exp": (torch.exp, (0, 1), (1, 0)),
    "log": (torch.log, (0, 1), (1, 0)),
    "sqrt": (lambda x: x**0.5, (0, 1), (2, 0)),  # g / y, / 2
    "sin": (torch.sin, (0, 1), (1, 1)),
    "cos": (torch.cos, (0, 1), (2, 1)),
    "tanh": (torch.tanh, (0, 1), (3, 0)),  # y^2, 1 -, g *
    "sigmoid": (lambda x: 1 / (1 + torch.exp(-x)), (2, 1), (3, 0)),  # 1 - y, y *, g *
    "silu": (lambda x: x / (1 + torch.exp(-x)), (3, 1), (6, 1)),  # sigmoid 2, 1 -, y *, +, g *
    "softplus": (lambda x: torch.log(1 + torch.exp(x)), (1, 2), (3, 1)),  # sigmoid 2, g *
    "log_sigmoid": (lambda x: -torch.log(1 + torch.exp(-x)), (2, 2), (4, 1)),  # sigmoid 2, 1 -, g *
    "relu": (lambda x: torch.where(x > 0, x, 0), (1, 0), (2, 0)),
    "abs": (lambda x: torch.where(x > 0, x, -x), (1, 0), (2, 0)),
    # x^2, * 0.044715, + 1, * x, * sqrt(2/pi); 1 +, * x, / 2. Backward 16 for the slope, and g *
    "gelu": (
        lambda x: x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        (8, 1),
        (17, 1),
    ),
    # (1 + t) / 2 + x / 2 (1 - t^2) s (1 + 3 c x^2), t = tanh(s x (1 + c x^2)): 5 up to t, 2; t^2, 1 -, 3, * x, / 2, * +
    # Backward (1 - t^2) (u + 3 s c x^2 - x t u^2), u = s + 3 s c x^2: x^2, 3 for the tanh, t^2, 1 -; 2, +, 3, -, *; g *
    "gelu_slope": (
        torch.func.grad(lambda x: (x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))).sum()),
        (16, 1),
        (15, 1),
    ),
    "rsqrt_eps": (lambda x: (x + 1e-5) ** -0.5, (1, 1), (4, 0)),  # -y^3 / 2 is 3, g *
}

BINARY: dict[str, Row] = {
    "add": (lambda x, y: x + y, (1, 0), (0, 0)),
    "sub": (lambda x, y: x - y, (1, 0), (1, 0)),
    "mul": (lambda x, y: x * y, (1, 0), (2, 0)),
    "div": (lambda x, y: x / y, (1, 0), (4, 0)),  # g / b; g * y, / b, -
    "maximum": (lambda x, y: torch.where(x >= y, x, y), (1, 0), (5, 0)),  # compare, g *; compare, 1 -, g *
    "minimum": (lambda x, y: torch.where(x <= y, x, y), (1, 0), (5, 0)),
}

ONLY_POSITIVE = {"log", "sqrt", "rsqrt_eps"}


def case_of(name: str, row: Row, arity: int) -> Case:
    reference, forward, backward = row

    def count(each: tuple[int, int]) -> Callable[[Any], dict[str, int]]:
        return lambda s: {"elementwise": each[0] * s.B * s.L, "special": each[1] * s.B * s.L}

    return Case(
        method=lambda ops, *xs: ops.map(name, *xs),
        reference=reference,
        inputs=lambda s: ((s.B, s.L),) * arity,
        forward=count(forward),
        backward=count(backward),
        positive=name in ONLY_POSITIVE,
    )


CASES = {name: case_of(name, row, 1) for name, row in UNARY.items()}
CASES |= {name: case_of(name, row, 2) for name, row in BINARY.items()}
CASES["scale"] = Case(
    method=lambda ops, x: ops.scale(x, 3),
    reference=lambda x: x * 3,
    inputs=lambda s: ((s.B, s.L),),
    forward=lambda s: {"elementwise": s.B * s.L},
    backward=lambda s: {"elementwise": s.B * s.L},
)
CASES["shift"] = Case(
    method=lambda ops, x: ops.shift(x, -0.5),
    reference=lambda x: x - 0.5,
    inputs=lambda s: ((s.B, s.L),),
    forward=lambda s: {"elementwise": s.B * s.L},
)


@pytest.mark.parametrize("case", named(CASES))
@given(sizes=sizes)
@settings(max_examples=8)
def test_function(case: Case, sizes: Sizes) -> None:
    check(case, sizes)


def test_every_differentiable_function_is_here() -> None:
    derivatives = {"minus_half_cube", "gelu_curvature", "is_positive", "sign", "at_least"}
    assert UNARY.keys() | BINARY.keys() == FUNCTIONS.keys() - derivatives


@pytest.mark.parametrize("name", BINARY)
@given(sizes=sizes, left=st.booleans())
@settings(max_examples=8)
def test_broadcasting(name: str, sizes: Sizes, left: bool) -> None:
    def shapes(s: Any) -> tuple[Shape, ...]:
        narrow, wide = (s.B, 1), (2, s.B, s.L)
        return (narrow, wide) if left else (wide, narrow)

    check_values(Case(lambda ops, a, b: ops.map(name, a, b), BINARY[name][0], shapes), sizes)
