"""Definitions against implementations by others: transformers' modules with the same weights.

Those work in float32 where they say so; then numbers near 1 agree to 1e-5. ``test_cells`` has torch.nn.LSTM and GRU.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from transformers import (
    DeepseekV3Config,
    DeepseekV32Config,
    FNetConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MiniMaxConfig,
    MllamaTextConfig,
    NystromformerConfig,
    ReformerConfig,
    RwkvConfig,
    xLSTMConfig,
)
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding
from transformers.models.deepseek_v32.modeling_deepseek_v32 import DeepseekV32Attention, DeepseekV32RotaryEmbedding
from transformers.models.fnet.modeling_fnet import FNetBasicFourierTransform
from transformers.models.kimi_linear.modeling_kimi_linear import recurrent_kimi_delta_attention
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention
from transformers.models.mllama.modeling_mllama import MllamaTextCrossAttention
from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention
from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule
from transformers.models.reformer.modeling_reformer import LSHSelfAttention
from transformers.models.rwkv.modeling_rwkv import RwkvSelfAttention
from transformers.models.xlstm.modeling_xlstm import xLSTMLayer

from costmodel.written import delta_matrix
from tests.validate.outside import BATCH, LENGTH, against, causal_mask, close, give, layer_of, output, rows
from validate.template import written


@against("transformers LlamaAttention", "attention")
@torch.no_grad()
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_is_llamas(kv_heads: int) -> None:
    layer, w, x = layer_of("attention", 16, heads=4, kv_heads=kv_heads, head_dim=8)
    config = LlamaConfig(hidden_size=16, num_attention_heads=4, num_key_value_heads=kv_heads, head_dim=8)
    config._attn_implementation = "eager"
    module = LlamaAttention(config, 0).double()
    give(
        module,
        q_proj__weight=rows(w["w_q"]),
        k_proj__weight=rows(w["w_k"]),
        v_proj__weight=rows(w["w_v"]),
        o_proj__weight=w["w_o"].flatten(0, 1).T,
    )
    places = LlamaRotaryEmbedding(config)(x, torch.arange(LENGTH)[None])
    close(module(x, places, causal_mask())[0], output(layer, x, w))


@against("transformers MllamaTextCrossAttention", "cross-attention")
@torch.no_grad()
def test_cross_attention_is_llama_visions() -> None:
    sizes = {"heads": 4, "kv_heads": 2, "head_dim": 8, "memory": 10, "memory_width": 32}
    layer, w, x = layer_of("cross-attention", 32, **sizes)
    layer = replace(layer, sizes={**layer.sizes, "qk_norm": 1})
    w |= {"q_norm": torch.rand(8).double(), "k_norm": torch.rand(8).double()}
    config = MllamaTextConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5)
    config._attn_implementation = "eager"
    module = MllamaTextCrossAttention(config, 0).double()
    give(
        module,
        q_proj__weight=rows(w["w_q"]),
        k_proj__weight=rows(w["w_k"]),
        v_proj__weight=rows(w["w_v"]),
        o_proj__weight=w["w_o"].flatten(0, 1).T,
        q_norm__weight=w["q_norm"],
        k_norm__weight=w["k_norm"],
    )
    memory = torch.randn(BATCH, 10, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    close(module(x, memory, attention_mask=None)[0], written(layer, x, w, True, memory).output)


@against("transformers DeepseekV32Attention", "dsa")
@torch.no_grad()
def test_sparse_attention_is_deepseeks() -> None:
    """Whose rotary entries of queries and keys are in pairs, those of the index in halves as ours."""
    sizes = {"heads": 4, "q_rank": 6, "kv_rank": 5, "nope_dim": 4, "rope_dim": 4, "value_dim": 3}
    layer, w, x = layer_of("dsa", 16, **sizes, index_heads=24, index_dim=4, chosen=5)
    config = DeepseekV32Config(
        hidden_size=16, num_attention_heads=4, num_key_value_heads=4, q_lora_rank=6, kv_lora_rank=5, v_head_dim=3,
        qk_nope_head_dim=4, qk_rope_head_dim=4, index_n_heads=24, index_head_dim=8, index_topk=5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    config._attn_implementation = "eager"
    module = DeepseekV32Attention(config, 0).double()
    for norm in (module.q_a_layernorm, module.kv_a_layernorm):
        norm.variance_epsilon = 1e-5
    module.indexer.k_norm.eps = 1e-5
    pairs = torch.tensor([0, 2, 1, 3])
    turning = w["w_uq"][..., 4:][..., pairs]
    give(
        module,
        q_a_proj__weight=w["w_qc"].T,
        q_a_layernorm__weight=w["q_norm"],
        q_b_proj__weight=rows(torch.cat([w["w_uq"][..., :4], turning], 2)),
        kv_a_proj_with_mqa__weight=rows(w["w_c"], w["w_kr"][:, pairs]),
        kv_a_layernorm__weight=w["c_norm"],
        kv_b_proj__weight=rows(torch.cat([w["w_uk"], w["w_uv"]], 2)),
        o_proj__weight=w["w_o"].flatten(0, 1).T,
        indexer__wq_b__weight=rows(w["w_iq"]),
        indexer__wk__weight=w["w_ik"].T,
        indexer__k_norm__weight=w["i_norm"],
        indexer__k_norm__bias=w["i_shift"],
        indexer__weights_proj__weight=w["w_ig"].T,
    )
    places = DeepseekV32RotaryEmbedding(config)(x, torch.arange(LENGTH)[None])
    close(module(x, places, causal_mask())[0], output(layer, x, w))


@against("transformers LSHSelfAttention", "reformer")
@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
def test_hashed_attention_is_transformers(causal: bool) -> None:
    """Which draws its rotations from a seed."""
    layer, w, x = layer_of("reformer", 16, heads=4, head_dim=8, chunk=3, rounds=3)
    config = ReformerConfig(
        hidden_size=16, num_attention_heads=4, attention_head_size=8, lsh_attn_chunk_length=3, num_hashes=3,
        num_buckets=8, hash_seed=1, is_decoder=causal, lsh_attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    module = LSHSelfAttention(config).double()
    module._len_norm = partial(module._len_norm, epsilon=1e-5)
    give(module, query_key__weight=rows(w["w_q"]), value__weight=rows(w["w_v"]))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        w["rotations"] = torch.randn(w["rotations"].shape, dtype=torch.float64)
        mixed = module(x).hidden_states
    close(mixed @ w["w_o"].flatten(0, 1), output(layer, x, w, causal), 1e-10)


@against("transformers MambaMixer", "mamba1")
@torch.no_grad()
def test_mamba_is_transformers() -> None:
    layer, w, x = layer_of("mamba1", 6, channels=12, state_dim=4, step_rank=3, taps=4)
    config = MambaConfig(
        hidden_size=6, state_size=4, expand=2, conv_kernel=4, time_step_rank=3, use_conv_bias=False, num_hidden_layers=1
    )
    module = MambaMixer(config, 0).double()
    give(
        module,
        in_proj__weight=rows(w["w_x"], w["w_z"]),
        conv1d__weight=w["taps"],
        x_proj__weight=w["w_p"].T,
        dt_proj__weight=rows(w["w_dt"]),
        dt_proj__bias=w["b_dt"],
        A_log=w["A"],
        D=w["skip"],
        out_proj__weight=w["w_o"].flatten(0, 1).T,
    )
    close(module(x), output(layer, x, w))


@against("transformers Mamba2Mixer", "mamba2")
@torch.no_grad()
def test_mamba2_is_transformers() -> None:
    """With one head, over which alone our norm goes."""
    layer, w, x = layer_of("mamba2", 8, heads=1, kv_heads=1, head_dim=4, value_dim=16, taps=4, chunk=4)
    config = Mamba2Config(
        hidden_size=8, num_heads=1, head_dim=16, n_groups=1, state_size=4, expand=2, conv_kernel=4, chunk_size=4,
        use_conv_bias=False, num_hidden_layers=1, layer_norm_epsilon=1e-5,
    )  # fmt: skip
    module = Mamba2Mixer(config, 0).double()
    give(
        module,
        in_proj__weight=rows(w["w_z"], w["w_x"], w["w_b"], w["w_c"], w["w_dt"]),
        conv1d__weight=torch.cat([w[f"taps_{name}"].flatten(0, 1) for name in "xbc"]),
        dt_bias=w["b_dt"],
        A_log=w["A"],
        D=w["skip"],
        norm__weight=w["norm"],
        out_proj__weight=w["w_o"].flatten(0, 1).T,
    )
    close(module(x), output(layer, x, w))


@against("transformers recurrent_kimi_delta_attention (recurrence)", "kda")
@against("transformers torch_recurrent_gated_delta_rule (recurrence)", "gated-deltanet")
@torch.no_grad()
@pytest.mark.parametrize("per_channel", [False, True])
def test_the_delta_rule_is_that_of_qwen_and_kimi(per_channel: bool) -> None:
    """One decay a head is Gated DeltaNet's, one a channel Kimi delta attention's."""
    b, h, d, e = BATCH, 3, 5, 4
    q, k = (nn.functional.normalize(torch.randn(b, h, LENGTH, d, dtype=torch.float64), dim=-1) for _ in range(2))
    v, beta = torch.randn(b, h, LENGTH, e, dtype=torch.float64), torch.rand(b, h, LENGTH, 1, dtype=torch.float64)
    decay = -torch.rand(b, h, LENGTH, d if per_channel else 1, dtype=torch.float64)
    expected = delta_matrix(torch, q * d**-0.5, k, beta, decay) @ v
    theirs = recurrent_kimi_delta_attention if per_channel else torch_recurrent_gated_delta_rule
    given = [y.transpose(1, 2) for y in (q, k, v, decay, beta)]
    given = [*given[:3], given[3] if per_channel else given[3][..., 0], given[4][..., 0]]
    close(theirs(*given, initial_state=None, output_final_state=False)[0].transpose(1, 2), expected)


@against("transformers RwkvSelfAttention", "rwkv4")
@torch.no_grad()
def test_rwkv4_is_transformers() -> None:
    layer, w, x = layer_of("rwkv4", 6, channels=10)
    module = RwkvSelfAttention(RwkvConfig(hidden_size=6, attention_hidden_size=10, num_hidden_layers=1), 0).double()
    give(
        module,
        time_decay=w["decay"],
        time_first=w["first"],
        time_mix_key=1 - w["mix_k"],
        time_mix_value=1 - w["mix_v"],
        time_mix_receptance=1 - w["mix_r"],
        key__weight=rows(w["w_k"]),
        value__weight=rows(w["w_v"]),
        receptance__weight=rows(w["w_r"]),
        output__weight=w["w_o"].flatten(0, 1).T,
    )
    close(module(x)[0], output(layer, x, w))


@against("transformers MiniMaxLightningAttention", "lightning")
@torch.no_grad()
def test_lightning_attention_is_minimaxs() -> None:
    """With one head, over which alone our norm goes, and the decay that theirs has as a constant."""
    layer, w, x = layer_of("lightning", 8, heads=1, head_dim=6, value_dim=6, chunk=4)
    config = MiniMaxConfig(
        hidden_size=8, num_attention_heads=1, head_dim=6, block_size=4, num_hidden_layers=2, rms_norm_eps=1e-5,
        layer_types=["linear_attention"] * 2,
    )  # fmt: skip
    module = MiniMaxLightningAttention(config, 0).double()
    module.norm.variance_epsilon = 1e-5  # theirs is fixed to 1e-6
    w["decay"] = torch.log(torch.expm1(module.slope_rate.double().flatten()))
    give(
        module,
        norm__weight=w["norm"],
        qkv_proj__weight=rows(w["w_q"], w["w_k"], w["w_v"]),
        output_gate__weight=rows(w["w_g"]),
        out_proj__weight=w["w_o"].flatten(0, 1).T,
    )
    close(module(x, (x, x), None)[0], output(layer, x, w))


@against("transformers NystromformerSelfAttention", "nystromformer")
@torch.no_grad()
def test_nystromformer_is_transformers() -> None:
    layer, w, x = layer_of("nystromformer", 12, heads=3, head_dim=4, value_dim=4, landmarks=4, taps=5)
    config = NystromformerConfig(
        hidden_size=12, num_attention_heads=3, num_landmarks=4, segment_means_seq_len=LENGTH, conv_kernel_size=5
    )
    module = NystromformerSelfAttention(config).double().eval()
    module.init_option = "exact"
    none = torch.zeros(12, dtype=torch.float64)
    give(
        module,
        query__weight=rows(w["w_q"]),
        query__bias=none,
        key__weight=rows(w["w_k"]),
        key__bias=none,
        value__weight=rows(w["w_v"]),
        value__bias=none,
        conv__weight=w["taps"],
    )
    close(module(x)[0] @ w["w_o"].flatten(0, 1), output(layer, x, w, causal=False))


@against("transformers FNetBasicFourierTransform", "fnet")
@torch.no_grad()
def test_fourier_mixing_is_transformers() -> None:
    layer, w, x = layer_of("fnet", 10)
    close(FNetBasicFourierTransform(FNetConfig())(x)[0], output(layer, x, w, causal=False), 1e-10)


@against("transformers DeepseekV3Attention", "mla")
@torch.no_grad()
def test_latent_attention_is_deepseeks() -> None:
    sizes = {"heads": 4, "q_rank": 6, "kv_rank": 5, "nope_dim": 4, "rope_dim": 4, "value_dim": 3}
    layer, w, x = layer_of("mla", 16, **sizes)
    config = DeepseekV3Config(
        hidden_size=16, num_attention_heads=4, num_key_value_heads=4, q_lora_rank=6, kv_lora_rank=5, v_head_dim=3,
        qk_nope_head_dim=4, qk_rope_head_dim=4, rope_interleave=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    config._attn_implementation = "eager"
    module = DeepseekV3Attention(config, 0).double()
    for norm in (module.q_a_layernorm, module.kv_a_layernorm):
        norm.variance_epsilon = 1e-5
    give(
        module,
        q_a_proj__weight=w["w_qc"].T,
        q_a_layernorm__weight=w["q_norm"],
        q_b_proj__weight=rows(w["w_uq"]),
        kv_a_proj_with_mqa__weight=rows(w["w_c"], w["w_kr"]),
        kv_a_layernorm__weight=w["c_norm"],
        kv_b_proj__weight=rows(torch.cat([w["w_uk"], w["w_uv"]], 2)),
        o_proj__weight=w["w_o"].flatten(0, 1).T,
    )
    places = DeepseekV3RotaryEmbedding(config)(x, torch.arange(LENGTH)[None])
    close(module(x, places, causal_mask())[0], output(layer, x, w))


@against("transformers xLSTMLayer", "mlstm")
@torch.no_grad()
def test_mlstm_is_transformers() -> None:
    layer, w, x = layer_of("mlstm", 12, heads=2, head_dim=3, value_dim=6, chunk=4)
    config = xLSTMConfig(hidden_size=12, num_heads=2, norm_eps=1e-5, eps=0.0, norm_reduction_force_float32=False)
    module = xLSTMLayer(config).double()
    give(
        module,
        q__weight=rows(w["w_q"]),
        k__weight=rows(w["w_k"]),
        v__weight=rows(w["w_v"]),
        ogate_preact__weight=rows(w["w_g"]),
        igate_preact__weight=rows(w["w_i"]),
        igate_preact__bias=w["b_i"],
        fgate_preact__weight=rows(w["w_f"]),
        fgate_preact__bias=w["b_f"],
        multihead_norm__weight=w["norm"],
        out_proj__weight=w["w_o"].flatten(0, 1).T,
    )
    close(module(x)[0], output(layer, x, w))
