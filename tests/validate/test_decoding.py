"""Decoding from the first token on, where it begins or reads otherwise than the passes over a sequence."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from costmodel.candidates import Meshes, refusals
from costmodel.mixers.s4 import step_read
from costmodel.strategies.ulysses import ulysses
from costmodel.strategies.whole import whole
from costmodel.strategy import strategies
from costmodel.subject import Layer, from_mixer
from tests.validate.cases import Case, alone, check_case
from validate.launch import RankPool
from validate.layer import DistributedLayer

LENGTH = 9


def layer_of(name: str, width: int, **sizes: int) -> Layer:
    (layer,) = from_mixer(name, width, **sizes).layers
    return layer


def decoded(made: DistributedLayer, x: Tensor) -> Tensor:
    """Outputs [B, L, D] of tokens that are decoded one by one, from what a cache is before the first."""
    kept = made.layer.mixer.cache(made.layer.sizes, x.shape[1])
    cache = [torch.full((x.shape[0], *k.shape), k.start, dtype=torch.float64) for k in kept]
    with torch.no_grad():
        return torch.cat([made.decode(x[:, t : t + 1], cache, t + 1) for t in range(x.shape[1])], 1)


def test_s4_decodes_what_it_was_trained_for() -> None:
    """With C, found once from the C' of its weights, the tokens have the outputs of the convolution."""
    case = Case(layer_of("s4", 4, pairs=3), whole, {}, LENGTH, kernel="fft", phase="forward")
    weights, x = case.weights(case.on(0).whole_shapes), case.tokens()[0]
    made = alone(replace(case, phase="decode"))
    made.load({"step_read": step_read(torch, weights, LENGTH)} | {n: w for n, w in weights.items() if n != "read"})
    with torch.no_grad():
        wanted = alone(case)(x)
    torch.testing.assert_close(decoded(made, x), wanted, rtol=0, atol=1e-12)


def test_keys_far_below_zero_are_not_lost_to_the_first_maximum() -> None:
    """RWKV-4's weights are exp(k - maximum): with keys near -1e4 they vanish beside a maximum of 0."""
    case = Case(layer_of("rwkv4", 4, channels=4), whole, {}, LENGTH, kernel="recurrent", phase="forward")
    weights, x = case.weights(case.on(0).whole_shapes), case.tokens()[0].abs() + 0.1
    weights["w_k"], weights["mix_k"] = -1e5 * weights["w_k"].abs(), torch.zeros_like(weights["mix_k"])
    one, many = alone(replace(case, phase="decode")), alone(case)
    for made in (one, many):
        made.load(weights)
    with torch.no_grad():
        wanted = many(x)
    assert torch.isfinite(wanted).all()
    torch.testing.assert_close(decoded(one, x), wanted, rtol=0, atol=1e-12)


def test_biases_of_near_places_need_no_long_stretch_where_heads_are_exchanged(pool: RankPool) -> None:
    """AFT-local under Ulysses: each rank has some heads of the whole sequence, 4 tokens that 2 others are near to."""
    layer = layer_of("aft-local", 4, heads=2, value_dim=2, near=4)
    check_case(pool, Case(layer, ulysses, {"ulysses": 2}, 4, causal=False, kernel="direct"))
    spread = Case(layer, strategies.get("all-reduce"), {"context": 2}, 4, causal=False, kernel="direct")
    _, reasons = refusals(layer, spread.way, spread.workload, Meshes.one(spread.mesh))
    assert [reason.endswith("less than the 3 that the next reads") for reason in reasons] == [True]
