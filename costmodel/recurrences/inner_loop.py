"""Test-time training: the state is a small network of each head, trained on the tokens as they come.

The network f has layers X W_i + b_i, one or two, with GELU between them. A mini-batch of C tokens takes gradient steps
on the loss |LN(f(K)) - (V - K)|^2 / 2, all from the network before it; token i reads LN(f_i(q_i)) + q_i, with the
network after its own step. ``dual`` never writes the W of single tokens (Sun et al. 2024, arXiv 2407.04620, section
2.5 and appendix A; test-time-training/ttt-lm-pytorch ttt.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from costmodel.carries.state import Recurrent, Tensors
from costmodel.dims import Dim, divide
from costmodel.masks import Mask
from costmodel.ops.scan import Recurrence
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.pieces import layer_normed, of_heads

T = TypeVar("T")

#: Weight [B, H, d, e] and bias [B, H, 1, e] of each layer.
Network = list[tuple[T, T]]


def network(tensors: Sequence[T]) -> Network[T]:
    """Weights and biases in turn, as the layers they belong to."""
    return list(zip(tensors[::2], tensors[1::2], strict=True))


@dataclass(frozen=True)
class InnerNetwork(Recurrent[T]):
    """q, k, v [B, H, n, d] and rates of the tokens [B, H, n, 1]; the state is W and b of each layer in turn.

    Attributes:
        rate: of each token.
        weights: by which the steps up to each place of a mini-batch are multiplied [H, C, 1]; weight and bias of the
            layer norm LN [H, d]; W [H, d, e] and b [H, e] of each layer before the first token.
        chunk: tokens of a mini-batch, C.
    """

    along: ClassVar[tuple[str, ...]] = ("q", "k", "v", "rate")
    of_heads: ClassVar[tuple[str, ...]] = ("weights",)

    q: T
    k: T
    v: T
    rate: T
    weights: tuple[T, ...]
    chunk: Dim

    def initial(self, ops: Vocabulary[T]) -> Tensors[T]:
        batch = ops.shape(self.q)[0]
        return tuple(started(ops, x, batch) for layer in network(self.weights[3:]) for x in layer)

    def run(self, ops: Vocabulary[T], state: Tensors[T]) -> tuple[T, Tensors[T]]:
        b, h, n, d = ops.shape(self.q)

        def cut(x: T) -> T:
            return ops.reshape(x, (b, h, divide(n, self.chunk), self.chunk, ops.shape(x)[3]))

        places, *norms = self.weights[:3]
        tokens, constants = tuple(cut(x) for x in self.streams()), (places, *(of_heads(ops, x) for x in norms))
        after, (mixed,) = ops.scan(_MiniBatch().loop, state, tokens, constants, axis=2)
        return ops.reshape(mixed, (b, h, n, d)), after


def started(ops: Vocabulary[T], x: T, batch: Dim) -> T:
    """A weight [H, d, e] or bias [H, e] before the first token, for each sequence: [B, H, d or 1, e]."""
    h, *inward, e = ops.shape(x)
    shape = h, inward[0] if inward else 1, e
    return ops.cast(ops.expand(ops.reshape(x, (1, *shape)), (batch, *shape)), "accumulate")


def affine(ops: Vocabulary[T], x: T, layer: tuple[T, T]) -> T:
    """x W + b [B, H, C, e] of x [B, H, C, d]."""
    return ops.add(ops.contract("bhcd,bhde->bhce", x, layer[0]), layer[1])


def read_out(ops: Vocabulary[T], q: T, layers: Network[T]) -> T:
    """f(q) [B, H, C, d]."""
    x = affine(ops, q, layers[0])
    for layer in layers[1:]:
        x = affine(ops, ops.map("gelu", x), layer)
    return x


def inner_gradients(ops: Vocabulary[T], layers: Network[T], k: T, v: T, norms: tuple[T, T]) -> tuple[list[T], list[T]]:
    """What each layer reads of the keys, and the loss's gradient by what it gives, both [B, H, C, ...]."""
    inputs, given = [k], [affine(ops, k, layers[0])]
    for layer in layers[1:]:
        inputs.append(ops.map("gelu", given[-1]))
        given.append(affine(ops, inputs[-1], layer))
    gradients = [loss_gradient(ops, given[-1], ops.map("sub", v, k), norms)]
    for (weight, _), x in zip(layers[:0:-1], given[-2::-1], strict=True):
        back = ops.contract("bhce,bhde->bhcd", gradients[0], weight)
        gradients.insert(0, ops.mul(back, ops.map("gelu_slope", x)))
    return inputs, gradients


def loss_gradient(ops: Vocabulary[T], x: T, target: T, norms: tuple[T, T]) -> T:
    """The gradient of |LN(x) - target|^2 / 2 by x [B, H, C, d]."""
    size, (norm, norm_b) = ops.shape(x)[3], norms

    def mean(x: T) -> T:
        return ops.scale(ops.sum(x, (3,)), 1 / size)

    centred = ops.map("sub", x, mean(x))
    inverse = ops.map("rsqrt_eps", mean(ops.map("square", centred)))
    unit = ops.mul(centred, inverse)
    error = ops.map("sub", ops.add(ops.mul(unit, norm), norm_b), target)
    by_unit = ops.mul(error, norm)
    along = ops.add(mean(by_unit), ops.mul(unit, mean(ops.mul(by_unit, unit))))
    return ops.mul(ops.map("sub", by_unit, along), inverse)


@dataclass(frozen=True)
class _MiniBatch:
    """One mini-batch: ``advance`` keeps each layer's inputs and gradients for ``emit``, called right after it."""

    found: list[Any] = field(default_factory=list)

    @property
    def loop(self) -> Recurrence:
        return Recurrence("mini-batches of gradient steps", self.advance, self.emit)

    def advance(self, ops: Vocabulary[Any], state: Any, tokens: Any, constants: Any) -> Any:
        (_, k, v, rate), (places, *norms) = tokens, constants
        layers = network(state)
        self.found[:] = zip(*inner_gradients(ops, layers, k, v, norms), strict=True)
        last = ops.mul(rate, ops.slice(places, 1, ops.shape(places)[1] - 1, 1))

        def stepped(layer: Any, x: Any, gradient: Any) -> Any:
            step = ops.contract("bhcd,bhce->bhde", ops.mul(x, last), gradient)
            step_b = ops.sum(ops.mul(gradient, last), (2,))
            return ops.map("sub", layer[0], step), ops.map("sub", layer[1], step_b)

        return tuple(y for layer, pair in zip(layers, self.found, strict=True) for y in stepped(layer, *pair))

    def emit(self, ops: Vocabulary[Any], before: Any, after: Any, tokens: Any, constants: Any) -> Any:
        (q, _, _, rate), (places, *norms), causal = tokens, constants, Mask(causal=True)
        b, h, c, _ = ops.shape(rate)
        steps = ops.masked(ops.mul(ops.reshape(rate, (b, h, 1, c)), places), causal)

        def read(y: Any, layer: Any, x: Any, gradient: Any) -> Any:
            scores = ops.mul(ops.contract("bhid,bhjd->bhij", y, x, causal, "ij"), steps)
            moved, moved_b = (ops.contract("bhij,bhje->bhie", z, gradient, causal, "ij") for z in (scores, steps))
            value = ops.map("sub", ops.contract("bhcd,bhde->bhce", y, layer[0]), moved)
            return ops.add(value, ops.map("sub", layer[1], moved_b))

        (first, *others), (pair, *pairs) = network(before), self.found
        self.found.clear()
        y = read(q, first, *pair)
        for layer, pair in zip(others, pairs, strict=True):
            y = read(ops.map("gelu", y), layer, *pair)
        return (ops.add(q, layer_normed(ops, y, *norms)),)
