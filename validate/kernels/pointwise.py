"""Elementwise functions, sums and softmax on real tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from costmodel.ops.pointwise import Cast, CumSum, Map, Masked, Max, Scale, Shift, Softmax, SoftmaxBackward, Sum
from validate import attention
from validate.kernels.layout import memory_order
from validate.kernels.registry import Runner, runs

#: Added under the square root of ``rsqrt_eps``, as in Llama 3.
EPSILON = 1e-5

LOG2_E = math.log2(math.e)

#: Numbers with more bits than a product with ``LOG2_E`` loses of them.
WIDE = (torch.float32, torch.float64)


def gelu_slope(x: Tensor) -> Tensor:
    """The derivative of gelu in its tanh form."""
    steepness = math.sqrt(2 / math.pi)
    t = torch.tanh(steepness * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * steepness * (1 + 3 * 0.044715 * x**2)


def gelu_curvature(x: Tensor) -> Tensor:
    """The second derivative of gelu in its tanh form."""
    steepness = math.sqrt(2 / math.pi)
    cubic = 3 * 0.044715 * steepness * x**2
    t = torch.tanh(x * (steepness + cubic / 3))
    return (1 - t**2) * (steepness + 2 * cubic - x * t * (steepness + cubic) ** 2)


def exp(x: Tensor) -> Tensor:
    """By powers of 2, as flash kernels do: MKL's exp takes 4 times as long for -inf, which masks write, and up to 40
    times where results are denormal. Of float32, results are off by up to 6e-8 |x| more."""
    if x.dtype not in WIDE or x.device.type != "cpu":
        return torch.exp(x)
    return torch.mul(x, LOG2_E).exp2_()


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "neg": torch.neg,
    "complement": lambda x: 1 - x,
    "square": torch.square,
    "sigmoid": torch.sigmoid,
    "silu": torch.nn.functional.silu,
    "rsqrt_eps": lambda x: torch.rsqrt(x + EPSILON),
    "minus_half_cube": lambda y: -0.5 * y**3,
    "div": torch.div,
    "exp": exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "softplus": torch.nn.functional.softplus,
    "log_sigmoid": torch.nn.functional.logsigmoid,
    "gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "gelu_slope": gelu_slope,
    "gelu_curvature": gelu_curvature,
    "reciprocal": torch.reciprocal,
    "relu": torch.relu,
    "abs": torch.abs,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "is_positive": lambda x: (x > 0).to(x.dtype),
    "sign": torch.sign,
    "at_least": lambda x, y: (x >= y).to(x.dtype),
}


@runs(Map)
def map_(primitive: Map, ops: Runner, *inputs: Tensor) -> Tensor:
    if primitive.function not in FUNCTIONS:
        raise NotImplementedError(f"no kernel runs the function '{primitive.function}'; known: {', '.join(FUNCTIONS)}")
    result = FUNCTIONS[primitive.function](*inputs).to(inputs[0].dtype)
    return inputs[0].copy_(result) if primitive.in_place else result


@runs(Scale)
def scale(primitive: Scale, ops: Runner, x: Tensor) -> Tensor:
    return x * float(primitive.factor)


@runs(Sum)
def sum_(primitive: Sum, ops: Runner, x: Tensor) -> Tensor:
    return reduced(torch.sum, x, primitive.axes)


@runs(Shift)
def shift(primitive: Shift, ops: Runner, x: Tensor) -> Tensor:
    return x + primitive.constant


@runs(Max)
def max_(primitive: Max, ops: Runner, x: Tensor) -> Tensor:
    return reduced(torch.amax, x, primitive.axes)


def reduced(reduce: Callable[..., Tensor], x: Tensor, axes: Sequence[int]) -> Tensor:
    """With axes in the order in which they lie in memory: torch takes up to 15 times as long for some others."""
    order = memory_order(x)
    places = [order.index(axis) for axis in range(x.dim())]
    return reduce(x.permute(order), [places[axis] for axis in axes], keepdim=True).permute(places)


@runs(CumSum)
def cumsum(primitive: CumSum, ops: Runner, x: Tensor) -> Tensor:
    axis = primitive.axis
    forward = x.flip(axis) if primitive.reverse else x
    if primitive.exclusive:
        size = x.shape[axis]
        first = torch.zeros_like(forward.narrow(axis, 0, 1))
        forward = torch.cat([first, forward.narrow(axis, 0, size - 1)], axis)
    sums = forward.cumsum(axis)
    return sums.flip(axis) if primitive.reverse else sums


@runs(Masked)
def masked(primitive: Masked, ops: Runner, pairs: Tensor) -> Tensor:
    n_q, n_k = pairs.shape[-2:]
    keep = attention.kept(primitive.mask, n_q, n_k, pairs.device)
    if primitive.strict:
        queries, keys = (torch.arange(n, device=pairs.device) for n in (n_q, n_k))
        keep &= keys != queries[:, None] + n_k - n_q
    fill = pairs.new_tensor(float(primitive.fill))
    return torch.where(keep, pairs, fill, out=torch.empty_like(pairs))  # or its layout might be the mask's


@runs(Softmax)
def softmax(primitive: Softmax, ops: Runner, scores: Tensor) -> Tensor:
    keep = attention.kept(primitive.mask, scores.shape[-2], scores.shape[-1], scores.device)
    wide = scores.to(ops.dtypes["accumulate"]) * float(primitive.scale)
    return wide.masked_fill_(~keep, -torch.inf).softmax(-1).masked_fill_(~keep, 0).to(scores.dtype)


@runs(SoftmaxBackward)
def softmax_backward(primitive: SoftmaxBackward, ops: Runner, weights: Tensor, gradient: Tensor) -> Tensor:
    p, g = (x.to(ops.dtypes["accumulate"]) for x in (weights, gradient))
    return (float(primitive.scale) * p * (g - (p * g).sum(-1, keepdim=True))).to(weights.dtype)


@runs(Cast)
def cast(primitive: Cast, ops: Runner, x: Tensor) -> Tensor:
    return x.to(ops.dtypes[primitive.to], copy=True)
