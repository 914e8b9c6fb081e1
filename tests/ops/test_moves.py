"""What only moves numbers, or nothing at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.composite import token_shift
from costmodel.dims import Shape
from tests.ops.checking import Case, Sizes, check, named

sizes = st.fixed_dictionaries({"B": st.integers(2, 3), "L": st.integers(2, 5), "C": st.integers(2, 4)})


def rows(s: Any) -> tuple[Shape, ...]:
    return ((s.B, s.L, s.C),)


CASES = {
    "permute": Case(lambda ops, x: ops.permute(x, (2, 0, 1)), lambda x: torch.einsum("blc->cbl", x), rows),
    "flip": Case(lambda ops, x: ops.flip(x, 1), lambda x: x[:, range(x.shape[1] - 1, -1, -1)], rows),
    "pad": Case(
        lambda ops, x: ops.pad(x, 1, 2, ops.shape(x)[1] + 3),
        lambda x: torch.nn.functional.pad(x, (0, 0, 2, 1)),
        rows,
    ),
    "token_shift": Case(
        lambda ops, x: token_shift(ops, x, 1, None),
        lambda x: torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), 1),
        rows,
    ),
    "reshape": Case(
        lambda ops, x: ops.reshape(x, (ops.shape(x)[0] * ops.shape(x)[1], ops.shape(x)[2])),
        lambda x: x.flatten(0, 1),
        rows,
    ),
    "slice": Case(lambda ops, x: ops.slice(x, 1, 1, ops.shape(x)[1] - 1), lambda x: x[:, 1:], rows),
    "slice with a step": Case(
        lambda ops, x: ops.slice(x, 1, 1, 2, 3), lambda x: x[:, 1::3], lambda s: ((s.B, 5, s.C),)
    ),
    "concat": Case(
        lambda ops, x, y: ops.concat([x, y], 1),
        lambda x, y: torch.cat((x, y), 1),
        lambda s: ((s.B, s.L, s.C), (s.B, 2, s.C)),
    ),
    "expand": Case(
        lambda ops, x: ops.expand(x, (ops.shape(x)[0], 4, ops.shape(x)[2])),
        lambda x: x.expand(-1, 4, -1),
        lambda s: ((s.B, 1, s.C),),
        backward=lambda s: {"reduction": 4 * s.B * s.C},
    ),
    "repeat": Case(
        lambda ops, x: ops.repeat(x, 1, 3),
        lambda x: torch.stack((x, x, x), 2).flatten(1, 2),
        rows,
        backward=lambda s: {"reduction": 3 * s.B * s.L * s.C},
    ),
}


@pytest.mark.parametrize("case", named(CASES))
@given(sizes=sizes)
@settings(max_examples=10)
def test_move(case: Case, sizes: Sizes) -> None:
    check(case, sizes)
