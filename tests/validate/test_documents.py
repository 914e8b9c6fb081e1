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
from costmodel.places import Comb, Stripes
from costmodel.strategy import strategies
from costmodel.subject import from_mixer
from costmodel.workload import Workload
from tests.validate.cases import Case, check_case
from tests.validate.drawing import cases, refusal
from tests.validate.test_layers import applies
from validate.attention import kept
from validate.launch import RankPool

(LAYER,) = from_mixer("attention", 6, heads=2, kv_heads=2, head_dim=4).layers

#: One mixer of each kind of carry.
QUICK = {"attention", "gated-deltanet", "shortconv"}

APART = [name for name in strategies.names() if strategies.get(name).documents]
PAIRS = [
    pytest.param(mixer, name, marks=[] if mixer in QUICK else [pytest.mark.slow])
    for mixer in mixers.names()
    for name in APART
    if mixers.get(mixer).documents and applies(mixers.get(mixer), strategies.get(name))
]


@st.composite
def lengths(draw: st.DrawFn, total: int) -> tuple[int, ...]:
    """Of documents that fill a sequence: equal ones, or any; some of one token, some that end where parts of it do."""
    equal = [size for size in range(1, total + 1) if total % size == 0]
    size = draw(st.sampled_from(equal))
    if draw(st.booleans()):
        return (size,) * (total // size)
    places = st.one_of(st.integers(1, total), st.sampled_from([1, total - 1, *range(size, total, size)]))
    cuts = {cut for cut in draw(st.sets(places, max_size=4)) if 0 < cut < total}
    cuts |= {cut + 1 for cut in draw(st.sets(st.sampled_from(sorted(cuts)), max_size=1))} - {total} if cuts else set()
    return tuple(end - start for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), total], strict=True))


@pytest.mark.parametrize(("mixer", "strategy"), PAIRS)
def test_run_equals_documents_alone_and_formulas(pool: RankPool, mixer: str, strategy: str) -> None:
    @settings(max_examples=3)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        case = data.draw(cases(mixers.get(mixer), strategies.get(strategy)))
        assume(case.phase != "decode" and not case.cached)
        causal = case.causal or not mixers.get(mixer).carry_for(False).documents
        packed = replace(case, causal=causal, documents=data.draw(lengths(case.length)))
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
        ("hyena", "ulysses", "hyena does not keep documents apart"),
        ("titans", "state-serial", "titans does not keep documents apart"),
    ],
)
def test_what_does_not_keep_documents_apart_is_refused(mixer: str, strategy: str, told: str) -> None:
    (layer,) = from_mixer(mixer).layers
    mesh = dict.fromkeys(strategies.get(strategy).axes, 2)
    case = Case(layer, strategies.get(strategy), mesh, 4096, documents=(96, 4000))
    assert told in str(refusal(case))


def test_a_sum_over_all_tokens_does_not_keep_documents_apart() -> None:
    (layer,) = from_mixer("linear-attention").layers
    case = Case(layer, strategies.get("whole"), {}, 4096, causal=False, documents=(96, 4000))
    assert "linear-attention does not keep documents apart without a causal mask" in str(refusal(case))
    assert refusal(replace(case, causal=True)) is None


def test_a_cache_that_is_decoded_against_has_no_packed_documents() -> None:
    with pytest.raises(InputError, match="no decoding, and no cached tokens"):
        Workload(8, phase="decode", documents=(3, 5))


def test_formulas_name_no_more_documents_than_they_can() -> None:
    """Of stripes, on which equal documents are not alike."""
    case = Case(LAYER, strategies.get("striped"), {"context": 2}, 1026, documents=(2,) * 513)
    assert "each of 513 documents is counted by itself" in str(refusal(case))
    assert refusal(replace(case, strategy=strategies.get("ring"))) is None


@st.composite
def stripes(draw: st.DrawFn) -> Stripes:
    ranks, rows = draw(st.integers(2, 5)), draw(st.integers(1, 4))
    rank, later = draw(st.integers(0, ranks - 2)), draw(st.booleans())
    first = draw(st.integers(rank + 1, ranks - 1) if later else st.integers(0, rank))
    return Stripes(ranks, rank, first, 1, later, ranks * rows)


@st.composite
def combs(draw: st.DrawFn) -> Comb:
    """Of a grid of ranks, as ``tile`` has them: its own queries, or those before or after these in their stretch."""
    parts, columns, part = (draw(st.integers(1, 3)) for _ in range(3))
    number, column, period = draw(st.integers(0, 2 * columns - 1)), draw(st.integers(0, parts - 1)), parts * part
    own = column if number < columns else parts - 1 - column
    begin, end = number * period + own * part, number * period + (own + 1) * part
    choices = [((begin, end), end), ((number * period, begin), number * period)]
    if own < parts - 1:
        choices.append(((end, end + part), end))
    queries, limit = draw(st.sampled_from(choices))
    middle = columns * period
    causal = queries == (begin, end)
    return Comb(queries, period, part, column, parts - 1 - column, middle, limit, 2 * middle, causal)


@settings(max_examples=100)
@given(st.one_of(stripes(), combs()), st.data())
def test_pairs_of_ranks_are_those_of_the_definition(place: Stripes | Comb, data: st.DataObject) -> None:
    documents = Documents(data.draw(lengths(place.length)))
    number = [n for n, (start, stop) in enumerate(documents.spans(place.length)) for _ in range(start, stop)]
    queries, keys = ([token for stretch in each for token in stretch] for each in place.tokens())
    causal = isinstance(place, Stripes) or place.causal
    mask = Mask(causal, documents=documents).placed(place)
    expected = sum(number[i] == number[j] and (j <= i or not causal) for i in queries for j in keys)
    assert mask.useful_pairs(len(queries), len(keys)) == expected == int(kept(mask, len(queries), len(keys)).sum())
    squares = list(place.squares(documents))
    assert mask.dense_pairs(len(queries), len(keys)) == sum(
        (square.rows[1] - square.rows[0]) * (square.columns[1] - square.columns[0]) for square in squares
    )


@pytest.mark.parametrize("documents", [(3, 4), (8, 0), (9,)])
def test_documents_fill_the_sequence(documents: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="each has tokens, and together they have the 8 of the sequence"):
        Workload(8, documents=documents)


@pytest.mark.parametrize("mixer", ["attention", "gla", "deltanet", "rwkv6"])
def test_a_document_does_not_see_another(mixer: str) -> None:
    """By a gradient: of the output of the second document, none comes back to the first."""
    (layer,) = from_mixer(
        mixer, 6, **{"heads": 2, "head_dim": 4} | ({} if mixer == "attention" else {"chunk": 4})
    ).layers
    made = Case(layer, strategies.get("whole"), {}, 8, kernel=layer.mixer.kernels[0], documents=(3, 5)).on(0)
    x = torch.randn(1, 8, 6, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(made(x)[:, 3:].sum(), x)
    assert not found[:, :3].any()
    assert found[:, 3:].all()
