"""What mixers with a recurrence have around it: short convolution, norm and gate, a step of decoding."""

from __future__ import annotations

from typing import Any, TypeVar

from costmodel.carries.direct import Direct
from costmodel.composite import mean
from costmodel.dims import Dim, same
from costmodel.mixer import Site
from costmodel.ops.convolution import Under, under
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")


def gated_norm(ops: Vocabulary[T], x: T, gate: T, weight: T | None = None, function: str = "silu") -> T:
    """norm(x) * weight * function(gate) over the last axis, as one kernel; the norm is by root mean square."""

    def body(ops: Vocabulary[Any], x: Any, gate: Any, *weight: Any) -> Any:
        shape = ops.shape(x)
        normed = ops.mul(x, ops.map("rsqrt_eps", mean(ops, ops.map("square", x), (len(shape) - 1,))))
        for gain in weight:
            normed = ops.mul(normed, gain)
        return ops.mul(normed, ops.map(function, gate))

    result: T = ops.fused("gated norm", body, x, gate, *(() if weight is None else (weight,)))
    return result


def gated_layer_norm(ops: Vocabulary[T], x: T, gate: T, weight: T, function: str) -> T:
    """layer norm(x) * weight * function(gate) over the last axis, as one kernel."""

    def body(ops: Vocabulary[Any], x: Any, gate: Any, weight: Any) -> Any:
        centred = ops.map("sub", x, mean(ops, x, (3,)))
        variance = mean(ops, ops.map("square", centred), (3,))
        normed = ops.mul(ops.mul(centred, ops.map("rsqrt_eps", variance)), weight)
        return ops.mul(normed, ops.map(function, gate))

    result: T = ops.fused("gated layer norm", body, x, gate, weight)
    return result


def unit(ops: Vocabulary[T], x: T) -> T:
    """x / sqrt(sum(x^2) + eps) over the last axis, as one kernel."""

    def body(ops: Vocabulary[Any], x: Any) -> Any:
        squares = ops.sum(ops.map("square", x), (len(ops.shape(x)) - 1,))
        return ops.mul(x, ops.map("rsqrt_eps", squares))

    result: T = ops.fused("unit length", body, x)
    return result


def between(ops: Vocabulary[T], x: T, before: T, *weights: T) -> tuple[T, ...]:
    """x + (before - x) weight, for each weight [D], as one kernel: tokens mixed with their predecessors (RWKV)."""

    def body(ops: Vocabulary[Any], x: Any, before: Any, *weights: Any) -> tuple[Any, ...]:
        difference = ops.map("sub", before, x)
        return tuple(ops.add(x, ops.mul(difference, weight)) for weight in weights)

    mixed: tuple[T, ...] = ops.fused("token shift", body, x, before, *weights)
    return mixed


def short_convolution(ops: Vocabulary[T], x: T, taps: T, at: Site[T]) -> T:
    """silu of a causal depthwise convolution, as one kernel: x [B, H, n, d], taps [H, d, K]."""
    b, h, n, d = ops.shape(x)
    k = ops.shape(taps)[2]
    channels = ops.reshape(ops.permute(x, (0, 1, 3, 2)), (b, h * d, n))
    seen = ops.halo(channels, 2, k - 1, 0, at.line)
    mixed = slide(ops, seen, ops.reshape(taps, (h * d, k)), under(at.packed(n), k - 1))
    return ops.permute(ops.reshape(mixed, (b, h, d, n)), (0, 1, 3, 2))


def convolution_step(ops: Vocabulary[T], x: T, taps: T, cache: T) -> T:
    """The same for one new token; the cache [B, H d, K - 1] holds the inputs of the tokens before."""
    b, h, n, d = ops.shape(x)
    mixed = slide(ops, _seen(ops, x, cache), ops.reshape(taps, (h * d, ops.shape(taps)[2])))
    return ops.permute(ops.reshape(mixed, (b, h, d, n)), (0, 1, 3, 2))


def remembered(ops: Vocabulary[T], x: T, taps: T, cache: T) -> Direct[T]:
    """One token x [B, H, 1, d] of a depthwise convolution with taps [H, d, K]; cache as for ``convolution_step``."""
    b, h, n, d = ops.shape(x)
    mixed = ops.depthwise(_seen(ops, x, cache), ops.reshape(taps, (h * d, ops.shape(taps)[2])))
    return Direct(ops.permute(ops.reshape(mixed, (b, h, d, n)), (0, 1, 3, 2)))


def seen_rows(ops: Vocabulary[T], x: T, cache: T) -> T:
    """One token x [B, H, 1, d] after the K - 1 before it: [B, H, K, d]; cache as for ``convolution_step``."""
    b, h, _, d = ops.shape(x)
    seen = _seen(ops, x, cache)
    return ops.permute(ops.reshape(seen, (b, h, d, ops.shape(seen)[2])), (0, 1, 3, 2))


def _seen(ops: Vocabulary[T], x: T, cache: T) -> T:
    """The channels [B, H d, K] of a new token and those before it, which the cache then holds."""
    b, h, n, d = ops.shape(x)
    before = ops.shape(cache)[2]
    seen = ops.concat([cache, ops.reshape(ops.permute(x, (0, 1, 3, 2)), (b, h * d, n))], 2)
    ops.append(cache, ops.slice(seen, 2, 1, before), 0)
    return seen


def slide(ops: Vocabulary[T], x: T, taps: T, packed: Under | None = None) -> T:
    """silu of a depthwise convolution [B, C, n], as one kernel: x [B, C, n + K - 1], taps [C, K]."""

    def body(ops: Vocabulary[Any], x: Any, taps: Any) -> Any:
        return ops.map("silu", ops.depthwise(x, taps, packed=packed))

    result: T = ops.fused("short convolution", body, x, taps, family="convolution")
    return result


def own_rows(ops: Vocabulary[T], weight: T, n: Dim, at: Site[T]) -> T:
    """Of a weight with a row for each token, those of this rank's n tokens, which lie on the ranks in order."""
    if at.line is None or same(ops.shape(weight)[0], n):
        return weight
    return ops.slice(weight, 0, at.line.rank * n, n)


def by_channel(ops: Vocabulary[T], x: T) -> T:
    """Tokens x [B, n, D] by channel: [B, D, n, 1]."""
    b, n, d = ops.shape(x)
    return ops.reshape(ops.permute(x, (0, 2, 1)), (b, d, n, 1))


def by_token(ops: Vocabulary[T], x: T) -> T:
    """Channels x [B, D, n, 1] by token: [B, n, D]."""
    b, d, n, _ = ops.shape(x)
    return ops.permute(ops.reshape(x, (b, d, n)), (0, 2, 1))


def decay_rows(ops: Vocabulary[T], log_decay: T) -> T:
    """What one token [B, H, 1, d or 1] leaves of the rows of a state: exp(log_decay) [B, H, d or 1, 1]."""
    b, h, _, d = ops.shape(log_decay)
    return ops.map("exp", ops.reshape(log_decay, (b, h, d, 1)))


def gated_step(
    ops: Vocabulary[T],
    read: tuple[T, T, T],
    log_decay: T,
    cache: T,
    aside: tuple[T, ...] = (),
    before: bool = False,
) -> Direct[T]:
    """One token q, k [B, H, 1, d], v [B, H, 1, e] of ``costmodel.recurrences.gated``, against its state.

    Args:
        before: whether the token reads the state before it.
    """
    q, k, v = read
    added = ops.cast(ops.contract("bhnd,bhne->bhde", k, v), "accumulate")
    earlier = ops.contract("bhnd,bhde->bhne", q, cache) if before else None
    state = ops.append(cache, ops.add(ops.mul(cache, decay_rows(ops, log_decay)), added), 0)
    return Direct(ops.contract("bhnd,bhde->bhne", q, state) if earlier is None else earlier, aside=aside)


def layer_normed(ops: Vocabulary[T], x: T, weight: T, bias: T) -> T:
    """(x - mean) / standard deviation * weight + bias over the last axis; to be fused with what is around it."""
    axis, size = (len(ops.shape(x)) - 1,), ops.shape(x)[-1]
    centred = ops.map("sub", x, ops.scale(ops.sum(x, axis), 1 / size))
    variance = ops.scale(ops.sum(ops.map("square", centred), axis), 1 / size)
    return ops.add(ops.mul(ops.mul(centred, ops.map("rsqrt_eps", variance)), weight), bias)


def of_heads(ops: Vocabulary[T], weight: T) -> T:
    """A weight [H, d] as it meets tokens: [H, 1, d]."""
    h, d = ops.shape(weight)
    return ops.reshape(weight, (h, 1, d))


def gated_normed_first(ops: Vocabulary[T], mixed: T, x: T, skip: T, gate: T, weight: T) -> T:
    """norm((mixed + skip x) silu(gate)) * weight over the last axis, as one kernel."""

    def body(ops: Vocabulary[Any], mixed: Any, x: Any, skip: Any, gate: Any, weight: Any) -> Any:
        gated = ops.mul(ops.add(mixed, ops.mul(x, skip)), ops.map("silu", gate))
        return ops.mul(ops.mul(gated, ops.map("rsqrt_eps", mean(ops, ops.map("square", gated), (3,)))), weight)

    result: T = ops.fused("norm of gated values", body, mixed, x, skip, gate, weight)
    return result


def gated_unit(ops: Vocabulary[T], y: T, value: T, gate: T) -> T:
    """The gated linear unit (y value) sigmoid(y gate) [B, n, D], of y [B, H, n, e] and weights [H, e, D]."""

    def gated(ops: Vocabulary[Any], value: Any, gate: Any) -> Any:
        return ops.mul(value, ops.map("sigmoid", gate))

    both = (ops.contract("bhle,hed->bld", y, weight) for weight in (value, gate))
    result: T = ops.fused("gated linear unit", gated, *both)
    return result
