"""The checks can fail: a coefficient, a byte or the sign of a gradient that is wrong is found out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from costmodel.ops import pointwise
from costmodel.ops.primitive import Primitive, Reading, View
from costmodel.program import Leaf, operations
from tests.ops import (
    test_affine_scan,
    test_fourier,
    test_functions,
    test_matrices,
    test_moves,
    test_reductions,
    test_resets,
    test_selection,
)
from tests.ops.checking import Case, check_counts, check_values

SIZES = {"B": 2, "L": 4, "C": 3, "H": 2, "w": 3, "k": 3}
CASES: dict[str, Case] = {
    **test_functions.CASES,
    **test_reductions.CASES,
    **test_fourier.COMPLEX,
    **test_fourier.REAL,
    **test_selection.CASES,
    **test_matrices.CASES,
    **test_moves.CASES,
    **test_affine_scan.CASES,
    **test_resets.CASES,
}


def leaves(case: Case, backward: bool) -> list[Leaf]:
    program, _ = case.traced(SIZES)
    tree = program.backward if backward else program.forward
    return [operation for operation, _ in operations(tree) if isinstance(operation, Leaf)]


def counted() -> Iterator[Any]:
    """Every class of FLOP of every primitive, with each case that it occurs in."""
    for name, case in CASES.items():
        found = {
            (type(leaf.primitive), kind)
            for leaf in leaves(case, False) + leaves(case, True)
            for kind, flops in leaf.flops(Reading.EXECUTED).items()
            if flops
        }
        for primitive, kind in sorted(found, key=str):
            yield pytest.param(case, primitive, kind, id=f"{name}: {primitive.__name__}, {kind}")


def moving() -> Iterator[Any]:
    """Every primitive of a method that is no view, with each case that it occurs in."""
    for name, case in CASES.items():
        for primitive in sorted({type(leaf.primitive) for leaf in leaves(case, False)}, key=str):
            if not issubclass(primitive, View):
                yield pytest.param(case, primitive, id=f"{name}: {primitive.__name__}")


def differentiated() -> Iterator[Any]:
    """Every input of every primitive of a method that has a gradient, with each case that it occurs in."""
    for name, case in CASES.items():
        found = {
            (type(leaf.primitive), which)
            for leaf in leaves(case, False)
            for which, x in enumerate(leaf.inputs)
            if x.storage.kind != "table"
        }
        for primitive, which in sorted(found, key=str):
            yield pytest.param(case, primitive, which, id=f"{name}: {primitive.__name__}, input {which}")


def test_unchanged_cases_pass() -> None:
    for case in CASES.values():
        check_values(case, SIZES)
        check_counts(case, SIZES)


@pytest.mark.parametrize(("case", "primitive", "kind"), list(counted()))
def test_a_wrong_coefficient(
    monkeypatch: pytest.MonkeyPatch, case: Case, primitive: type[Primitive], kind: str
) -> None:
    honest = primitive.flops

    def flops(*arguments: Any) -> Mapping[str, Any]:
        found = honest(*arguments)
        return {**found, kind: found[kind] * 2}

    monkeypatch.setattr(primitive, "flops", flops)
    with pytest.raises(AssertionError):
        check_counts(case, SIZES)


@pytest.mark.parametrize("unit", ["elementwise", "special"])
@pytest.mark.parametrize("name", test_functions.UNARY | test_functions.BINARY)
def test_a_wrong_count_of_a_function(monkeypatch: pytest.MonkeyPatch, name: str, unit: str) -> None:
    function = pointwise.FUNCTIONS[name]
    monkeypatch.setitem(pointwise.FUNCTIONS, name, replace(function, **{unit: getattr(function, unit) + 1}))
    with pytest.raises(AssertionError):
        check_counts(CASES[name], SIZES)


@pytest.mark.parametrize(("case", "primitive"), list(moving()))
@pytest.mark.parametrize("which", [0, 1])
def test_a_wrong_byte(monkeypatch: pytest.MonkeyPatch, case: Case, primitive: type[Primitive], which: int) -> None:
    honest = primitive.traffic

    def traffic(*arguments: Any) -> tuple[Any, Any]:
        read, written = honest(*arguments)
        return (read + 1, written) if which == 0 else (read, written + 1)

    monkeypatch.setattr(primitive, "traffic", traffic)
    with pytest.raises(AssertionError):
        check_counts(case, SIZES)


@pytest.mark.parametrize(("case", "primitive", "which"), list(differentiated()))
def test_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch, case: Case, primitive: type[Primitive], which: int) -> None:
    """Of the wrong sign; and doubled, because two wrong signs cancel where a primitive occurs twice."""
    honest = primitive.backward

    def backward(self: Primitive, ops: Any, inputs: Any, outputs: Any, gradients: Any) -> list[Any]:
        found = list(honest(self, ops, inputs, outputs, gradients))
        right = found[which]
        found[which] = lambda: ops.scale(right() if callable(right) else right, -2)
        return found

    monkeypatch.setattr(primitive, "backward", backward)
    with pytest.raises(AssertionError):
        check_values(case, SIZES)
