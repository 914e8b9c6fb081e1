"""What a run of any module costs, op by op, in the classes of ``costmodel.ops.primitive.FLOP_CLASSES``.

Only sizes are read, so that fake tensors do. One multiply-add is 2 FLOP. What counts as how much:

contraction   matrix products and convolutions, by torch's own formulas (``validate.counting.product_formulas``), and
              what torch leaves out: matrix times vector, dot product, triangular solve. Masks are not seen.
elementwise   1 for each element that a pointwise op writes; more for the functions of ``COSTS``, with the numbers of
              ``costmodel.ops.pointwise``; complex numbers 2, their products 6. Depthwise convolutions are here too, 2
              for each tap and output: they have no product over channels.
special       1 for each exponential, logarithm, root, sine and so on.
reduction     1 for each element that a sum, maximum, product or cumulative sum reads.
fft           5 n log2(n) for a transform of n complex numbers, half for real ones (benchFFT's convention).
sort          n log2(n) to sort n numbers, n (1 + log2(k)) for the k largest of n.

A normalisation, loss or other compound is counted as the pointwise ops and reductions that torch decomposes it into.
What is added to a product (a bias) is elementwise, whether in one op or two. Copies, casts, views, gathers, scatters
and ops that make no floating-point number are 0 FLOP (a scatter that adds counts its additions). An op that none of
this covers is an error, never 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from validate.counting import product_formulas


class UnknownOpError(ValueError):
    """An op whose FLOPs nothing here knows."""


@dataclass(frozen=True)
class Cost:
    """FLOPs of a function for each element that it writes."""

    elementwise: int
    special: int = 0


@dataclass(frozen=True)
class Logarithmic:
    """One transform or sort: ``factor * elements * log2(points)`` FLOP."""

    kind: str
    factor: Fraction
    elements: int
    points: int


#: Pointwise ops that cost something else than one elementwise FLOP.
COSTS = (
    {"sigmoid": Cost(2, 1), "silu": Cost(3, 1), "softplus": Cost(1, 2), "log_sigmoid_forward": Cost(2, 2)}
    | {"gelu": Cost(8, 1), "gelu_backward": Cost(16, 1), "rsqrt": Cost(0, 1), "mish": Cost(2, 3)}
    | {"addcmul": Cost(3), "addcdiv": Cost(3), "lerp": Cost(3), "sigmoid_backward": Cost(3), "tanh_backward": Cost(3)}
    | {"native_dropout": Cost(2), "elu": Cost(2, 1), "celu": Cost(2, 1), "selu": Cost(2, 1), "logit": Cost(2, 1)}
    | dict.fromkeys(("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt"), Cost(0, 1))
    | dict.fromkeys(("sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "tanh"), Cost(0, 1))
    | dict.fromkeys(("erf", "erfc", "erfinv", "lgamma", "digamma", "angle"), Cost(0, 1))
    | {"polar": Cost(2, 2)}
)
#: Ops that only move, choose or make numbers, beside views.
MOVES = frozenset(
    {"clone", "copy", "_to_copy", "to", "lift_fresh", "lift_fresh_copy", "detach", "alias", "set", "resize"}
    | {"_unsafe_view", "view_copy", "_reshape_copy", "expand_copy", "complex"}
    | {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "scalar_tensor"}
    | {"zeros", "zeros_like", "new_zeros", "ones", "ones_like", "new_ones", "full", "full_like", "new_full", "fill"}
    | {"zero", "arange", "linspace", "eye", "tril", "triu", "tril_indices", "triu_indices", "diag_embed"}
    | {"rand", "rand_like", "randn", "randn_like", "randint", "randperm", "normal", "uniform", "bernoulli"}
    | {"cat", "stack", "constant_pad_nd", "repeat", "roll", "flip", "where", "masked_fill", "masked_scatter"}
    | {"index", "_unsafe_index", "index_select", "gather", "embedding", "take", "bucketize", "searchsorted"}
    | {"scatter", "index_copy", "index_put", "_index_put_impl", "select_scatter", "slice_scatter", "diagonal_scatter"}
    | {"as_strided_scatter", "select_backward", "slice_backward", "diagonal_backward"}
)
#: FLOPs (elementwise, reduction) of a reduction for each element that it reads, where it is not one reduction FLOP.
REDUCTIONS = (
    dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "max", "min", "sum", "prod"), (0, 1))
    | dict.fromkeys(("var", "var_mean", "std", "std_mean"), (2, 2))
    | {"linalg_vector_norm": (1, 1)}
)
#: Ops that add numbers up at indices: one addition for each element of the argument at this place.
ADDING = {"scatter_add": 3, "index_add": 3, "embedding_dense_backward": 0, "unfold_backward": 0}
#: Transforms, and the FLOP of one element times the logarithm.
TRANSFORMS = {"_fft_c2c": Fraction(5), "_fft_r2c": Fraction(5, 2), "_fft_c2r": Fraction(5, 2)}


class Tally(TorchDispatchMode):
    """Counts the FLOPs of the ops inside.

    Attributes:
        flops: FLOP by class, but for transforms and sorts.
        logarithmic: those, in the order of the calls.

    Raises (inside):
        UnknownOpError: for an op that nothing here covers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[str] = Counter()
        self.logarithmic: list[Logarithmic] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # asks a tensor for its device or layout
            return func(*args, **kwargs)
        rule = _rule(func)
        if rule is None:
            return self._decomposed(func, args, kwargs)
        result = func(*args, **kwargs)
        if rule is _sort or any(x.is_floating_point() or x.is_complex() for x in tree_leaves(result) if _is_tensor(x)):
            rule(self, Called(func, args, kwargs, result))
        return result

    def _decomposed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The op by way of those that torch takes it apart into."""
        with self:
            if func in decomposition_table:
                return decomposition_table[func](*args, **kwargs)
            result = func.decompose(*args, **kwargs)
        if result is NotImplemented:
            raise UnknownOpError(f"{func} is an operation whose FLOPs are not known")
        return result


@dataclass(frozen=True)
class Called:
    """An op that was called."""

    func: Any
    args: Sequence[Any]
    kwargs: Any
    result: Any

    @property
    def output(self) -> Tensor:
        """The first tensor of the result."""
        return next(x for x in tree_leaves(self.result) if _is_tensor(x))


Rule = Callable[[Tally, Called], None]


# Rules --------------------------------------------------------------------------------------------------------------


@cache
def _rule(func: Any) -> Rule | None:
    """What counts an op; ``None`` for one that is to be taken apart."""
    name = _name(func)
    if name in _RULES:
        return _RULES[name]
    if func.overloadpacket in _PRODUCTS:
        return _product
    if func.is_view or not _FREE.isdisjoint(func.tags):
        return _nothing
    if name in COSTS or torch.Tag.pointwise in func.tags:
        return _pointwise
    if name in REDUCTIONS or (torch.Tag.reduction in func.tags and name not in _COMPOUND):
        return _reduction
    return None


def _name(func: Any) -> str:
    """An op's name, the same in place."""
    name = str(func.overloadpacket.__name__)
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def _is_tensor(x: Any) -> bool:
    return isinstance(x, Tensor)


def _nothing(tally: Tally, called: Called) -> None:
    """Nothing is computed."""


def _product(tally: Tally, called: Called) -> None:
    """A product, and what is added to it."""
    count = _PRODUCTS[called.func.overloadpacket](*called.args, **called.kwargs, out_val=called.result)
    tally.flops["contraction"] += count
    if _name(called.func) in ("addmm", "baddbmm", "addmv"):
        tally.flops["elementwise"] += called.output.numel()


def _convolution(tally: Tally, called: Called) -> None:
    """A convolution and its bias, forward or backward."""
    count = _PRODUCTS[called.func.overloadpacket](*called.args, **called.kwargs, out_val=called.result)
    if _name(called.func) == "convolution":
        _, weight, bias, *_, transposed, _padding, groups = called.args
        tally.flops["elementwise"] += called.output.numel() if bias is not None else 0
    else:
        gradient, _, weight, *_, transposed, _padding, groups, wanted = called.args
        tally.flops["reduction"] += gradient.numel() if wanted[2] else 0
    depthwise = weight.shape[1] == 1 and groups > 1 and not (transposed and weight.shape[0] > groups)
    tally.flops["elementwise" if depthwise else "contraction"] += count


def _attention(tally: Tally, called: Called) -> None:
    """A fused attention's softmax, beside its products; numbers as in ``costmodel.ops.fused_attention``."""
    _product(tally, called)
    backward = _name(called.func).endswith("_backward")
    q, k, v = called.args[1:4] if backward else called.args[:3]
    rows = math.prod(q.shape[:-1])
    pairs, outputs = rows * k.shape[-2], rows * v.shape[-1]
    if backward:
        tally.flops.update(elementwise=4 * pairs + outputs, reduction=outputs, special=pairs)
    else:
        tally.flops.update(elementwise=2 * pairs + outputs + rows, reduction=2 * pairs, special=pairs + rows)


def _pointwise(tally: Tally, called: Called) -> None:
    name, output = _name(called.func), called.output
    cost = COSTS.get(name, Cost(1))
    if name == "pow":
        cost = _power(called.args[1])
    factor = 1
    if output.is_complex():
        operands = [x for x in called.args if _is_tensor(x)]
        factor = 6 if name in ("mul", "div") and all(x.is_complex() for x in operands) and len(operands) == 2 else 2
    n = output.numel() * factor
    tally.flops.update(elementwise=cost.elementwise * n, special=cost.special * n)


def _power(exponent: Any) -> Cost:
    """Squares and cubes are products."""
    whole = isinstance(exponent, int | float) and exponent in (1, 2, 3)
    return Cost(max(1, int(exponent) - 1)) if whole else Cost(0, 1)


def _reduction(tally: Tally, called: Called) -> None:
    x = called.args[0]
    n = x.numel() * (2 if x.is_complex() else 1)
    elementwise, reduction = REDUCTIONS.get(_name(called.func), (0, 1))
    tally.flops.update(elementwise=elementwise * n, reduction=reduction * n)


def _adding(tally: Tally, called: Called) -> None:
    tally.flops["elementwise"] += called.args[ADDING[_name(called.func)]].numel()


def _transform(tally: Tally, called: Called) -> None:
    """The longer of input and output is the whole signal, of which a real transform has half the spectrum."""
    x, axes, name = called.args[0], called.args[1], _name(called.func)
    whole = called.output if name == "_fft_c2r" else x
    points = math.prod(whole.shape[axis] for axis in axes)
    tally.logarithmic.append(Logarithmic("fft", TRANSFORMS[name], whole.numel(), points))


def _sort(tally: Tally, called: Called) -> None:
    x, top = called.args[0], _name(called.func) == "topk"
    if top:
        tally.flops["sort"] += x.numel()
    axis = called.args[2] if top and len(called.args) > 2 else -1
    tally.logarithmic.append(Logarithmic("sort", Fraction(1), x.numel(), called.args[1] if top else x.shape[axis]))


def _matrix_vector(matrix: Tensor, *_: Any, **__: Any) -> int:
    return 2 * matrix.numel() * (4 if matrix.is_complex() else 1)


def _added_matrix_vector(added: Tensor, matrix: Tensor, *_: Any, **__: Any) -> int:
    return _matrix_vector(matrix)


def _triangular_solve(triangle: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    """Substitution: n² multiply-adds, halved by the triangle, for each right side."""
    return int(out_val.numel() * triangle.shape[-1])


_aten: Any = torch.ops.aten
#: FLOP by op, from its arguments and ``out_val``: torch's formulas, and what they leave out.
_PRODUCTS: dict[Any, Callable[..., int]] = {
    **product_formulas(),
    _aten.mv: _matrix_vector,
    _aten.dot: _matrix_vector,
    _aten.vdot: _matrix_vector,
    _aten.addmv: _added_matrix_vector,
    _aten.linalg_solve_triangular: _triangular_solve,
}
#: Tags of views in place, and of what asks for values, which fake tensors refuse.
_FREE = {torch.Tag.inplace_view, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
#: Reductions that are taken apart.
_COMPOUND = ("logsumexp", "softmax")
_FLASH = "_scaled_dot_product_flash_attention_for_cpu"
_RULES: dict[str, Rule] = (
    dict.fromkeys(MOVES, _nothing)
    | dict.fromkeys(ADDING, _adding)
    | dict.fromkeys(TRANSFORMS, _transform)
    | dict.fromkeys(("sort", "topk"), _sort)
    | dict.fromkeys(("convolution", "convolution_backward"), _convolution)
    | dict.fromkeys((_FLASH, f"{_FLASH}_backward"), _attention)
)
