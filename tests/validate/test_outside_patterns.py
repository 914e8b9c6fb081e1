"""Patterns of attention, convolutions and pooling against transformers' modules with the same weights."""

from __future__ import annotations

from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BigBirdConfig, ConvBertConfig, Lfm2Config, LongformerConfig
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel
from transformers.models.convbert.modeling_convbert import ConvBertSelfAttention
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention
from transformers.models.poolformer.modeling_poolformer import PoolFormerPooling

from costmodel.ops.block_table import random_blocks
from tests.validate.outside import (
    BATCH,
    LENGTH,
    Weights,
    against,
    close,
    give,
    heads,
    joined,
    layer_of,
    output,
    rows,
)


@against("transformers BigBirdBlockSparseAttention", "bigbird")
@torch.no_grad()
def test_bigbird_is_transformers() -> None:
    """With the random blocks that our heads see."""
    layer, w, x = layer_of("bigbird", 8, heads=2, head_dim=4, block=2, random=1)
    config = BigBirdConfig(
        hidden_size=8, num_attention_heads=2, block_size=2, num_random_blocks=1, use_bias=False,
        attention_type="block_sparse", max_position_embeddings=64,
    )  # fmt: skip
    module = BigBirdBlockSparseAttention(config).double().eval()
    give(module, query__weight=rows(w["w_q"]), key__weight=rows(w["w_k"]), value__weight=rows(w["w_v"]))
    blocks = LENGTH // 2

    def chosen(self: Any, **_: Any) -> list[list[list[int]]]:
        return [[random_blocks(head, row, blocks, 1) for row in range(1, blocks - 1)] for head in range(2)]

    module._bigbird_block_rand_mask_with_head = MethodType(chosen, module)
    blocked, band, queries, keys = BigBirdModel.create_masks_for_block_sparse_attn(
        torch.ones(BATCH, LENGTH, dtype=torch.float64), 2
    )
    mixed = module(x, band, queries, keys, blocked, blocked)[0]
    close(mixed @ w["w_o"].flatten(0, 1), output(layer, x, w, causal=False), 1e-10)


@against("transformers LongformerSelfAttention", "longformer")
@torch.no_grad()
def test_longformer_is_transformers() -> None:
    layer, w, x = layer_of("longformer", 8, heads=2, head_dim=4, side=3, globals=2)
    config = LongformerConfig(
        hidden_size=8, num_attention_heads=2, attention_window=[6], attention_probs_dropout_prob=0.0
    )
    module = LongformerSelfAttention(config, 0).double().eval()
    none, names = torch.zeros(8), {"query": "w_q", "key": "w_k", "value": "w_v"}
    given = {f"{theirs}__weight": rows(w[ours]) for theirs, ours in names.items()}
    given |= {f"{theirs}_global__weight": rows(w[f"{ours}_global"]) for theirs, ours in names.items()}
    give(module, **given, **{name.replace("weight", "bias"): none.double() for name in given})
    leading = (torch.arange(LENGTH) < 2).expand(BATCH, -1)
    mixed = module(x, 10000.0 * leading, torch.zeros_like(leading), leading, is_global_attn=True)[0]
    close(mixed @ w["w_o"].flatten(0, 1), output(layer, x, w, causal=False))


@against("transformers ConvBertSelfAttention, its convolution", "lightconv", "dynamicconv")
@torch.no_grad()
@pytest.mark.parametrize("name", ["lightconv", "dynamicconv"])
def test_convolutions_are_those_of_convbert(name: str) -> None:
    """Whose heads are attention and convolutions by halves, and whose taps are made of queries times local keys.

    Here the latter are ones; taps that do not depend on the token are biases.
    """
    layer, w, x = layer_of(name, 8, heads=2, value_dim=3, taps=5)
    inner = nn.functional.glu(torch.cat([y.transpose(1, 2).flatten(2) for y in heads(x, w, ("w_v", "w_g"))], -1))
    config = ConvBertConfig(hidden_size=12, num_attention_heads=2, head_ratio=1, conv_kernel_size=5)
    module = ConvBertSelfAttention(config).double().eval()
    half = torch.eye(6, 12, dtype=torch.float64)
    given = {name: torch.zeros_like(value) for name, value in module.named_parameters()}
    given |= {"query.weight": half, "conv_out_layer.weight": half}
    given["key_conv_attn_layer.bias"] = torch.ones(6, dtype=torch.float64)
    given |= taps_of(w["taps"])
    give(module, **{name.replace(".", "__"): value for name, value in given.items()})
    mixed = module(torch.cat([inner, inner], -1))[0].unflatten(2, (4, 3))[:, :, 2:]
    close(joined(mixed.transpose(1, 2), w), output(layer, x, w, causal=False), 1e-10)


def taps_of(taps: Tensor) -> Weights:
    """Of the layer that makes them: a bias [H K] of taps [H, K], or a weight [H K, H e] of [H, e, H, K]."""
    if taps.dim() == 2:
        return {"conv_kernel_layer.bias": taps.flatten()}
    return {"conv_kernel_layer.weight": taps.flatten(2).flatten(0, 1).T}


@against("transformers Lfm2ShortConv", "shortconv")
@torch.no_grad()
def test_the_short_convolution_is_that_of_lfm2() -> None:
    layer, w, x = layer_of("shortconv", 6, channels=6, taps=3)
    config = Lfm2Config(hidden_size=6, num_hidden_layers=1, layer_types=["conv"], conv_L_cache=3, conv_bias=False)
    module = Lfm2ShortConv(config, 0).double()
    give(
        module,
        conv__weight=w["taps"],
        in_proj__weight=rows(w["w_b"], w["w_c"], w["w_v"]),
        out_proj__weight=w["w_o"].flatten(0, 1).T,
    )
    close(module(x), output(layer, x, w), 1e-10)


@against("transformers PoolFormerPooling", "poolformer")
@pytest.mark.parametrize("taps", [3, 5])
def test_pooling_is_that_of_poolformer(taps: int) -> None:
    """Of an image as wide as one patch."""
    layer, w, x = layer_of("poolformer", 6, taps=taps)
    close(PoolFormerPooling(taps)(x.mT[..., None])[..., 0].mT, output(layer, x, w, causal=False), 1e-10)
