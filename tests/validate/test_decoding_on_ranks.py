"""Decoding over a cache that is spread by sequence, by hand: what is sent, by whom, and where the cache lies."""

from __future__ import annotations

import torch

from costmodel.strategy import strategies
from costmodel.subject import from_mixer
from tests.validate.cases import Case, expected
from tests.validate.drawing import refusal
from validate.communication import Traffic

(LAYER,) = from_mixer("attention", 6, heads=4, kv_heads=2, head_dim=8).layers


def decoding(strategy: str, batch: int, ranks: int = 4, data: int = 1) -> Case:
    mesh = {"context": ranks, "data": data}
    return Case(LAYER, strategies.get(strategy), mesh, 16, batch=batch, phase="decode", dtype="bf16")


def test_pass_q_sends_half_of_what_a_tree_does() -> None:
    # Of B = 8 sequences and H = 4 heads of d = 8, on P = 4 ranks. Each sends the queries of 2 sequences on 3 times, in
    # bf16, and to each of 3 others the outputs of its 2 with 4-byte log-sum-exps.
    query, lse = 4 * 8 * 2, 4 * 4
    dealt = expected(decoding("pass-q-decode", 8)).sent(0)["context"]
    assert dealt == Traffic(3 * 2 * query + 3 * 2 * (query + lse), 3 + 3 * 2)
    # A tree gathers all log-sum-exps, and reduces all outputs in float32: 2 x 3 rounds of a 4th of them.
    tree = expected(decoding("tree", 8)).sent(0)["context"]
    assert tree == Traffic(3 * 8 * lse + 2 * 3 * 8 * 4 * 8 * 4 // 4, 3 + 2 * 3)
    assert dealt.messages == tree.messages and dealt.bytes < tree.bytes / 2


def test_every_pair_is_computed_once_and_projections_are_dealt_out() -> None:
    # 2 FLOP for each of d entries of q k^T and of p v, of 8 sequences of 16 / 4 keys; and of 2 sequences' projections.
    known = expected(decoding("pass-q-decode", 8))
    attention, weights = 8 * 4 * (16 // 4) * 2 * 2 * 8, 6 * 8 * (4 + 2 + 2 + 4)
    assert known.value(known.program.flops()["contraction"], 0) == attention + 2 * 2 * weights


def test_a_new_token_is_kept_by_the_rank_that_has_its_sequence() -> None:
    # Token t of sequence s is number 10 s + t: 4 sequences of 4 tokens on 2 ranks. The last 2 tokens, new ones among
    # them, are where the sequence is; what would be there changes places with them.
    whole = (10 * torch.arange(4)[:, None] + torch.arange(4)).view(4, 1, 4, 1).expand(4, 2, 4, 8)
    held = [
        [x[:, 0, :, 0].tolist() for x in decoding("pass-q-decode", 4, ranks=2).on(rank).shard_cache([whole, whole])]
        for rank in range(2)
    ]
    assert held[0] == [[[2, 3], [12, 13], [20, 21], [30, 31]]] * 2
    assert held[1] == [[[0, 1], [10, 11], [22, 23], [32, 33]]] * 2


def test_refusals() -> None:
    assert "a batch of 6 does not divide over 2 x 4 ranks" in str(refusal(decoding("pass-q-decode", 6, data=2)))
    assert refusal(decoding("pass-q-decode", 16, data=2)) is None
    assert "the cache of 16 tokens, or of a window, does not" in str(refusal(decoding("pass-q-decode", 3, ranks=3)))
