"""How each primitive of the vocabulary runs on real tensors.

A kernel is registered for its primitive's class by ``@runs`` and is called with the primitive, the executor and the
inputs. It knows nothing of gradients: those follow from the primitive's own backward rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from costmodel.ops.communication import AllGather, AllReduce, AllToAll, ReduceScatter, RingShift
from costmodel.ops.contraction import Contract
from costmodel.ops.convolution import Depthwise, TapsGradient
from costmodel.ops.fused_attention import Attention, AttentionBackward, DecodeAttention, Merge
from costmodel.ops.halo import Halo, HaloReturn
from costmodel.ops.layout import (
    AddInto,
    Append,
    Concat,
    Expand,
    Fill,
    Flip,
    Pad,
    Permute,
    Repeat,
    Reshape,
    Slice,
    Write,
)
from costmodel.ops.pointwise import Cast, CumSum, Map, Masked, Max, Scale, Shift, Softmax, SoftmaxBackward, Sum
from costmodel.ops.primitive import Primitive
from validate import attention
from validate.layout import shard

if TYPE_CHECKING:
    from validate.executor import Executor

Kernel = Callable[..., Any]
K = TypeVar("K", bound=Kernel)

_kernels: dict[type[Primitive], Kernel] = {}

#: Added under the square root of ``rsqrt_eps``, as in Llama 3.
EPSILON = 1e-5


def runs(primitive: type[Primitive]) -> Callable[[K], K]:
    """Register the kernel of a primitive; it gives a tensor, or a tuple of them.

    Raises:
        ValueError: when the primitive has one already.
    """

    def register(kernel: K) -> K:
        if primitive in _kernels:
            names = f"{_kernels[primitive].__name__} and {kernel.__name__}"
            raise ValueError(f"two kernels run {primitive.__name__}: {names}")
        _kernels[primitive] = kernel
        return kernel

    return register


def run(primitive: Primitive, ops: Executor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The outputs of a primitive.

    Raises:
        NotImplementedError: when no kernel is registered for it.
    """
    kernel = _kernels.get(type(primitive))
    if kernel is None:
        known = ", ".join(sorted(cls.__name__ for cls in _kernels))
        raise NotImplementedError(
            f"no kernel runs {type(primitive).__name__}; register one with @validate.kernels.runs. Known: {known}"
        )
    result = kernel(primitive, ops, *inputs)
    return result if isinstance(result, tuple) else (result,)


# Contraction and elementwise functions --------------------------------------------------------------------------------


@runs(Contract)
def contract(primitive: Contract, ops: Executor, a: Tensor, b: Tensor) -> Tensor:
    """One batched matrix product, at the precision of the first operand.

    Not ``torch.einsum``, which multiplies elementwise where a summed index has size 1 and so is not counted.
    """
    left, right, result = primitive.terms()
    size = dict(zip(left + right, (*a.shape, *b.shape), strict=True))
    batch = [i for i in left if i in right and i in result]
    summed = [i for i in left if i in right and i not in result]
    rows, columns = [i for i in left if i not in right], [i for i in right if i not in left]

    def matrices(x: Tensor, term: str, *groups: list[str]) -> Tensor:
        order = [term.index(i) for group in groups for i in group]
        return x.permute(order).reshape([torch.Size(size[i] for i in group).numel() for group in groups])

    b = b.to(a.dtype)
    order = [*batch, *rows, *columns]
    if [*batch, *columns, *rows] == list(result):  # the other way round it is dense: nobody will ask for a copy
        order = [*batch, *columns, *rows]
        product = torch.bmm(matrices(b, right, batch, columns, summed), matrices(a, left, batch, summed, rows))
    else:
        product = torch.bmm(matrices(a, left, batch, rows, summed), matrices(b, right, batch, summed, columns))
    return product.view([size[i] for i in order]).permute([order.index(i) for i in result])


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
    "exp": torch.exp,
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
def map_(primitive: Map, ops: Executor, *inputs: Tensor) -> Tensor:
    if primitive.function not in FUNCTIONS:
        raise NotImplementedError(f"no kernel runs the function '{primitive.function}'; known: {', '.join(FUNCTIONS)}")
    result = FUNCTIONS[primitive.function](*inputs).to(inputs[0].dtype)
    return inputs[0].copy_(result) if primitive.in_place else result


@runs(Scale)
def scale(primitive: Scale, ops: Executor, x: Tensor) -> Tensor:
    return x * float(primitive.factor)


@runs(Sum)
def sum_(primitive: Sum, ops: Executor, x: Tensor) -> Tensor:
    return x.sum(primitive.axes, keepdim=True)


@runs(Shift)
def shift(primitive: Shift, ops: Executor, x: Tensor) -> Tensor:
    return x + primitive.constant


@runs(Max)
def max_(primitive: Max, ops: Executor, x: Tensor) -> Tensor:
    return x.amax(primitive.axes, keepdim=True)


@runs(CumSum)
def cumsum(primitive: CumSum, ops: Executor, x: Tensor) -> Tensor:
    axis = primitive.axis
    forward = x.flip(axis) if primitive.reverse else x
    if primitive.exclusive:
        size = x.shape[axis]
        first = torch.zeros_like(forward.narrow(axis, 0, 1))
        forward = torch.cat([first, forward.narrow(axis, 0, size - 1)], axis)
    sums = forward.cumsum(axis)
    return sums.flip(axis) if primitive.reverse else sums


@runs(Masked)
def masked(primitive: Masked, ops: Executor, pairs: Tensor) -> Tensor:
    n_q, n_k = pairs.shape[-2:]
    keep = attention.kept(primitive.mask, n_q, n_k, pairs.device)
    if primitive.strict:
        queries, keys = (torch.arange(n, device=pairs.device) for n in (n_q, n_k))
        keep &= keys != queries[:, None] + n_k - n_q
    return pairs.masked_fill(~keep, float(primitive.fill))


@runs(Depthwise)
def depthwise(primitive: Depthwise, ops: Executor, x: Tensor, taps: Tensor) -> Tensor:
    return (_under_taps(x, taps.shape[1], primitive.apart) * taps[:, None]).sum(-1)


@runs(TapsGradient)
def taps_gradient(primitive: TapsGradient, ops: Executor, x: Tensor, gradient: Tensor) -> Tensor:
    return (_under_taps(x, primitive.taps, primitive.apart) * gradient[..., None]).sum((0, 2))


def _under_taps(x: Tensor, taps: int, apart: int) -> Tensor:
    """What each place has under its taps: [B, C, n, K] of x [B, C, n + (K - 1) apart]."""
    return x.unfold(2, (taps - 1) * apart + 1, 1)[..., ::apart]


@runs(Softmax)
def softmax(primitive: Softmax, ops: Executor, scores: Tensor) -> Tensor:
    keep = attention.kept(primitive.mask, scores.shape[-2], scores.shape[-1], scores.device)
    wide = scores.to(ops.dtypes["accumulate"]) * float(primitive.scale)
    return wide.masked_fill(~keep, -torch.inf).softmax(-1).masked_fill(~keep, 0).to(scores.dtype)


@runs(SoftmaxBackward)
def softmax_backward(primitive: SoftmaxBackward, ops: Executor, weights: Tensor, gradient: Tensor) -> Tensor:
    p, g = (x.to(ops.dtypes["accumulate"]) for x in (weights, gradient))
    return (float(primitive.scale) * p * (g - (p * g).sum(-1, keepdim=True))).to(weights.dtype)


@runs(Cast)
def cast(primitive: Cast, ops: Executor, x: Tensor) -> Tensor:
    return x.to(ops.dtypes[primitive.to], copy=True)


# Fused attention ------------------------------------------------------------------------------------------------------


@runs(Attention)
@runs(DecodeAttention)
def fused_attention(primitive: Attention, ops: Executor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return attention.forward((q, k, v), primitive.mask, float(primitive.scale), ops.flash)


@runs(AttentionBackward)
def fused_attention_backward(primitive: AttentionBackward, ops: Executor, *inputs: Tensor) -> attention.Triple:
    q, k, v, *known = inputs
    out, lse, gradient = known
    return attention.backward((q, k, v), (out, lse, gradient), primitive.mask, float(primitive.scale), ops.flash)


@runs(Merge)
def merge(
    primitive: Merge, ops: Executor, out: Tensor, lse: Tensor, block_out: Tensor, block_lse: Tensor
) -> tuple[Tensor, Tensor]:
    entries = block_lse.shape[primitive.axis]
    attention.merge(_entries(out, primitive, entries), _entries(lse, primitive, entries), block_out, block_lse)
    return out, lse


# Layout ---------------------------------------------------------------------------------------------------------------


@runs(Reshape)
def reshape(primitive: Reshape, ops: Executor, x: Tensor) -> Tensor:
    """The same memory where the strides allow it, as they do for all that splits axes; otherwise a copy."""
    return x.reshape(primitive.shape)


@runs(Permute)
def permute(primitive: Permute, ops: Executor, x: Tensor) -> Tensor:
    return x.permute(primitive.axes)


@runs(Flip)
def flip(primitive: Flip, ops: Executor, x: Tensor) -> Tensor:
    return x.flip(primitive.axis)


@runs(Expand)
def expand(primitive: Expand, ops: Executor, x: Tensor) -> Tensor:
    return x.expand(primitive.shape)


@runs(Slice)
def slice_(primitive: Slice, ops: Executor, x: Tensor) -> Tensor:
    return _entries(x, primitive, primitive.size)


@runs(Pad)
def pad(primitive: Pad, ops: Executor, x: Tensor) -> Tensor:
    shape = list(x.shape)
    shape[primitive.axis] = primitive.size
    whole = x.new_zeros(shape)
    _entries(whole, primitive, x.shape[primitive.axis]).copy_(x)
    return whole


def _entries(x: Tensor, where: Slice | Pad | Merge, count: int) -> Tensor:
    """A view of the places that a slice takes, that its gradient is put back to, or that more is merged into."""
    if where.step == 1 or count == 0:
        return x.narrow(where.axis, where.start, count)
    stretch = x.narrow(where.axis, where.start, (count - 1) * where.step + 1)
    return stretch[(slice(None),) * where.axis + (slice(None, None, where.step),)]


@runs(Concat)
def concat(primitive: Concat, ops: Executor, *parts: Tensor) -> Tensor:
    return torch.cat(parts, primitive.axis)


@runs(Repeat)
def repeat(primitive: Repeat, ops: Executor, x: Tensor) -> Tensor:
    return x.repeat_interleave(primitive.times, primitive.axis)


@runs(Fill)
def fill(primitive: Fill, ops: Executor) -> Tensor:
    return torch.full(primitive.shape, primitive.value, dtype=ops.dtypes[primitive.to], device=ops.device)


@runs(AddInto)
def add_into(primitive: AddInto, ops: Executor, accumulator: Tensor, block: Tensor) -> Tensor:
    accumulator.narrow(primitive.axis, primitive.start, block.shape[primitive.axis]).add_(block)
    return accumulator


@runs(Write)
def write(primitive: Write, ops: Executor, whole: Tensor, block: Tensor) -> Tensor:
    whole.narrow(primitive.axis, primitive.start, block.shape[primitive.axis]).copy_(block)
    return whole


@runs(Append)
def append(primitive: Append, ops: Executor, cache: Tensor, new: Tensor) -> Tensor:
    spread, size = primitive.spread, new.shape[primitive.axis]
    room = cache.narrow(primitive.axis, cache.shape[primitive.axis] - size, size)
    if spread is not None and new.shape[0] < cache.shape[0]:
        shard(room, 0, spread.size, spread.rank).copy_(new)
    elif spread is None or spread.rank == spread.size - 1:
        room.copy_(new)
    return cache


# Communication --------------------------------------------------------------------------------------------------------


@runs(RingShift)
def ring_shift(primitive: RingShift, ops: Executor, *tensors: Tensor) -> tuple[Tensor, ...]:
    return ops.transport.shift(primitive.axis, tensors).finish()


@runs(Halo)
def halo(primitive: Halo, ops: Executor, x: Tensor) -> tuple[Tensor, ...]:
    size = x.shape[primitive.dim]
    sent = {1: (size - primitive.left, primitive.left), -1: (0, primitive.right)}
    received = {-1: primitive.left, 1: primitive.right}
    outgoing = {hop: [x.narrow(primitive.dim, *rows).contiguous()] for hop, rows in sent.items() if rows[1]}
    incoming = {hop: [_zeros_with(x, primitive.dim, rows)] for hop, rows in received.items() if rows}
    ops.transport.neighbours(primitive.axis, "halo", outgoing, incoming)
    return tuple(incoming[hop][0] for hop in (-1, 1) if hop in incoming)


@runs(HaloReturn)
def halo_return(primitive: HaloReturn, ops: Executor, *gradients: Tensor) -> tuple[Tensor, ...]:
    hops = [hop for hop, there in zip((-1, 1), primitive.sides, strict=True) if there]
    outgoing = {hop: [g.contiguous()] for hop, g in zip(hops, gradients, strict=True)}
    incoming = {-hop: [torch.zeros_like(g, memory_format=torch.contiguous_format)] for hop, (g,) in outgoing.items()}
    ops.transport.neighbours(primitive.axis, "halo, gradients", outgoing, incoming)
    return tuple(incoming[-hop][0] for hop in hops)


def _zeros_with(x: Tensor, dim: int, rows: int) -> Tensor:
    shape = list(x.shape)
    shape[dim] = rows
    return x.new_zeros(shape)


@runs(AllGather)
def all_gather(primitive: AllGather, ops: Executor, x: Tensor) -> Tensor:
    return ops.transport.all_gather(x, primitive.axis, primitive.dim, primitive.order)


@runs(ReduceScatter)
def reduce_scatter(primitive: ReduceScatter, ops: Executor, x: Tensor) -> Tensor:
    return ops.transport.reduce_scatter(x, primitive.axis, primitive.dim, primitive.order)


@runs(AllReduce)
def all_reduce(primitive: AllReduce, ops: Executor, x: Tensor) -> Tensor:
    return ops.transport.all_reduce(x, primitive.axis)


@runs(AllToAll)
def all_to_all(primitive: AllToAll, ops: Executor, x: Tensor) -> Tensor:
    return ops.transport.all_to_all(x, primitive.axis, primitive.split, primitive.concat, primitive.order)


# Families of primitives in files of their own register themselves when they are imported.
from validate import (  # noqa: E402
    kernels_affine_scan,  # noqa: F401
    kernels_block_table,  # noqa: F401
    kernels_chosen,  # noqa: F401
    kernels_convolution,  # noqa: F401
    kernels_fourier,  # noqa: F401
    kernels_selection,  # noqa: F401
    kernels_sorted,  # noqa: F401
    kernels_thinning,  # noqa: F401
    kernels_triangular,  # noqa: F401
)
