"""Documents packed into one sequence: each is what it is alone, on any ranks, and formulas count its pairs alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from costmodel.documents import Documents
from costmodel.errors import InputError
from costmodel.masks import Mask
from costmodel.mixer import mixers
from costmodel.strategy import strategies
from costmodel.subject import from_mixer
from costmodel.workload import Workload
from tests.validate.cases import Case, check_case
from tests.validate.drawing import cases, refusal
from validate.attention import kept
from validate.launch import RankPool

(LAYER,) = from_mixer("attention", 6, heads=2, kv_heads=2, head_dim=4).layers

APART = [name for name in strategies.names() if strategies.get(name).documents]
PAIRS = [
    (mixer, name)
    for mixer in mixers.names()
    for name in APART
    if mixers.get(mixer).documents and issubclass(mixers.get(mixer).carry, strategies.get(name).carries)
]


@st.composite
def lengths(draw: st.DrawFn, total: int) -> tuple[int, ...]:
    """Of documents that fill a sequence: equal ones, or any."""
    equal = [size for size in range(1, total + 1) if total % size == 0]
    if draw(st.booleans()):
        size = draw(st.sampled_from(equal))
        return (size,) * (total // size)
    cuts = sorted(draw(st.sets(st.integers(1, total - 1), max_size=4))) if total > 1 else []
    return tuple(end - start for start, end in zip([0, *cuts], [*cuts, total], strict=True))


@pytest.mark.parametrize(("mixer", "strategy"), PAIRS)
def test_run_equals_documents_alone_and_formulas(pool: RankPool, mixer: str, strategy: str) -> None:
    @settings(max_examples=3)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        case = data.draw(cases(mixers.get(mixer), strategies.get(strategy)))
        assume(case.phase != "decode" and not case.cached)
        packed = replace(case, documents=data.draw(lengths(case.length)))
        assert refusal(packed) is None
        check_case(pool, packed)

    check()


@settings(max_examples=60)
@given(st.data(), st.booleans(), st.one_of(st.none(), st.integers(1, 5)))
def test_pairs_are_those_of_the_definition(data: st.DataObject, causal: bool, window: int | None) -> None:
    """Of queries from any place on, of which each sees itself last or not."""
    total = data.draw(st.integers(2, 20))
    documents = Documents(data.draw(lengths(total)))
    n_q = data.draw(st.integers(1, total + 3))
    end = total + 3  # padding
    mask = Mask(causal, window, documents=documents)
    number = [n for n, (start, stop) in enumerate(documents.spans(end)) for _ in range(start, stop)]
    expected = sum(
        number[i] == number[j] and (j <= i or not causal) and (window is None or abs(i - j) < window)
        for i in range(end - n_q, end)
        for j in range(end)
    )
    assert mask.useful_pairs(n_q, end) == expected == int(kept(mask, n_q, end).sum())
    assert mask.dense_pairs(n_q, end) == sum(number[i] == number[j] for i in range(end - n_q, end) for j in range(end))
    assert mask.executed_pairs(n_q, end, 1) == expected


def test_documents_that_each_fill_tiles_are_executed_as_they_are_alone() -> None:
    mask = Mask(causal=True, documents=Documents((8, 16)))
    alone = [Mask(causal=True).executed_pairs(n, n, 4) for n in (8, 16)]
    assert mask.executed_pairs(24, 24, 4) == sum(alone)


@pytest.mark.parametrize("strategy", ["ring", "all-gather"])
@pytest.mark.parametrize("length", [5, 9])
def test_one_document_keeps_padding_apart_where_every_token_sees_every_other(
    pool: RankPool, strategy: str, length: int
) -> None:
    case = Case(LAYER, strategies.get(strategy), {"context": 2}, length, causal=False)
    assert "no causal mask" in str(refusal(case))
    check_case(pool, replace(case, documents=(length,)))


@pytest.mark.parametrize(
    ("mixer", "strategy", "told"),
    [
        ("mamba2", "state-gather", "mamba2 does not keep documents apart"),
        ("attention", "double-ring", "it does not keep documents apart"),
    ],
)
def test_what_does_not_keep_documents_apart_is_refused(mixer: str, strategy: str, told: str) -> None:
    (layer,) = from_mixer(mixer).layers
    mesh = dict.fromkeys(strategies.get(strategy).axes, 2)
    case = Case(layer, strategies.get(strategy), mesh, 4096, documents=(96, 4000))
    assert told in str(refusal(case))


@pytest.mark.parametrize("documents", [(3, 4), (8, 0), (9,)])
def test_documents_fill_the_sequence(documents: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="each has tokens, and together they have the 8 of the sequence"):
        Workload(8, documents=documents)


def test_a_document_does_not_see_another() -> None:
    """By a gradient: of the output of the second document, none comes back to the first."""
    made = Case(LAYER, strategies.get("whole"), {}, 8, documents=(3, 5)).on(0)
    x = torch.randn(1, 8, 6, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(made(x)[:, 3:].sum(), x)
    assert not found[:, :3].any()
    assert found[:, 3:].all()
