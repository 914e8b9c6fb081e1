"""Elementwise functions, reductions over one axis, and the materialised softmax."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from costmodel.dims import Dim, Shape, is_number, minimum, product, same
from costmodel.masks import Mask
from costmodel.ops.primitive import Entrywise, Flops, Primitive, Reading, Spec
from costmodel.tensor import Tensor

if TYPE_CHECKING:
    from costmodel.ops.vocabulary import Vocabulary

Gradient = Callable[["Vocabulary[Any]", Sequence[Any], Any, Any], Sequence[Any]]


@dataclass(frozen=True)
class Function:
    """An elementwise function: its FLOPs for one element, and its gradient over the vocabulary.

    ``gradient(ops, inputs, output, output_gradient)`` gives, for each input, a function that computes its gradient.
    """

    elementwise: int
    special: int
    gradient: Gradient


def _silu_gradient(ops: Vocabulary[Any], x: Sequence[Any], y: Any, g: Any) -> Any:
    # d silu = sigmoid(x) + silu(x) (1 - sigmoid(x))
    gate = ops.map("sigmoid", x[0])
    return ops.map("mul", g, ops.map("add", gate, ops.map("mul", y, ops.map("complement", gate))))


def _gelu_gradient(ops: Vocabulary[Any], x: Sequence[Any], y: Any, g: Any) -> Any:
    return ops.map("mul", g, ops.map("gelu_slope", x[0]))


def _chosen(ops: Vocabulary[Any], a: Any, b: Any, g: Any) -> Any:
    """Gradients of what is chosen where a >= b, and of what is chosen elsewhere."""
    return (
        lambda: ops.map("mul", g, ops.map("at_least", a, b)),
        lambda: ops.map("mul", g, ops.map("complement", ops.map("at_least", a, b))),
    )


#: Gradients are given as functions, so that one which nobody asks for costs nothing.
FUNCTIONS: dict[str, Function] = {
    "add": Function(1, 0, lambda ops, x, y, g: (lambda: g, lambda: g)),
    "sub": Function(1, 0, lambda ops, x, y, g: (lambda: g, lambda: ops.map("neg", g))),
    "mul": Function(1, 0, lambda ops, x, y, g: (lambda: ops.map("mul", g, x[1]), lambda: ops.map("mul", g, x[0]))),
    "neg": Function(1, 0, lambda ops, x, y, g: (lambda: ops.map("neg", g),)),
    "complement": Function(1, 0, lambda ops, x, y, g: (lambda: ops.map("neg", g),)),
    "square": Function(1, 0, lambda ops, x, y, g: (lambda: ops.map("mul", g, ops.scale(x[0], 2)),)),
    "sigmoid": Function(
        2, 1, lambda ops, x, y, g: (lambda: ops.map("mul", g, ops.map("mul", y, ops.map("complement", y))),)
    ),
    "silu": Function(3, 1, lambda ops, x, y, g: (lambda: _silu_gradient(ops, x, y, g),)),
    "rsqrt_eps": Function(1, 1, lambda ops, x, y, g: (lambda: ops.map("mul", g, ops.map("minus_half_cube", y)),)),
    "minus_half_cube": Function(3, 0, lambda ops, x, y, g: ()),  # the derivative of rsqrt_eps, from its output
    "div": Function(
        1,
        0,
        lambda ops, x, y, g: (
            lambda: ops.map("div", g, x[1]),
            lambda: ops.map("neg", ops.map("div", ops.map("mul", g, y), x[1])),
        ),
    ),
    "exp": Function(0, 1, lambda ops, x, y, g: (lambda: ops.map("mul", g, y),)),
    "log": Function(0, 1, lambda ops, x, y, g: (lambda: ops.map("div", g, x[0]),)),
    "sqrt": Function(0, 1, lambda ops, x, y, g: (lambda: ops.scale(ops.map("div", g, y), 0.5),)),
    "sin": Function(0, 1, lambda ops, x, y, g: (lambda: ops.map("mul", g, ops.map("cos", x[0])),)),
    "cos": Function(0, 1, lambda ops, x, y, g: (lambda: ops.map("neg", ops.map("mul", g, ops.map("sin", x[0]))),)),
    "tanh": Function(
        0, 1, lambda ops, x, y, g: (lambda: ops.map("mul", g, ops.map("complement", ops.map("square", y))),)
    ),
    "softplus": Function(1, 2, lambda ops, x, y, g: (lambda: ops.map("mul", g, ops.map("sigmoid", x[0])),)),
    "log_sigmoid": Function(
        2, 2, lambda ops, x, y, g: (lambda: ops.map("mul", g, ops.map("complement", ops.map("sigmoid", x[0]))),)
    ),
    # x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): Hendrycks & Gimpel 2016, arXiv 1606.08415, equation 2
    "gelu": Function(8, 1, lambda ops, x, y, g: (lambda: _gelu_gradient(ops, x, y, g),)),
    # The derivatives of gelu, from its input; a memory that is trained in the layer has both.
    "gelu_slope": Function(16, 1, lambda ops, x, y, g: (lambda: ops.map("mul", g, ops.map("gelu_curvature", x[0])),)),
    "gelu_curvature": Function(14, 1, lambda ops, x, y, g: ()),
    "reciprocal": Function(
        1, 0, lambda ops, x, y, g: (lambda: ops.map("neg", ops.map("mul", g, ops.map("square", y))),)
    ),
    "relu": Function(1, 0, lambda ops, x, y, g: (lambda: ops.map("mul", g, ops.map("is_positive", y)),)),
    "abs": Function(1, 0, lambda ops, x, y, g: (lambda: ops.map("mul", g, ops.map("sign", x[0])),)),
    # Where both are equal, the first gets the gradient.
    "maximum": Function(1, 0, lambda ops, x, y, g: _chosen(ops, x[0], x[1], g)),
    "minimum": Function(1, 0, lambda ops, x, y, g: _chosen(ops, x[1], x[0], g)),
    "is_positive": Function(1, 0, lambda ops, x, y, g: ()),
    "sign": Function(1, 0, lambda ops, x, y, g: ()),
    "at_least": Function(1, 0, lambda ops, x, y, g: ()),  # 1 where x >= y, else 0
}


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """The shape of an elementwise result; an axis of size 1, or a missing leading axis, stretches.

    Raises:
        ValueError: when two sizes of an axis differ and neither is 1.
    """
    rank = max(len(shape) for shape in shapes)
    result: list[Dim] = []
    for axis in range(-rank, 0):
        sizes = [shape[axis] for shape in shapes if len(shape) >= -axis and not is_number(shape[axis], 1)]
        if any(not same(size, sizes[0]) for size in sizes[1:]):
            raise ValueError(f"shapes {shapes} do not broadcast along axis {axis}")
        result.append(sizes[0] if sizes else 1)
    return tuple(result)


def _summed(ops: Vocabulary[Any], rule: Callable[[], Any], x: Any) -> Any:
    return ops.sum_to(rule(), ops.shape(x))


@dataclass(frozen=True)
class Map(Primitive):
    """An elementwise function of one or two tensors, with broadcasting.

    Attributes:
        in_place: whether the result is written over the first of them.
    """

    function: str
    in_place: bool = False

    family = "elementwise"

    @property
    def kernel(self) -> str:
        return self.function

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return (Spec(broadcast([t.shape for t in inputs]), inputs[0].width, 0 if self.in_place else None),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        function, n = FUNCTIONS[self.function], outputs[0].elements
        return {"elementwise": function.elementwise * n, "special": function.special * n}

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        rules = FUNCTIONS[self.function].gradient(ops, inputs, outputs[0], gradients[0])
        return [partial(_summed, ops, rule, x) for rule, x in zip(rules, inputs, strict=True)]


@dataclass(frozen=True)
class Scale(Entrywise):
    """Multiplication by a constant that is not a tensor."""

    factor: Dim

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        return (ops.scale(gradients[0], self.factor),)


@dataclass(frozen=True)
class Sum(Primitive):
    """Sum over some axes, which stay with size 1; n elements cost n FLOP."""

    axes: tuple[int, ...]

    family = "reduction"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        shape = tuple(1 if axis in self.axes else size for axis, size in enumerate(inputs[0].shape))
        return (Spec(shape, inputs[0].width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"reduction": inputs[0].elements}

    def overheads(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, Dim]:
        """Along the last axis line by line; else whole rows are added up, which are read again."""
        along = len(inputs[0].shape) - 1 in self.axes
        return {"line": outputs[0].elements} if along else {"again": inputs[0].bytes}

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        return (ops.expand(gradients[0], ops.shape(inputs[0])),)


@dataclass(frozen=True)
class Shift(Entrywise):
    """Addition of a constant that is not a tensor."""

    constant: float

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        return (gradients[0],)


@dataclass(frozen=True)
class Max(Primitive):
    """Maximum over some axes, which stay with size 1; n elements cost n FLOP.

    The gradient goes to every element that equals the maximum.
    """

    axes: tuple[int, ...]

    family = "reduction"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        shape = tuple(1 if axis in self.axes else size for axis, size in enumerate(inputs[0].shape))
        return (Spec(shape, inputs[0].width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"reduction": inputs[0].elements}

    def overheads(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, Dim]:
        return {"line": outputs[0].elements}

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        return (ops.map("mul", ops.map("at_least", inputs[0], outputs[0]), gradients[0]),)


@dataclass(frozen=True)
class CumSum(Primitive):
    """Running sum along an axis; n elements cost n FLOP.

    Attributes:
        reverse: from the end.
        exclusive: each entry is the sum of those before it; otherwise it is in its own sum.
    """

    axis: int
    reverse: bool = False
    exclusive: bool = False

    family = "reduction"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return (Spec(inputs[0].shape, inputs[0].width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"reduction": inputs[0].elements}

    def overheads(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, Dim]:
        """Each element is in another cache line than the one before it, unless the axis is the last."""
        inner = product(inputs[0].shape[self.axis + 1 :])
        return {"line": minimum(inner - 1, 1) * inputs[0].elements}

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        return ops.apply(CumSum(self.axis, not self.reverse, self.exclusive), gradients[0])


@dataclass(frozen=True)
class Masked(Entrywise):
    """Materialised pairs [..., n_q, n_k] where a mask leaves them, and ``fill`` elsewhere; 1 FLOP a pair.

    Attributes:
        fill: ``"0"`` or ``"-inf"``.
        strict: leave out the pairs of a query with its own key too.
    """

    mask: Mask
    fill: str = "0"
    strict: bool = False

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        return ops.apply(Masked(self.mask, "0", self.strict), gradients[0])


@dataclass(frozen=True)
class Softmax(Primitive):
    """Scaled, masked softmax of materialised scores [..., n_q, n_k] in one kernel; also gives log-sum-exp.

    A score costs scale, subtract and divide (elementwise), maximum and sum (reduction) and one exponential; masked
    scores are computed and thrown away.
    """

    scale: Dim
    mask: Mask

    family = "reduction"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return (Spec(inputs[0].shape, inputs[0].width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        n = self._scores(inputs[0].shape, reading)
        return {"elementwise": 3 * n, "reduction": 2 * n, "special": n}

    def _scores(self, shape: Shape, reading: Reading) -> Dim:
        *outer, n_q, n_k = shape
        pairs = self.mask.useful_pairs(n_q, n_k) if reading is Reading.USEFUL else n_q * n_k
        return product(outer) * pairs

    def overheads(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, Dim]:
        return {"line": product(inputs[0].shape[:-1])}

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        return ops.apply(SoftmaxBackward(self.scale, self.mask), outputs[0], gradients[0])


@dataclass(frozen=True)
class SoftmaxBackward(Primitive):
    """``scale * p * (g - sum(p * g))``: five elementwise and reduction FLOP a score."""

    scale: Dim
    mask: Mask

    family = "reduction"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return (Spec(inputs[0].shape, inputs[0].width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        n = Softmax(self.scale, self.mask)._scores(inputs[0].shape, reading)
        return {"elementwise": 4 * n, "reduction": n}

    def overheads(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, Dim]:
        return {"line": product(inputs[0].shape[:-1])}


@dataclass(frozen=True)
class Cast(Primitive):
    """The same numbers in another element width: ``"model"``, ``"accumulate"`` or ``"gradient"``."""

    to: str
    width: Dim

    family = "copy"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return (Spec(inputs[0].shape, self.width),)

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        return (ops.cast(gradients[0], ops.precision(inputs[0])),)


def elements_match(a: Shape, b: Shape) -> bool:
    """Whether two shapes hold the same number of elements."""
    return same(product(a), product(b))
