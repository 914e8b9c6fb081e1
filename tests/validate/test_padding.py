"""Sequences of any length: padded at their end to whole pieces, which changes nothing of their tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.candidates import Meshes, padded_length, refusals
from costmodel.errors import InputError
from costmodel.estimate import Chosen, estimate
from costmodel.hardware import parse_cluster
from costmodel.mixer import mixers
from costmodel.strategy import strategies
from costmodel.subject import from_mixer
from costmodel.workload import Workload
from tests.validate.cases import Case, check_case
from tests.validate.drawing import layers, refusal
from validate.launch import Rank, RankPool
from validate.template import written

(LAYER,) = from_mixer("attention", 6, heads=2, kv_heads=2, head_dim=4).layers

CAUSAL = [
    name
    for name in mixers.names()
    if mixers.get(name).causality != "full"
    and not mixers.get(name).unpadded
    and not mixers.get(name).per_token(from_mixer(name).layers[0].sizes)
]


@pytest.mark.parametrize("name", CAUSAL)
def test_tokens_after_the_end_change_nothing_before_it(name: str) -> None:
    """Outputs, and gradients of inputs, by the definition of every mixer that is padded."""
    mixer = mixers.get(name)

    @settings(max_examples=2)
    @given(layers(mixer, 1, 1, 1), st.integers(1, 3))
    def check(layer, more: int) -> None:
        random = torch.Generator().manual_seed(0)
        piece = mixer.grain(layer.sizes) * max(1, mixer.segments(layer.sizes))
        length = 2 * piece if piece > 4 else 4 * piece
        x = torch.randn(1, length, layer.sizes["D"], generator=random, dtype=torch.float64, requires_grad=True)
        shapes = mixer.weights(layer.sizes)
        w = {key: torch.randn(s, generator=random, dtype=torch.float64) * s[0] ** -0.5 for key, s in shapes.items()}
        second = mixer.memory(layer.sizes)
        memory = None if second is None else torch.randn(1, second.tokens, second.width, dtype=torch.float64)
        room = x.new_zeros(1, length if mixer.doubled else more * piece, x.shape[2])
        alone = written(layer, x, w, True, memory).output
        longer = written(layer, torch.cat([x, room], 1), w, True, memory).output
        assert longer.isfinite().all()
        torch.testing.assert_close(longer[:, :length], alone, rtol=1e-9, atol=1e-9)
        seed = torch.randn(alone.shape, generator=random, dtype=torch.float64)
        found = [torch.autograd.grad(out, x, seed)[0] for out in (alone, longer[:, :length])]
        torch.testing.assert_close(*found, rtol=1e-8, atol=1e-8)

    check()


@pytest.mark.parametrize(
    ("strategy", "mesh", "length", "padded"),
    [
        ("ring", {"context": 4}, 5, 8),  # the last rank has only padding
        ("zigzag", {"context": 4}, 1001, 1008),
        ("striped", {"context": 3}, 1001, 1002),
        ("all-gather", {"context": 2, "tensor": 2}, 9, 16),
        ("ulysses-zigzag", {"context": 2, "ulysses": 2}, 17, 24),
        ("whole", {"tensor": 2}, 7, 8),
    ],
)
def test_padding_goes_to_whole_pieces(strategy: str, mesh: dict[str, int], length: int, padded: int) -> None:
    case = Case(LAYER, strategies.get(strategy), mesh, length)
    assert padded_length(LAYER, case.way, case.workload, mesh) == padded
    assert padded_length(LAYER, case.way, Workload(padded), mesh) == padded
    parts = [case.on(rank).places(1, length)[1] for rank in range(case.ranks)]
    assert sorted(torch.cat(parts).tolist()) == list(range(padded))


def test_padding_goes_to_whole_chunks() -> None:
    (layer,) = from_mixer("gla", 8, heads=2, head_dim=2, value_dim=4, chunk=6).layers
    case = Case(layer, strategies.get("state-gather"), {"context": 3}, 20)
    assert padded_length(layer, case.way, case.workload, case.mesh) == 36


@pytest.mark.parametrize(
    ("strategy", "mesh"),
    [("ring", {"context": 4}), ("zigzag", {"context": 3}), ("striped", {"context": 4}), ("ulysses", {"ulysses": 2})],
)
def test_a_rank_may_have_only_padding(pool: RankPool, strategy: str, mesh: dict[str, int]) -> None:
    check_case(pool, Case(LAYER, strategies.get(strategy), mesh, 1, batch=2))
    check_case(pool, Case(LAYER, strategies.get(strategy), mesh, 5))


def there_and_back(rank: Rank, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    made = case.on(rank.index)
    part = made.shard(case.tokens()[0])
    return made.unshard(part, length=case.length), made.unshard(part)


def test_unshard_strips_what_shard_pads(pool: RankPool) -> None:
    case = Case(LAYER, strategies.get("zigzag"), {"context": 2, "data": 2}, 6, batch=2)
    for stripped, all_of_it in pool.run(there_and_back, case, ranks=4):
        assert torch.equal(stripped, case.tokens()[0])
        assert all_of_it.shape[1] == 8
        assert not all_of_it[:, 6:].any()


@pytest.mark.parametrize(
    ("mixer", "strategy", "causal", "told"),
    [
        ("attention", "ring", False, "15 tokens would be padded to 16 at their end, which every token would see"),
        (
            "reformer",
            "whole",
            True,
            "15 tokens would be padded to 64 at their end, and reformer has weights for every",
        ),
    ],
)
def test_padding_that_would_be_seen_is_refused(mixer: str, strategy: str, causal: bool, told: str) -> None:
    (layer,) = from_mixer(mixer).layers
    case = Case(layer, strategies.get(strategy), {"context": 2} if strategy == "ring" else {}, 15, causal=causal)
    assert told in str(refusal(case))


def test_shard_refuses_what_would_be_seen() -> None:
    made = Case(LAYER, strategies.get("ring"), {"context": 2}, 8, causal=False).on(0)
    with pytest.raises(InputError, match="7 tokens would be padded to 8 at their end, which every token would see"):
        made.shard(torch.zeros(1, 7, 6))


def test_a_cache_is_not_padded() -> None:
    case = Case(LAYER, strategies.get("tree"), {"context": 2}, 7, phase="decode")
    assert "7 tokens" in str(refusal(case))


def test_costs_are_those_of_the_padded_sequence() -> None:
    """1001 tokens on 8 zigzag ranks are 1008: the same seconds and bytes."""
    subject, cluster = from_mixer("attention"), parse_cluster("8xh100")
    odd, even = (estimate(subject, Workload(n), cluster, Chosen(("zigzag",), {})).plan(0) for n in (1001, 1008))
    assert (odd.length, odd.seconds, odd.memory, odd.wire) == (1008, even.seconds, even.memory, even.wire)


def test_layers_of_a_model_are_padded_together() -> None:
    """A sequence is padded for the layer that needs most; others are looked at with that length."""
    subject = from_mixer("gla")
    mesh = Meshes.one({"context": 2})
    way = Case(subject.layers[0], strategies.get("state-gather"), {"context": 2}, 100).way
    valid, _ = refusals(subject.layers[0], way, Workload(100), mesh, np.array([256]))
    assert valid.all()
