"""Each primitive's own backward rule against finite differences, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from costmodel.composite import rms_norm, rope, swiglu
from costmodel.masks import Mask
from costmodel.ops.pointwise import FUNCTIONS
from costmodel.ops.primitive import Primitive
from validate import kernels
from validate.counting import FlopCounter
from validate.executor import Executor

Method = Callable[..., Any]
CAUSAL = Mask(causal=True)
TURN = torch.arange(6, dtype=torch.float64).view(3, 2)

METHODS: dict[str, tuple[Method, tuple[tuple[int, ...], ...]]] = {
    "contract": (lambda ops, x, w: ops.contract("bld,dhe->bhle", x, w), ((2, 3, 4), (4, 2, 3))),
    "contract, a summed index of size 1": (lambda ops, x, w: ops.contract("ij,jk->ik", x, w), ((3, 1), (1, 2))),
    "scale": (lambda ops, x: ops.scale(x, 3), ((2, 3),)),
    "sum": (lambda ops, x: ops.sum(x, (0, 2)), ((2, 3, 2),)),
    "softmax": (lambda ops, x: ops.softmax(x, 0.7, CAUSAL), ((2, 3, 3),)),
    "attention": (
        lambda ops, q, k, v: ops.attention(q, k, v, CAUSAL, 0.7)[0],
        ((1, 4, 3, 2), (1, 2, 5, 2), (1, 2, 5, 3)),
    ),
    "attention in a window": (
        lambda ops, q, k, v: ops.attention(q, k, v, Mask(window=2), 0.7)[0],
        ((1, 1, 4, 2), (1, 1, 4, 2), (1, 1, 4, 2)),
    ),
    "reshape": (lambda ops, x: ops.reshape(x, (3, 2)), ((2, 3),)),
    "expand": (lambda ops, x: ops.expand(x, (2, 2, 3)), ((2, 1, 3),)),
    "slice": (lambda ops, x: ops.slice(x, 1, 1, 2), ((2, 4),)),
    "concat": (lambda ops, x, y: ops.concat([x, y], 1), ((2, 3), (2, 1))),
    "repeat": (lambda ops, x: ops.repeat(x, 1, 3), ((2, 2, 2),)),
    "rms_norm": (rms_norm, ((2, 3, 4), (4,))),
    "rope": (lambda ops, x: rope(ops, x, TURN.cos(), TURN.sin()), ((1, 2, 3, 4),)),
    "swiglu": (swiglu, ((2, 3), (2, 3))),
}


def inputs(shapes: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=random, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("name", METHODS)
def test_backward_rule(name: str) -> None:
    method, shapes = METHODS[name]
    ops = Executor(torch.float64)
    torch.autograd.gradcheck(lambda *xs: method(ops, *xs), inputs(shapes))


#: Which occur in backward rules only.
LAST = {"minus_half_cube", "gelu_curvature", "is_positive", "sign", "at_least"}
DIFFERENTIABLE = sorted(FUNCTIONS.keys() - LAST)


@pytest.mark.parametrize("function", DIFFERENTIABLE)
def test_backward_rule_of_a_function(function: str) -> None:
    ops = Executor(torch.float64)
    # As many inputs as the rule gives gradients; positive ones, for the root.
    arity = len(FUNCTIONS[function].gradient(ops, [torch.ones(1)] * 2, torch.ones(1), torch.ones(1)))
    xs = [x.detach().abs().add(0.1).requires_grad_() for x in inputs(((2, 3), (3,))[:arity])]
    torch.autograd.gradcheck(lambda *xs: ops.map(function, *xs), xs)


def test_every_function_has_a_kernel() -> None:
    assert kernels.pointwise.FUNCTIONS.keys() == FUNCTIONS.keys()


def test_a_primitive_without_kernel_is_named() -> None:
    class Strange(Primitive):
        family = "strange"

        def outputs(self, *inputs: Any) -> Any:
            raise AssertionError

    with pytest.raises(NotImplementedError, match=r"no kernel runs Strange; register one with @validate.kernels.runs"):
        Executor().apply(Strange(), torch.ones(1))


def test_a_second_kernel_is_refused() -> None:
    primitive = next(iter(kernels.registry._kernels))
    with pytest.raises(ValueError, match=f"two kernels run {primitive.__name__}"):
        kernels.runs(primitive)(lambda *_: None)


def test_products_are_counted_as_by_torchs_own_counter() -> None:
    """Also of ops that others make up, which without gradients run as they are."""
    layer, x = torch.nn.Linear(5, 7), torch.randn(2, 3, 5)

    def run() -> None:
        torch.einsum("bld,dhe->bhle", layer(x), torch.randn(7, 2, 3)) @ torch.randn(3, 4)
        torch.nn.functional.conv1d(x, torch.randn(6, 3, 2))

    for inference in (torch.inference_mode(), torch.no_grad()):
        with inference:
            with FlopCounter() as own:
                run()
            with FlopCounterMode(display=False) as torchs:
                run()
            assert own.total == torchs.get_total_flops() > 0
