"""Hybrids from their configs: which layers, and how many parameters.

Counts are of transformers 5.24, building the model on torch's meta device, and differ by what each comment says.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from costmodel.errors import InputError
from costmodel.estimate import Chosen, estimate, flops
from costmodel.hardware import parse_cluster
from costmodel.huggingface import read_config, supported_model_types
from costmodel.ops.primitive import Reading
from costmodel.plan import rank
from costmodel.subject import from_model
from costmodel.workload import Workload
from tests.model.configs import EXAMPLES, FAMILIES, Config, read

BASE: Config = {
    "vocab_size": 2000,
    "hidden_size": 256,
    "intermediate_size": 320,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 8,
}
PURE = {name: BASE[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers")}
MAMBA2: Config = {"mamba_n_heads": 8, "mamba_d_head": 64, "mamba_d_state": 32}
EXPERTS: Config = {"num_experts_per_tok": 2, "moe_intermediate_size": 96}
QWEN: Config = {
    "head_dim": 64,
    "linear_num_value_heads": 8,
    "linear_num_key_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}
GRANITE = ["linear_attention"] * 5 + ["full_attention"] + ["linear_attention"] * 2
HYBRIDS: dict[str, Config] = {
    "jamba": BASE | {"num_experts": 4},
    "bamba": BASE | MAMBA2 | {"attn_layer_indices": [3, 7]},
    "granitemoehybrid": BASE
    | MAMBA2
    | {"num_local_experts": 4, "shared_intermediate_size": 200, "layer_types": GRANITE},
    "qwen3_next": BASE | EXPERTS | QWEN | {"num_experts": 4, "shared_expert_intermediate_size": 64},
    "minimax": BASE | {"head_dim": 64, "num_local_experts": 4},
    "kimi_linear": BASE
    | EXPERTS
    | {
        "linear_num_heads": 4,
        "linear_head_dim": 32,
        "num_local_experts": 4,
        "n_shared_experts": 1,
        "kv_lora_rank": 64,
    },
    "mamba": PURE,
    "falcon_mamba": PURE,
    "mamba2": PURE | {"num_heads": 8, "head_dim": 64, "state_size": 32, "n_groups": 2},
    "lfm2_moe": BASE | EXPERTS | {"num_experts": 4, "layer_types": ["conv", "conv", "full_attention", "conv"] * 2},
    "qwen3_5_text": BASE | QWEN,
    "qwen3_5_moe_text": BASE | EXPERTS | QWEN | {"num_experts": 4, "shared_expert_intermediate_size": 64},
    "falcon_h1": BASE | MAMBA2 | {"head_dim": 64, "mamba_d_ssm": 512},
    "lfm2": BASE | {"full_attn_idxs": [2, 5]},
    "zamba2": BASE
    | {
        "num_key_value_heads": 4,
        "n_mamba_heads": 8,
        "mamba_d_state": 32,
        "mamba_ngroups": 2,
        "num_mem_blocks": 2,
        "use_shared_attention_adapter": True,
        "adapter_rank": 16,
        "layers_block_type": ["mamba", "mamba", "hybrid", "mamba", "hybrid", "mamba", "hybrid", "hybrid"],
    },
    "nemotron_h": BASE
    | {
        "hybrid_override_pattern": "M-ME*EM-",
        "head_dim": 64,
        "mamba_num_heads": 8,
        "mamba_head_dim": 64,
        "ssm_state_size": 32,
        "n_groups": 2,
        "n_routed_experts": 4,
        "moe_intermediate_size": 96,
        "moe_shared_expert_intermediate_size": 64,
    },
}
COUNTED = {
    # 7 layers of Mamba: the convolution's bias 512, norms of step, keys and queries 16 each
    "jamba": 9_208_912 - 7 * (512 + 3 * 16),
    # 6 layers of Mamba-2: the convolution's bias 576; a norm of 64 for every head, not 512
    "bamba": 5_878_032 - 6 * (576 + 512 - 64),
    "granitemoehybrid": 13_231_720 - 7 * (576 + 512 - 64),
    # the gate of the shared expert, 256 in each layer
    "qwen3_next": 5_925_664 - 8 * 256,
    # 4 layers of lightning attention: decays of 4 heads are constants; a norm of 64 for every head, not 256
    "minimax": 10_999_040 - 4 * (256 - 64 - 4),
    # 7 layers of KDA: the output gate's bias of 128, as in flash-linear-attention; 7 of experts: 4 router biases, which
    # transformers keeps as buffers
    "kimi_linear": 5_396_412 + 7 * 128 + 7 * 4,
    # 8 layers: the convolution's bias of 512
    "mamba": 4_016_384 - 8 * 512,
    "falcon_mamba": 4_016_384 - 8 * 512,
    # 8 layers: the convolution's bias 640; a norm of 64 for every head, not 512
    "mamba2": 4_480_448 - 8 * (640 + 512 - 64),
    # 6 layers of experts: 4 expert biases, which transformers keeps as buffers
    "lfm2_moe": 4_754_432 + 6 * 4,
    "qwen3_5_text": 5_128_992,
    # the gate of the shared expert, 256 in each layer
    "qwen3_5_moe_text": 5_925_664 - 8 * 256,
    # 8 layers: the convolution's bias 576; a norm of 64 for every head of Mamba-2, where the family has none
    "falcon_h1": 7_883_712 - 8 * (576 - 64),
    "lfm2": 4_060_160,
    # 8 layers of Mamba-2: the convolution's bias 640; a norm of 64 for every head, not 512
    "zamba2": 6_812_608 - 8 * (640 + 512 - 64),
    # 3 layers of Mamba-2: the convolution's bias 640; a norm of 64 for every head, not 512; 2 of experts: 4 router
    # biases, which transformers keeps as buffers
    "nemotron_h": 3_306_696 - 3 * (640 + 512 - 64) + 2 * 4,
}


def test_every_family_is_tested() -> None:
    assert sorted({*FAMILIES, *HYBRIDS}) == list(supported_model_types())


@pytest.mark.parametrize("name", HYBRIDS)
def test_parameters_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    model = read(tmp_path, HYBRIDS[name] | {"model_type": name})
    assert model.parameters() == COUNTED[name]


@pytest.mark.parametrize(
    ("name", "full", "places"),
    [
        ("jamba", "attention", [4]),
        ("bamba", "attention", [3, 7]),
        ("granitemoehybrid", "attention", [5]),
        ("qwen3_next", "attention", [3, 7]),
        ("minimax", "attention", [0, 2, 4, 6]),
        ("kimi_linear", "mla", [4]),
        ("falcon_h1", "attention+mamba2", list(range(8))),
        ("lfm2_moe", "attention", [2, 6]),
        ("qwen3_5_text", "attention", [3, 7]),
        ("qwen3_5_moe_text", "attention", [3, 7]),
        ("mamba2", "attention", []),
        ("lfm2", "attention", [2, 5]),
        ("nemotron_h", "attention", [2]),
        ("zamba2", "attention", [2, 5, 8, 10]),  # each before a layer of the file
    ],
)
def test_which_layers_attend(tmp_path: Path, name: str, full: str, places: list[int]) -> None:
    model = read(tmp_path, HYBRIDS[name] | {"model_type": name})
    assert [layer for layer, spec in enumerate(model.layers) if spec.mixer.name == full] == places


def test_layer_types_of_the_file_go_first(tmp_path: Path) -> None:
    types = ["full_attention"] * 7 + ["linear_attention"]
    model = read(tmp_path, HYBRIDS["qwen3_next"] | {"model_type": "qwen3_next", "layer_types": types})
    assert [spec.mixer.name for spec in model.layers] == ["attention"] * 7 + ["gated-deltanet"]


def test_a_feed_forward_joins_the_mixer_before_it(tmp_path: Path) -> None:
    """M-, ME, *E, M-: four layers of two parts; where two mixers follow each other, the first is alone."""
    values = HYBRIDS["nemotron_h"] | {"model_type": "nemotron_h"}
    mlps = [layer.mlp and (layer.mlp.hidden, layer.mlp.experts) for layer in read(tmp_path, values).layers]
    assert mlps == [(320, 1), (96, 4), (96, 4), (320, 1)]
    alone = read(tmp_path, values | {"hybrid_override_pattern": "MM*-"})
    assert [(layer.mixer.name, layer.mlp is None, layer.norms) for layer in alone.layers] == [
        ("mamba2", True, 1),
        ("mamba2", True, 1),
        ("attention", False, 2),
    ]
    named = values | {"hybrid_override_pattern": None, "layers_block_type": ["mamba", "mlp", "attention", "moe"]}
    assert [layer.mixer.name for layer in read(tmp_path, named).layers] == ["mamba2", "attention"]


@pytest.mark.parametrize(
    ("changes", "counted"),
    [
        ({"num_mem_blocks": 1, "use_shared_attention_adapter": False}, 5_451_968),
        ({"use_shared_attention_adapter": False, "adapter_rank": 24}, 6_644_672),
    ],
)
def test_blocks_and_adapters_of_zamba2(tmp_path: Path, changes: Config, counted: int) -> None:
    model = read(tmp_path, HYBRIDS["zamba2"] | {"model_type": "zamba2"} | changes)
    assert model.parameters() == counted - 8 * (640 + 512 - 64)


def test_weights_of_a_shared_block_are_held_once(tmp_path: Path) -> None:
    """Two blocks, used four times: on one device, the weights are as many as the model's, and work is done each time.

    Of a use, at a width of 256, products of 2 * weights FLOP a token: attention 3 * 512 * 512 + 512 * 256 and its
    adapters 6 * 512 * 16, feed-forward 3 * 256 * 320 and its adapter 16 * (256 + 640), and 256 * 256.
    """
    model = read(tmp_path, HYBRIDS["zamba2"] | {"model_type": "zamba2"})
    ranking = rank(from_model(model), Workload(4096, 1, "prefill"), parse_cluster("1xh100"))
    assert ranking.plan(0).memory["parameters"] == pytest.approx(2 * (model.parameters() - 2000 * 256) + 2 * 2000 * 256)
    twice = read(tmp_path, HYBRIDS["zamba2"] | {"model_type": "zamba2", "num_mem_blocks": 1})
    again = rank(from_model(twice), Workload(4096, 1, "prefill"), parse_cluster("1xh100"))
    assert again.plan(0).seconds == ranking.plan(0).seconds
    block = next(layer for layer in from_model(model).layers if layer.shared)
    alone = replace(from_model(model), layers=(replace(block, count=1),), vocabulary=0)
    one = rank(alone, Workload(4096, 1, "forward"), parse_cluster("1xh100"))
    weights = 3 * 512 * 512 + 512 * 256 + 6 * 512 * 16 + 3 * 256 * 320 + 16 * 896 + 256 * 256
    pairs = 2 * 2 * 512 * 4096 * 4096
    assert flops(one, 0)[Reading.DENSE]["contraction"] == 2 * 4096 * weights + pairs


def test_gradients_of_a_shared_block_are_exchanged_once(tmp_path: Path) -> None:
    """Two replicas each send half of all gradients to be summed, and as much of the sums, whatever is shared."""
    sent = {}
    for blocks in (1, 2, 4):
        model = read(tmp_path, HYBRIDS["zamba2"] | {"model_type": "zamba2", "num_mem_blocks": blocks})
        found = estimate(
            from_model(model), Workload(4096, 2, "train"), parse_cluster("2xh100"), Chosen(("whole",), {"data": 2})
        )
        sent[blocks] = found.plan(0).wire["replicas"] / model.parameters()
    assert sent[1] == pytest.approx(sent[2]) == pytest.approx(sent[4])
    assert sent[1] == pytest.approx(2, rel=0.01)  # bytes of a gradient


def test_the_width_of_lfm2(tmp_path: Path) -> None:
    """LFM2-1.2B: 12288 less a third is 8192, a multiple of 256."""
    widths = {"intermediate_size": 12288}
    changes: dict[int, Config] = {
        8192: {},
        9216: {"block_ffn_dim_multiplier": 1.1},  # 9011.2 rounded up
        12288: {"block_auto_adjust_ff_dim": False},
        256: {"block_ff_dim": 300},
    }
    for expected, change in changes.items():
        values = HYBRIDS["lfm2"] | {"model_type": "lfm2"} | widths | change
        assert {layer.mlp and layer.mlp.hidden for layer in read(tmp_path, values).layers} == {expected}


def test_the_language_model_of_qwen3_5(tmp_path: Path) -> None:
    """Of its published files the text config is read."""
    inner = HYBRIDS["qwen3_5_text"] | {"model_type": "qwen3_5_text"}
    model = read(tmp_path, {"model_type": "qwen3_5", "text_config": inner, "vision_config": {"depth": 2}})
    assert model.parameters() == COUNTED["qwen3_5_text"]


def test_the_nested_sizes_of_kimi_linear(tmp_path: Path) -> None:
    nested = {"num_heads": 2, "head_dim": 16, "short_conv_kernel_size": 3, "full_attn_layers": [1, 8], "kda_layers": []}
    model = read(tmp_path, HYBRIDS["kimi_linear"] | {"model_type": "kimi_linear", "linear_attn_config": nested})
    assert [layer for layer, spec in enumerate(model.layers) if spec.mixer.name == "mla"] == [0, 7]
    assert dict(model.layers[1].mixer.params) | {"heads": 2, "head_dim": 16, "taps": 3} == dict(
        model.layers[1].mixer.params
    )


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("bamba", {"attn_layer_indices": "3"}, "attn_layer_indices: .* must be a list"),
        (
            "bamba",
            {"mamba_d_head": "auto", "mamba_n_heads": 7},
            "mamba_n_heads: 7 .* must divide the 512",
        ),
        ("kimi_linear", {"linear_attn_config": 3}, "linear_attn_config: 3 .* must be an object"),
        ("nemotron_h", {"hybrid_override_pattern": "MX"}, "hybrid_override_pattern: .* must be a pattern of M "),
        ("nemotron_h", {"hybrid_override_pattern": "M--"}, "layer 2: .* a feed-forward without a mixer before it"),
        ("nemotron_h", {"hybrid_override_pattern": None}, "hybrid_override_pattern: null .* must be a pattern"),
        ("nemotron_h", {"moe_latent_size": 8}, "moe_latent_size: 8 .* must be null"),
        ("falcon_h1", {"projectors_bias": True}, "projectors_bias: true .* must be false"),
        ("mamba", {"use_bias": True}, "use_bias: true .* must be false"),
        ("lfm2_moe", {"layer_types": None}, "layer_types"),
        ("lfm2", {"conv_bias": True}, "conv_bias: true .* must be false"),
        ("lfm2", {"full_attn_idxs": [0.5]}, "full_attn_idxs: .* must be a list"),
        ("lfm2", {"block_ffn_dim_multiplier": "1"}, "block_ffn_dim_multiplier: .* must be a number"),
        ("zamba2", {"num_key_value_heads": 2}, r"num_key_value_heads: 2 .* must equal num_attention_heads \(4\)"),
        ("zamba2", {"add_bias_linear": True}, "add_bias_linear: true .* must be false"),
        ("jamba", {"mamba_dt_rank": "all"}, "mamba_dt_rank: .* must be a whole number"),
        (
            "qwen3_next",
            {"layer_types": ["mamba"] * 8},
            r"layer_types\[0\]: .* must be full_attention or ",
        ),
    ],
)
def test_bad_fields(tmp_path: Path, name: str, changes: Config, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, HYBRIDS[name] | {"model_type": name} | changes)


def test_nemotron_h_8b_has_its_exact_number_of_parameters() -> None:
    """8,100,852,736 in transformers 5.24.

    In each of 24 layers of Mamba-2 the convolution's bias of 8192 + 2*8*128, and a norm of 8192 instead of 64.
    """
    model = read_config(EXAMPLES / "nemotron-h-8b.json")
    assert model.parameters() == 8_100_852_736 - 24 * (10_240 + 8192 - 64)
    kinds = [(layer.mixer.name, layer.mlp is not None, count) for layer, count in model.groups()]
    assert kinds == [("mamba2", True, 20), ("mamba2", False, 4), ("attention", True, 4)]


def test_falcon_h1_7b_has_its_exact_number_of_parameters() -> None:
    """7,585,513,568 in transformers 5.24.

    In each of 44 layers the convolution's bias of 3072 + 2*256, and no norm where our Mamba-2 has one of 128.
    """
    assert read_config(EXAMPLES / "falcon-h1-7b.json").parameters() == 7_585_513_568 - 44 * (3072 + 512 - 128)


@pytest.mark.parametrize("phase", ["prefill", "decode", "train"])
def test_a_hybrid_is_planned(phase: str) -> None:
    """Each kind of layer has a strategy of its own; all spread the sequence alike."""
    model = read_config(EXAMPLES / "qwen3-next-80b-a3b.json")
    assert model.parameters() == pytest.approx(80e9, rel=0.01)
    ranking = rank(from_model(model), Workload(2**17, 8, phase), parse_cluster("16xh200"))  # type: ignore[arg-type]
    assert len(ranking.places)
    plan = ranking.plan(0)
    assert [layer.mixer.name for layer in ranking.subject.layers] == ["gated-deltanet", "attention"]
    assert plan.seconds > 0
