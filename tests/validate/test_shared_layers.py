"""Blocks whose weights several layers use, against transformers' Zamba2, and on real ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import Zamba2Config
from transformers.models.zamba2.modeling_zamba2 import Zamba2AttentionDecoderLayer, Zamba2RotaryEmbedding

from costmodel.errors import InputError
from costmodel.model import MlpSpec
from costmodel.strategies.whole import whole
from costmodel.strategy import strategies
from costmodel.subject import Layer, from_mixer
from costmodel.workload import Phase
from tests.validate.cases import Case, alone, check_case
from tests.validate.test_outside import give, rows
from validate.launch import RankPool
from validate.template import whole_layer

LENGTH = 8


def block(width: int = 8, heads: int = 4) -> Layer:
    """With heads of twice the usual size, as the input is twice as wide."""
    (layer,) = from_mixer("attention", width, heads=heads, kv_heads=heads, head_dim=2 * width // heads).layers
    sizes = {**layer.sizes, "doubled": 1, "adapter": 3}
    return replace(layer, sizes=sizes, mlp=MlpSpec(12, adapter=3), norms=2, shared=2)


@torch.no_grad()
def test_a_shared_block_is_zamba2s() -> None:
    """Whose scores are sqrt(2) times as large; of its activations we take silu."""
    layer = block()
    case = Case(layer, whole, {}, LENGTH, 2)
    w, x, (embedded,) = case.weights(case.on(0).whole_shapes), case.tokens()[0], case.embedded()
    config = Zamba2Config(
        hidden_size=8, num_attention_heads=4, intermediate_size=12, num_hidden_layers=1, layers_block_type=["hybrid"],
        adapter_rank=3, use_shared_attention_adapter=True, use_mem_rope=True, hidden_act="silu",
    )  # fmt: skip
    config._attn_implementation = "eager"
    module = Zamba2AttentionDecoderLayer(config, block_id=0).double()
    less = {"q": 0.5**0.5, "k": 1.0, "v": 1.0}
    adapters = {}
    for name, scale in less.items():
        list_name = f"self_attn__linear_{name}_adapter_list__0"
        adapters[f"{list_name}__0__weight"] = w[f"own_{name}_down"].T
        adapters[f"{list_name}__1__weight"] = rows(w[f"own_{name}_up"]) * scale
    give(
        module,
        **{f"self_attn__{name}_proj__weight": rows(w[f"w_{name}"]) * scale for name, scale in less.items()},
        **adapters,
        self_attn__o_proj__weight=w["w_o"].flatten(0, 1).T,
        feed_forward__gate_up_proj__weight=rows(w["gate"], w["up"]),
        feed_forward__down_proj__weight=w["down"].T,
        feed_forward__gate_up_proj_adapter_list__0__0__weight=w["own_down"].T,
        feed_forward__gate_up_proj_adapter_list__0__1__weight=rows(w["own_gate"], w["own_up"]),
        input_layernorm__weight=w["mixer_norm"],
        pre_ff_layernorm__weight=w["mlp_norm"],
    )
    places = Zamba2RotaryEmbedding(config)(x, torch.arange(LENGTH)[None])
    mask = torch.full((LENGTH, LENGTH), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    given = module(x, embedded, 0, mask, position_embeddings=places)
    expected = whole_layer(layer, x, w, True, embedded)
    torch.testing.assert_close(x + given @ w["own_out"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("mesh", "strategy", "phase", "cached"),
    [
        ({}, "whole", "train", 0),
        ({"tensor": 2}, "whole", "train", 0),
        ({"context": 2, "tensor": 2}, "ring", "train", 0),
        ({"tensor": 2}, "whole", "decode", 0),
        ({"context": 2}, "ring", "prefill", 4),
    ],
)
def test_a_shared_block_on_ranks(
    pool: RankPool, mesh: dict[str, int], strategy: str, phase: Phase, cached: int
) -> None:
    check_case(pool, Case(block(), strategies.get(strategy), mesh, LENGTH, phase=phase, cached=cached))


def test_embeddings_must_be_those_of_the_tokens() -> None:
    case = Case(block(), whole, {}, LENGTH)
    made, x = alone(case), case.tokens()[0]
    for memory in (None, x[:, 1:]):
        with pytest.raises(InputError, match="a shared layer reads its tokens' embeddings"):
            made(x, memory)
