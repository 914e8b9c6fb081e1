"""Exact formulas of a torch module that knows nothing of this project.

The module is made and run at several sizes of every symbol; what it does is counted (``validate.op_counts``) and the
polynomials through the counts are proved at sizes that they were not fitted to (``validate.interpolation``). Loops and
branches of Python that depend on sizes are run for every size.

Proofs run on fake tensors, which have sizes and no values: large sizes cost nothing, and whatever depends on values
shows itself as an error. They take torch twenty times as long as small real ones, so that fits run on real tensors
where these are small and count the same.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._pytree import tree_leaves

from costmodel.errors import InputError, UnknownNameError
from costmodel.expression import exact_call, lift
from costmodel.formulas import Formula
from costmodel.ops.primitive import FLOP_CLASSES
from costmodel.registry import load_file
from validate.counting import keeping
from validate.interpolation import (
    Counter,
    Counts,
    Fit,
    HeldOutError,
    NotPolynomialError,
    Point,
    SizesRefusedError,
    interpolate,
    start,
)
from validate.op_counts import Logarithmic, Tally, UnknownOpError

#: The smallest size to count at: as small as it goes without 1, which is special; larger where a module refuses that.
STARTS = (3, 40, 150)
#: Real tensors are for fits of up to so many parameters, and FLOP of products.
SMALL = {"parameters": 10**6, "forward contraction": 10**9}


@dataclass(frozen=True)
class Size:
    """A number, a symbol or a product of these, as in ``16*H``."""

    factor: int
    symbols: tuple[str, ...] = ()

    def at(self, point: Point) -> int:
        """The number, given one for every symbol."""
        return self.factor * math.prod(point[symbol] for symbol in self.symbols)

    def __str__(self) -> str:
        return "*".join([str(self.factor)] * (self.factor != 1 or not self.symbols) + list(self.symbols))


def parse_size(text: str, field: str) -> Size:
    """A size from text.

    Raises:
        InputError: for what is no number of 1 or more, symbol or product of these.

    >>> str(parse_size("H * 16", "--init dim")), parse_size("64", "--input").at({})
    ('16*H', 64)
    """
    factor, symbols = 1, []
    for part in (part.strip() for part in text.split("*")):
        if part.isdecimal() and int(part):
            factor *= int(part)
        elif re.fullmatch(r"[A-Za-z]\w*", part):
            symbols.append(part)
        else:
            rule = "must be a whole number from 1, a symbol or a product of these"
            raise InputError(field, text, rule, "for example 64, D or 16*H")
    return Size(factor, tuple(symbols))


@dataclass(frozen=True)
class Input:
    """A tensor that the module is called with."""

    shape: tuple[Size, ...]
    dtype: torch.dtype = torch.float32

    def tensor(self, point: Point) -> Tensor:
        """A tensor of these sizes; one that has gradients is no leaf, so that the module may write on it."""
        shape = [size.at(point) for size in self.shape]
        differentiable = self.dtype.is_floating_point or self.dtype.is_complex
        x = torch.zeros(shape, dtype=self.dtype, requires_grad=differentiable)
        return x.clone() if differentiable else x

    def __str__(self) -> str:
        return f"[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Question:
    """What to trace: a class or function that makes a module, its arguments, and the inputs of one call.

    Attributes:
        arguments: of the constructor by name: sizes, and values that stay as they are.
        backward: whether to count the backward pass too.
    """

    reference: str
    make: Callable[..., nn.Module]
    arguments: Mapping[str, Any]
    inputs: tuple[Input, ...]
    backward: bool = False

    @property
    def name(self) -> str:
        """Of the class or function."""
        return self.reference.rpartition(":")[2]

    @property
    def symbols(self) -> list[str]:
        """The symbols of all sizes, in the order in which they were given."""
        sizes = [size for size in self.arguments.values() if isinstance(size, Size)]
        sizes += [size for x in self.inputs for size in x.shape]
        return list(dict.fromkeys(symbol for size in sizes for symbol in size.symbols))


@dataclass(frozen=True)
class ModuleFormulas:
    """The formulas of one call of a module.

    Attributes:
        inputs: shapes by the names that the module has for them.
        legend: what the user's symbols are sizes of.
        fit: how the formulas were found.
    """

    question: Question
    formulas: tuple[Formula, ...]
    inputs: Mapping[str, Input]
    legend: Mapping[str, str]
    fit: Fit


def load_module(reference: str) -> Callable[..., nn.Module]:
    """The class or function of ``file.py:NAME``.

    Raises:
        InputError: for a file that is not there, does not load or has no such name.
    """
    if ".py:" not in reference:
        raise InputError("MODULE", reference, "must be a file and a name", "for example my_module.py:MyModule")
    module, name = load_file("MODULE", reference)
    thing = getattr(module, name, None)
    if not callable(thing):
        own = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, nn.Module)]
        raise UnknownNameError("module", name, own)
    return thing  # type: ignore[no-any-return]


def trace_module(question: Question) -> ModuleFormulas:
    """The exact formulas of a module in its symbols.

    Raises:
        InputError: for missing arguments, for sizes that the module refuses, for work that depends on the values of
            tensors, and for counts that no polynomial fits.
    """
    run = _Run(question)
    try:
        first, count = _way(run, question.symbols)
        fit = interpolate(count, question.symbols, first, run.fake)
    except NotPolynomialError as error:
        raise InputError("symbol", error.symbol, f"no polynomial fits: {error}", _remedy(error.symbol)) from error
    except HeldOutError as error:
        rule = f"no polynomial fits: {error}"
        raise InputError("symbol", ", ".join(error.symbols), rule, _remedy(error.symbols[0])) from error
    inputs = dict(zip(run.names, question.inputs, strict=True))
    return ModuleFormulas(question, tuple(_formulas(fit, run.calls)), inputs, _legend(question, inputs), fit)


class _Run:
    """Runs of a module, each at some sizes; the transforms and sorts that it calls must be the same at all.

    Attributes:
        calls: transforms and sorts of the first run, by their name among the counts.
        names: of the inputs.
    """

    def __init__(self, question: Question) -> None:
        self._question = question
        self._first: Point | None = None
        self.calls: Mapping[str, Logarithmic] = {}
        self.names: Sequence[str] = ()

    def fake(self, point: Point) -> Counts:
        """What one call of the module costs, on tensors without values."""
        with _refusals(self._question.reference, point), _quietly_in_steps():
            mode = FakeTensorMode(allow_non_fake_inputs=True)
            module = self._make_fake(point, mode)
            with mode:
                return self._counted(point, module)

    def real(self, point: Point) -> Counts:
        """What one call of the module costs, on real tensors."""
        with _refusals(self._question.reference, point), _quietly_in_steps():
            return self._counted(point, self._make(point))

    def _counted(self, point: Point, module: nn.Module) -> Counts:
        counts, calls = self._run(point, module)
        if self._first is None:
            self._first, self.calls = point, calls
        self._check_calls(point, calls)
        for name, call in calls.items():
            counts |= {f"{name} elements": call.elements, f"{name} points": call.points}
        return counts

    def _run(self, point: Point, module: nn.Module) -> tuple[dict[str, int], dict[str, Logarithmic]]:
        asked = self._question
        inputs = [x.tensor(point) for x in asked.inputs]
        self.names = _input_names(module, inputs)
        own = [*module.parameters(), *module.buffers()]
        passes = {"forward": Tally()}
        with keeping() as kept, passes["forward"]:
            outputs = module(*inputs)
        counts = {
            "parameters": sum(x.numel() for x in module.parameters()),
            "bytes saved for backward": kept.bytes(without=own),
        }
        if asked.backward:
            passes["backward"] = _backward(outputs)
        counts |= {f"{name} {kind}": n for name, tally in passes.items() for kind, n in tally.flops.items()}
        called = {f"{name} {i}": x for name, tally in passes.items() for i, x in enumerate(tally.logarithmic, 1)}
        return counts, called

    def _make_fake(self, point: Point, mode: FakeTensorMode) -> nn.Module:
        """A module without values; one whose constructor asks for some gets real ones, which are then taken away."""
        try:
            with mode:
                return self._make(point)
        except DataDependentOutputException:
            module = self._make(point)
        fakes = {id(x): mode.from_tensor(x) for x in (*module.parameters(), *module.buffers())}
        for part in module.modules():
            for name, x in (*part._parameters.items(), *part._buffers.items()):
                if x is not None:
                    setattr(part, name, fakes[id(x)])
        return module

    def _make(self, point: Point) -> nn.Module:
        values = self._question.arguments.items()
        arguments = {name: value.at(point) if isinstance(value, Size) else value for name, value in values}
        signature = inspect.signature(self._question.make)
        try:
            signature.bind(**arguments)
        except TypeError as error:
            given = ", ".join(arguments) or "none"
            raise InputError("--init", given, str(error), f"the constructor takes {signature}") from error
        module = self._question.make(**arguments)
        if not isinstance(module, nn.Module):
            raise InputError("MODULE", self._question.reference, f"makes a {type(module).__name__}, no torch.nn.Module")
        return module

    def _check_calls(self, point: Point, calls: Mapping[str, Logarithmic]) -> None:
        kinds = [[(name, call.kind, call.factor) for name, call in found.items()] for found in (self.calls, calls)]
        if self._first is not None and kinds[0] != kinds[1]:
            changed = [symbol for symbol in point if point[symbol] != self._first[symbol]]
            rule = (
                f"{len(kinds[0])} transforms and sorts at {_said(self._first)}, but {len(kinds[1])} at {_said(point)}"
            )
            remedy = "their number must not depend on sizes: give a number for the size that a loop of them runs over"
            raise InputError("symbol", ", ".join(changed), rule, remedy)


def _backward(outputs: Any) -> Tally:
    """The backward pass, from gradients of all outputs."""
    results = [x for x in tree_leaves(outputs) if isinstance(x, Tensor) and x.requires_grad]
    if not results:
        raise InputError("--backward", "given", "no output depends on a parameter or a floating-point input")
    gradients = [torch.ones_like(x) for x in results]
    with Tally() as tally:
        torch.autograd.backward(results, gradients)
    return tally


def _input_names(module: nn.Module, inputs: Sequence[Tensor]) -> list[str]:
    """What the module calls its inputs."""
    signature = inspect.signature(module.forward)
    try:
        bound = signature.bind(*inputs).arguments
    except TypeError as error:
        rule = f"{error}; forward takes {signature}"
        raise InputError("--input", f"{len(inputs)} given", rule, "one --input for each tensor") from error
    return list(bound) if len(bound) == len(inputs) else [f"input {i}" for i in range(1, len(inputs) + 1)]


@contextmanager
def _quietly_in_steps() -> Iterator[None]:
    """Recurrent cells run in steps rather than as one op, and what the module prints is kept out of the answer."""
    onednn = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        torch._C._set_mkldnn_enabled(onednn)


@contextmanager
def _refusals(reference: str, point: Point) -> Iterator[None]:
    """What goes wrong in a module, as errors that say what to do."""
    try:
        yield
    except InputError:
        raise
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        rule = f"what it does depends on the values of tensors, not on sizes alone ({error.func})"
        raise InputError("MODULE", reference, rule, "trace a part of it that branches on sizes only") from error
    except UnknownOpError as error:
        raise InputError("MODULE", reference, str(error), "trace the parts around it") from error
    except Exception as error:
        place = next((f.lineno for f in reversed(traceback.extract_tb(error.__traceback__)) if _of(f, reference)), None)
        line = "" if place is None else f" in line {place}"
        told = next(iter(str(error).splitlines()), "")
        rule = f"it fails at {_said(point) or 'these sizes'}{line}: {type(error).__name__}: {told}"
        remedy = "sizes that must divide others are to be factors, such as --init dim=H*d for H heads"
        raise SizesRefusedError("MODULE", reference, rule, remedy) from error


def _of(frame: traceback.FrameSummary, reference: str) -> bool:
    return frame.filename == reference.rpartition(":")[0]


def _said(point: Point) -> str:
    return ", ".join(f"{symbol} = {size}" for symbol, size in point.items())


def _way(run: _Run, symbols: Sequence[str]) -> tuple[int, Counter]:
    """The smallest size that the module takes, and how to count for the fit.

    Raises:
        SizesRefusedError: that of the smallest, when it takes none.
    """
    refused = None
    for first in STARTS:
        try:
            counts = run.fake(start(symbols, first))
        except SizesRefusedError as error:
            refused = refused or error
            continue
        small = all(counts.get(name, 0) <= most for name, most in SMALL.items())
        return first, run.real if small and _alike(run, start(symbols, first), counts) else run.fake
    assert refused is not None
    raise refused


def _alike(run: _Run, point: Point, counts: Counts) -> bool:
    """Whether real tensors, which may for example be no invertible matrix, run and count as fake ones."""
    try:
        return run.real(point) == counts
    except InputError:
        return False


def _remedy(symbol: str) -> str:
    """How to make a count a polynomial."""
    example = {"n": "m"}.get(symbol, "n")
    return (
        f"if it is cut into pieces or rounded up, say so: for pieces of 16 give 16*{example} in place of {symbol}; "
        "if it branches on a size, give that size as a number"
    )


def _formulas(fit: Fit, calls: Mapping[str, Logarithmic]) -> Iterator[Formula]:
    for part in ("forward", "backward"):
        for kind in FLOP_CLASSES:
            value = fit.formulas.get(f"{part} {kind}", lift(0))
            for name, call in calls.items():
                if call.kind == kind and name.startswith(part):
                    points = fit.formulas[f"{name} points"]
                    value += call.factor * fit.formulas[f"{name} elements"] * exact_call("log2", points)
            if value != 0:
                yield Formula(part, kind, "", "FLOP", value)
    for name, unit in (("parameters", "numbers"), ("bytes saved for backward", "bytes")):
        yield Formula("memory", name, "", unit, fit.formulas[name])


def _legend(question: Question, inputs: Mapping[str, Input]) -> dict[str, str]:
    """The symbols in the order given, each with the places where it is a size."""
    places: dict[str, list[str]] = {}
    sizes = [(f"{name} of the constructor", x) for name, x in question.arguments.items() if isinstance(x, Size)]
    for name, tensor in inputs.items():
        sizes += [(f"axis {axis} of {name}", size) for axis, size in enumerate(tensor.shape)]
    for place, size in sizes:
        for symbol in dict.fromkeys(size.symbols):
            places.setdefault(symbol, []).append(place if str(size) == symbol else f"{place} is {size}")
    return {symbol: "; ".join(found) for symbol, found in places.items()}
