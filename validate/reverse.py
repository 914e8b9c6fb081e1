"""Gradients on real tensors, by the vocabulary's own rules.

Autograd is told to call, for a primitive, the primitive's backward rule; for an algorithm with its own backward, that;
for a fused kernel, the recomputation of its body. So what runs backward is what the tracer reads, and what autograd
keeps in between is what the rule needs and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from costmodel.dims import Shape
from costmodel.ops.primitive import Primitive
from costmodel.ops.scan import Operands, Recurrence
from costmodel.ops.scan import backward as scan_backward
from costmodel.program import operations
from costmodel.tensor import Tensor as Traced
from costmodel.trace import Tracer, Widths, trace
from validate import kernels
from validate.releasing import Releasing, Step

if TYPE_CHECKING:
    from validate.executor import Executor


def _save(ctx: Any, ops: Executor, *tensors: Tensor) -> tuple[Step, ...] | None:
    """Keep tensors for the backward pass: what this will do to memory, if that is known."""
    steps = ops.saves(tensors) if any(ctx.needs_input_grad) else None
    ctx.save_for_backward(*tensors)
    return steps


class Recorded(torch.autograd.Function):
    """A primitive, and its backward rule."""

    @staticmethod
    def forward(ctx: Any, ops: Executor, primitive: Primitive, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = kernels.run(primitive, ops, inputs)
        ops.look_through(type(primitive).__name__, outputs)
        wanted = tuple(ctx.needs_input_grad[2:])
        shapes = tuple(tuple(x.shape) for x in (*inputs, *outputs))
        read = tensors_read(primitive, shapes, len(inputs), wanted)
        ctx.ops, ctx.primitive, ctx.wanted = ops, primitive, wanted
        _save(ctx, ops, *(x for x, needed in zip((*inputs, *outputs), read, strict=True) if needed))
        # A rule may ask for the shape of what it does not read: a tensor without memory tells it.
        ctx.stand_ins = [
            None if needed else torch.empty(x.shape, dtype=x.dtype, device="meta")
            for x, needed in zip((*inputs, *outputs), read, strict=True)
        ]
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        saved = iter(ctx.saved_tensors)
        known = [next(saved) if x is None else x for x in ctx.stand_ins]
        inputs, outputs = known[: len(ctx.wanted)], known[len(ctx.wanted) :]
        if gradients[0] is None:
            return None, None, *(None for _ in inputs)
        found = ctx.primitive.backward(ctx.ops, inputs, outputs, gradients)
        return None, None, *asked_for(found, ctx.wanted)


class Stated(torch.autograd.Function):
    """An algorithm whose backward is its own (``Vocabulary.custom``)."""

    @staticmethod
    def forward(
        ctx: Any, ops: Executor, forward: Callable[..., Any], backward: Callable[..., Any], *inputs: Tensor
    ) -> Any:
        result, saved = forward(ops, *inputs)
        ctx.ops, ctx.own_backward, ctx.wanted = ops, backward, tuple(ctx.needs_input_grad[3:])
        ctx.steps = _save(ctx, ops, *saved)
        ctx.set_materialize_grads(False)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        if all(g is None for g in gradients):
            return None, None, None, *(None for _ in ctx.wanted)
        saved = tuple(x.detach() for x in ctx.saved_tensors)  # results among them would be differentiated again
        given = [*saved, *(g for g in gradients if g is not None)]
        known = ctx.steps is not None and len(given) == len(saved) + len(gradients)
        releasing = Releasing(ctx.steps, ()) if known else None
        if releasing is not None:
            releasing.keep(given)
        with ctx.ops.releasing(releasing):
            found = ctx.own_backward(ctx.ops, saved, *gradients)
        return None, None, None, *asked_for(found, ctx.wanted)


class Recomputed(torch.autograd.Function):
    """A fused kernel (``Vocabulary.fused``): keeps its inputs, and recomputes the rest when going backward."""

    @staticmethod
    def forward(ctx: Any, ops: Executor, body: Callable[..., Any], *inputs: Tensor) -> Any:
        ctx.ops, ctx.body, ctx.wanted = ops, body, tuple(ctx.needs_input_grad[2:])
        _save(ctx, ops, *inputs)
        with ops.as_one():
            return body(ops, *inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        inputs = [x.detach().requires_grad_(want) for x, want in zip(ctx.saved_tensors, ctx.wanted, strict=True)]
        with ctx.ops.as_one():
            with torch.enable_grad():
                result = ctx.body(ctx.ops, *inputs)
            outputs = result if isinstance(result, tuple) else (result,)
            sources = [x for x, want in zip(inputs, ctx.wanted, strict=True) if want]
            found = torch.autograd.grad(outputs, sources, gradients)
            del result, outputs
        ctx.ops.ended("backward of a kernel", found)
        each = iter(found)
        return None, None, *(next(each) if want else None for want in ctx.wanted)


class Scanned(torch.autograd.Function):
    """A loop as one kernel (``Vocabulary.scan``): keeps its operands; see ``costmodel.ops.scan.backward``."""

    @staticmethod
    def forward(ctx: Any, ops: Executor, loop: Recurrence, given: Operands, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.ops, ctx.loop = ops, loop
        ctx.places = len(given.state), len(given.xs), given.axis, given.reverse
        ctx.wanted = tuple(ctx.needs_input_grad[3:])
        _save(ctx, ops, *tensors)
        ctx.set_materialize_grads(False)
        return run_scan(ops, loop, given)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        given = Operands.of(ctx.saved_tensors, *ctx.places)
        found = scan_backward(ctx.ops, ctx.loop, given, gradients)
        return None, None, None, *asked_for(found, ctx.wanted)


def run_scan(ops: Executor, loop: Recurrence, given: Operands) -> tuple[Tensor, ...]:
    """The steps one after the other: the last state, and what they hand out, stacked."""
    state, handed = given.state, []
    steps = range(given.xs[0].shape[given.axis])
    with ops.as_loop():
        for index in reversed(steps) if given.reverse else steps:
            own = tuple(x.select(given.axis, index) for x in given.xs)
            after = loop.advance(ops, state, own, given.constants)
            handed.append(loop.emit(ops, state, after, own, given.constants))
            state = after
    if given.reverse:
        handed.reverse()
    # A part of a step's tensor would keep the whole of it.
    last = (x if x.nbytes == x.untyped_storage().nbytes() else x.clone() for x in state)
    return (*last, *(torch.stack(entries, given.axis) for entries in zip(*handed, strict=True)))


def pulled_back(
    method: Callable[..., Any], inputs: Sequence[Tensor], gradients: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """``method(*inputs)`` run and differentiated; zeros for an input that it does not use."""
    sources = [x.detach().requires_grad_() for x in inputs]
    with torch.enable_grad():
        result = method(*sources)
    outputs = result if isinstance(result, tuple) else (result,)
    found = torch.autograd.grad(outputs, sources, gradients, allow_unused=True)
    return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True))


recorded: Callable[..., tuple[Tensor, ...]] = Recorded.apply


def stated(ops: Executor, forward: Callable[..., Any], backward: Callable[..., Any], *inputs: Tensor) -> Any:
    """The result of ``forward``."""
    return Stated.apply(ops, forward, backward, *inputs) if torch.is_grad_enabled() else forward(ops, *inputs)[0]


def recomputed(ops: Executor, body: Callable[..., Any], *inputs: Tensor) -> Any:
    """The result of ``body``."""
    if torch.is_grad_enabled():
        return Recomputed.apply(ops, body, *inputs)
    with ops.as_one():
        return body(ops, *inputs)


def scanned(ops: Executor, loop: Recurrence, given: Operands) -> tuple[Tensor, ...]:
    """The last state, and what the steps hand out."""
    results: tuple[Tensor, ...]
    results = Scanned.apply(ops, loop, given, *given.all) if torch.is_grad_enabled() else run_scan(ops, loop, given)
    return results


def asked_for(found: Sequence[Any], wanted: Sequence[bool]) -> list[Tensor | None]:
    """The gradients that are wanted; a function in place of one is called only then."""
    return [
        (gradient() if callable(gradient) else gradient) if want else None
        for gradient, want in zip(found, wanted, strict=True)
    ]


@lru_cache(maxsize=4096)
def tensors_read(
    primitive: Primitive, shapes: tuple[Shape, ...], inputs: int, wanted: tuple[bool, ...]
) -> tuple[bool, ...]:
    """Which inputs and outputs a primitive's backward rule reads for the wanted gradients: found by tracing the rule.

    Args:
        shapes: of the inputs and then the outputs.
        inputs: how many of them are inputs.
    """
    known = [Traced.new(shape, 1) for shape in shapes]
    gradients = [Traced.new(shape, 1) for shape in shapes[inputs:]]

    def rule(ops: Tracer, *_: Any) -> tuple[Any, ...]:
        return tuple(asked_for(primitive.backward(ops, known[:inputs], known[inputs:], gradients), wanted))

    program = trace(Tracer(Widths(1, 1, 1), 1), rule, (), {})
    touched = {x.storage for operation, _ in operations(program.forward) for x in operation.inputs}
    return tuple(x.storage in touched for x in known)
