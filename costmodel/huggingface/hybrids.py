"""Models of whose layers some have attention and others a recurrence: one small function per family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from costmodel.huggingface.family import (
    FULL,
    after_dense,
    always,
    attention,
    dense,
    family,
    latent_attention,
    layer_types,
    numbered,
    refused,
    routed,
    sparse_steps,
    spec,
    stack,
)
from costmodel.huggingface.fields import LARGEST_DEPTH, Fields
from costmodel.huggingface.mamba import mamba1, mamba2
from costmodel.model import LayerSpec, MixerSpec, MlpSpec

LINEAR = "linear_attention"


def _mixed(
    fields: Fields,
    full: MixerSpec,
    linear: MixerSpec,
    mlp: Callable[[int], MlpSpec],
    rule: Callable[[int], bool],
    names: tuple[str, str] = (FULL, LINEAR),
) -> tuple[LayerSpec, ...]:
    """All layers, with attention in those that attend."""
    attends = _attend(fields, rule, names)
    return tuple(LayerSpec(full if attend else linear, mlp(layer)) for layer, attend in enumerate(attends))


def _attend(fields: Fields, rule: Callable[[int], bool], names: tuple[str, str] = (FULL, LINEAR)) -> list[bool]:
    """Which layers attend: as the file's ``layer_types`` say, or else by the family's rule.

    ``names`` are what the file may call a layer with attention, and one without, beside the usual names.
    """
    depth = fields.integer("num_hidden_layers", high=LARGEST_DEPTH)
    types = layer_types(fields, depth, tuple(dict.fromkeys((FULL, LINEAR, *names))), fields.pick(*TYPES))
    return [rule(layer) for layer in range(depth)] if types is None else [t in (FULL, names[0]) for t in types]


#: What the list of the layers' kinds is called.
TYPES = ("layer_types", "layers_block_type")


QWEN = {"attention_bias": False, "head_dim": 256, "linear_conv_kernel_dim": 4, "full_attention_interval": 4}


@family("qwen3_next", decoder_sparse_step=1, mlp_only_layers=None, **QWEN)
def _qwen3_next(fields: Fields) -> tuple[LayerSpec, ...]:
    """Three layers of Gated DeltaNet for each of gated attention; the gate of the shared expert is left out."""
    return _qwen(fields, sparse_steps(fields, _qwen_experts(fields)))


@family("qwen3_5_text", num_key_value_heads=4, **QWEN)
def _qwen3_5(fields: Fields) -> tuple[LayerSpec, ...]:
    return _qwen(fields, dense(fields))


@family("qwen3_5_moe_text", num_key_value_heads=2, num_experts_per_tok=8, num_experts=256, **QWEN)
def _qwen3_5_moe(fields: Fields) -> tuple[LayerSpec, ...]:
    return _qwen(fields, always(_qwen_experts(fields)))


def _qwen(fields: Fields, mlp: Callable[[int], MlpSpec]) -> tuple[LayerSpec, ...]:
    bias = fields.flag("attention_bias")
    full = attention(fields, bias=bias, out_bias=bias, qk_norm=True, gate=True)
    linear = spec(
        "gated-deltanet",
        heads=fields.integer("linear_num_value_heads"),
        kv_heads=fields.integer("linear_num_key_heads"),
        head_dim=fields.integer("linear_key_head_dim"),
        value_dim=fields.integer("linear_value_head_dim"),
        taps=fields.integer("linear_conv_kernel_dim"),
    )
    interval = fields.integer("full_attention_interval")
    return _mixed(fields, full, linear, mlp, lambda layer: (layer + 1) % interval == 0)


def _qwen_experts(fields: Fields) -> MlpSpec:
    experts = routed(fields, fields.pick("num_experts", "num_local_experts"), "moe_intermediate_size", shared=1)
    return replace(experts, shared_hidden=fields.integer("shared_expert_intermediate_size"))


@family(
    "jamba",
    num_key_value_heads=8,
    mamba_d_state=16,
    mamba_d_conv=4,
    mamba_expand=2,
    mamba_dt_rank="auto",
    attn_layer_period=8,
    attn_layer_offset=4,
    expert_layer_period=2,
    expert_layer_offset=1,
    num_experts_per_tok=2,
)
def _jamba(fields: Fields) -> tuple[LayerSpec, ...]:
    """Mamba with attention and experts now and then; its norms of the step, keys and queries are left out."""
    plain = MlpSpec(fields.integer("intermediate_size"))
    experts = routed(fields, fields.pick("num_experts", "num_local_experts"), "intermediate_size")
    period, offset = _period(fields, "expert")

    def mlp(layer: int) -> MlpSpec:
        return experts if layer % period == offset and experts.experts > 1 else plain

    every, first = _period(fields, "attn")
    return _mixed(fields, attention(fields, bias=False), mamba1(fields), mlp, lambda layer: layer % every == first)


def _period(fields: Fields, what: str) -> tuple[int, int]:
    return fields.integer(f"{what}_layer_period"), fields.integer(f"{what}_layer_offset", low=0)


MAMBA2 = {
    "mamba_n_heads": 128,
    "mamba_d_head": "auto",
    "mamba_n_groups": 1,
    "mamba_d_state": 256,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 256,
}


@family("bamba", num_key_value_heads=8, attention_bias=False, mlp_bias=False, attn_layer_indices=None, **MAMBA2)
def _bamba(fields: Fields) -> tuple[LayerSpec, ...]:
    bias = fields.flag("attention_bias")
    full = attention(fields, bias=bias, out_bias=bias)
    chosen = numbered(fields, "attn_layer_indices") or ()
    mlp = dense(fields, bias=fields.flag("mlp_bias"))
    return _mixed(fields, full, mamba2(fields), mlp, lambda layer: layer in chosen, ("attention", "mamba"))


@family(
    "granitemoehybrid",
    attention_bias=False,
    num_local_experts=8,
    num_experts_per_tok=2,
    shared_intermediate_size=1024,
    **MAMBA2,
)
def _granite(fields: Fields) -> tuple[LayerSpec, ...]:
    """Mamba-2 and attention, each with routed experts beside a shared network, or with the latter alone."""
    bias = fields.flag("attention_bias")
    shared = fields.integer("shared_intermediate_size")
    mlp = MlpSpec(shared)
    if fields.integer("num_local_experts", low=0):
        mlp = replace(routed(fields, "num_local_experts", "intermediate_size", shared=1), shared_hidden=shared)
    full = attention(fields, bias=bias, out_bias=bias)
    return _mixed(fields, full, mamba2(fields), always(mlp), lambda layer: False, ("attention", "mamba"))


@family(
    "falcon_h1",
    num_key_value_heads=8,
    attention_bias=False,
    mlp_bias=False,
    mamba_proj_bias=False,
    projectors_bias=False,
    mamba_d_ssm=1024,
    **MAMBA2,
)
def _falcon_h1(fields: Fields) -> tuple[LayerSpec, ...]:
    """Attention and Mamba-2 side by side in every layer, each with its own width; multipliers are left out."""
    refused(fields, "mamba_proj_bias", "projectors_bias")
    bias = fields.flag("attention_bias")
    mixer = MixerSpec.beside(attention(fields, bias=bias, out_bias=bias), mamba2(fields))
    return stack(fields, mixer, dense(fields, bias=fields.flag("mlp_bias")))


ZAMBA2 = {
    "n_mamba_heads": 8,
    "mamba_d_head": "auto",
    "mamba_ngroups": 1,
    "mamba_d_state": 64,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "chunk_size": 256,
}

#: Layers of Zamba2 that a block stands before, where the file does not name them.
ZAMBA2_BLOCKS = frozenset({6, 12, 18, 24, 30, 36, 42, 47, 51})


@family(
    "zamba2",
    tie_word_embeddings=True,
    intermediate_size=None,
    num_mem_blocks=1,
    use_shared_attention_adapter=False,
    adapter_rank=128,
    add_bias_linear=False,
    **ZAMBA2,
)
def _zamba2(fields: Fields) -> tuple[LayerSpec, ...]:
    """Mamba-2, before some layers a block of attention and feed-forward whose weights others use again.

    What a use adds goes to the next layer's mixer only, and here past it, too: at the same cost.
    """
    refused(fields, "add_bias_linear")
    width, rank = fields.integer("hidden_size"), fields.integer("adapter_rank")
    full = attention(fields, bias=False)
    heads, adapted = full.params["heads"], fields.flag("use_shared_attention_adapter")
    if adapted and full.params["kv_heads"] != heads:
        rule = f"must equal num_attention_heads ({heads}) where attention has adapters"
        raise fields.error("num_key_value_heads", full.params["kv_heads"], rule)
    mixer = full.replace(head_dim=2 * width // heads, doubled=True, adapter=rank if adapted else 0)
    mlp = MlpSpec(fields.optional_integer("intermediate_size") or 4 * width, adapter=rank)
    block = LayerSpec(mixer, mlp, shared=fields.integer("num_mem_blocks"))
    linear = LayerSpec(mamba2(fields), None, 1)
    hybrid = _attend(fields, lambda layer: layer in ZAMBA2_BLOCKS, ("hybrid", "mamba"))
    return tuple(layer for before in hybrid for layer in ([block, linear] if before else [linear]))


@family("minimax", num_key_value_heads=8, num_local_experts=8, num_experts_per_tok=2, block_size=256)
def _minimax(fields: Fields) -> tuple[LayerSpec, ...]:
    full = attention(fields, bias=False)
    size = full.params["head_dim"]
    linear = spec(
        "lightning", heads=full.params["heads"], head_dim=size, value_dim=size, chunk=fields.integer("block_size")
    )
    experts = routed(fields, fields.pick("num_local_experts", "num_experts"), "intermediate_size")
    return _mixed(fields, full, linear, always(experts), lambda layer: layer % 2 == 0)


@family(
    "kimi_linear",
    q_lora_rank=None,
    kv_lora_rank=512,
    qk_rope_head_dim=64,
    qk_nope_head_dim=128,
    v_head_dim=128,
    attention_bias=False,
    first_k_dense_replace=1,
    linear_attn_config=None,
    linear_num_heads=32,
    linear_head_dim=128,
    linear_conv_kernel_dim=4,
)
def _kimi_linear(fields: Fields) -> tuple[LayerSpec, ...]:
    """Three layers of Kimi delta attention for each of latent attention; published files nest the former's sizes."""
    nested = fields.raw("linear_attn_config") or {}
    if not isinstance(nested, dict):
        raise fields.error("linear_attn_config", nested, "must be an object")
    inner = Fields(f"{fields.where}: linear_attn_config", nested, {})
    heads, size, taps = (
        inner.integer(short) if short in nested else fields.integer(long)
        for short, long in (
            ("num_heads", "linear_num_heads"),
            ("head_dim", "linear_head_dim"),
            ("short_conv_kernel_size", "linear_conv_kernel_dim"),
        )
    )
    linear = spec("kda", heads=heads, head_dim=size, value_dim=size, taps=taps, gate_rank=size)
    experts = fields.pick("num_experts", "num_local_experts", "n_routed_experts")
    shared = fields.optional_integer(fields.pick("num_shared_experts", "n_shared_experts"), low=0) or 0
    mlp = after_dense(
        MlpSpec(fields.integer("intermediate_size")),
        routed(fields, experts, "moe_intermediate_size", shared, "router"),
        fields.integer("first_k_dense_replace", low=0),
    )
    full = nested.get("full_attn_layers")
    attends = (
        (lambda layer: layer + 1 in full) if isinstance(full, list) else (lambda layer: layer > 0 and layer % 4 == 0)
    )
    return _mixed(fields, latent_attention(fields), linear, mlp, attends)


LFM2 = {"conv_bias": False, "conv_L_cache": 3}


@family(
    "lfm2",
    num_key_value_heads=8,
    tie_word_embeddings=True,
    full_attn_idxs=None,
    **LFM2,
    block_auto_adjust_ff_dim=True,
    block_multiple_of=256,
    block_ffn_dim_multiplier=1.0,
)
def _lfm2(fields: Fields) -> tuple[LayerSpec, ...]:
    """Gated short convolutions and attention with normed queries and keys; without ``full_attn_idxs``, attention only.

    The feed-forward's width is the file's, less a third and rounded up, unless the file says that it is meant as it is.
    """
    full, conv = _lfm2_mixers(fields)
    chosen = numbered(fields, "full_attn_idxs")
    mlp = always(MlpSpec(_lfm2_hidden(fields)))
    return _mixed(fields, full, conv, mlp, lambda layer: chosen is None or layer in chosen, (FULL, "conv"))


def _lfm2_mixers(fields: Fields) -> tuple[MixerSpec, MixerSpec]:
    refused(fields, "conv_bias")
    conv = spec("shortconv", channels=fields.integer("hidden_size"), taps=fields.integer("conv_L_cache"))
    return attention(fields, bias=False, qk_norm=True), conv


@family(
    "lfm2_moe",
    num_key_value_heads=8,
    tie_word_embeddings=True,
    num_dense_layers=2,
    num_experts_per_tok=4,
    use_expert_bias=True,
    **LFM2,
)
def _lfm2_moe(fields: Fields) -> tuple[LayerSpec, ...]:
    """As LFM2, with experts after the first layers; ``layer_types`` says which layers attend."""
    full, conv = _lfm2_mixers(fields)
    if fields.optional("layer_types") is None:
        raise fields.error("layer_types", None, "is required", 'give "full_attention" or "conv" for each layer')
    biases = "router" if fields.flag("use_expert_bias") else ""
    experts = routed(fields, fields.pick("num_experts", "num_local_experts"), "moe_intermediate_size", biases=biases)
    plain = MlpSpec(fields.integer("intermediate_size"))
    mlp = after_dense(plain, experts, fields.integer("num_dense_layers", low=0))
    return _mixed(fields, full, conv, mlp, lambda layer: True, (FULL, "conv"))


def _lfm2_hidden(fields: Fields) -> int:
    hidden = fields.integer("block_ff_dim" if "block_ff_dim" in fields.values else "intermediate_size")
    if not fields.flag("block_auto_adjust_ff_dim"):
        return hidden
    factor, step = fields.raw("block_ffn_dim_multiplier"), fields.integer("block_multiple_of")
    if factor is None:
        factor = 1
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < LARGEST_DEPTH:
        raise fields.error("block_ffn_dim_multiplier", factor, f"must be a number above 0 and below {LARGEST_DEPTH}")
    return step * -(-int(factor * (2 * hidden // 3)) // step)


#: Parts of Nemotron-H's layers, by the letters of its pattern and by the names of its list.
NEMOTRON_H = {"M": "linear_attention", "*": FULL, "-": "mlp", "E": "moe"}
OLDER = {"mamba": "M", "attention": "*"}


@family(
    "nemotron_h",
    num_key_value_heads=8,
    head_dim=128,
    attention_bias=False,
    mlp_bias=False,
    use_bias=False,
    ssm_state_size=128,
    mamba_num_heads=128,
    mamba_head_dim=64,
    n_groups=8,
    conv_kernel=4,
    chunk_size=128,
    n_routed_experts=8,
    n_shared_experts=1,
    num_experts_per_tok=2,
    moe_intermediate_size=7688,
    moe_shared_expert_intermediate_size=7688,
    moe_latent_size=None,
    hybrid_override_pattern=None,
    num_hidden_layers=None,
)
def _nemotron_h(fields: Fields) -> tuple[LayerSpec, ...]:
    """A mixer or a feed-forward in each layer of the file: a feed-forward after a mixer makes one layer with it here.

    Both have a norm and a residual of their own, so that this is the same model. Router biases are counted as those of
    DeepSeek-V3 are; experts have two matrices.
    """
    refused(fields, "attention_bias", "mlp_bias", "use_bias")
    mixed = {"M": mamba2(fields), "*": attention(fields, bias=False)}
    fed = {"-": MlpSpec(fields.integer("intermediate_size"), gated=False)}
    parts = _nemotron_parts(fields)
    if "E" in parts:
        fed["E"] = _nemotron_experts(fields)
    layers: list[LayerSpec] = []
    for place, part in enumerate(parts):
        if part in mixed:
            layers.append(LayerSpec(mixed[part], None, 1))
        elif not place or parts[place - 1] in fed:
            rule = "is a feed-forward without a mixer before it, which is not modelled"
            raise fields.error(f"layer {place}", NEMOTRON_H[part], rule)
        else:
            layers[-1] = LayerSpec(layers[-1].mixer, fed[part])
    return tuple(layers)


def _nemotron_parts(fields: Fields) -> str:
    """The pattern: a letter for each layer of the file."""
    field = fields.pick("hybrid_override_pattern", *TYPES)
    value = fields.optional(field)
    names = OLDER | {name: letter for letter, name in NEMOTRON_H.items()}
    if isinstance(value, list) and all(isinstance(name, str) and name in names for name in value):
        value = "".join(names[name] for name in value)
    rule = f"must be a pattern of {' '.join(NEMOTRON_H)} or a list of {', '.join(NEMOTRON_H.values())}"
    if not isinstance(value, str) or not value or not set(value) <= set(NEMOTRON_H) or len(value) > LARGEST_DEPTH:
        raise fields.error(field, value, rule)
    return value


def _nemotron_experts(fields: Fields) -> MlpSpec:
    """Whatever ``n_shared_experts`` says, one shared network, as in transformers."""
    if fields.raw("moe_latent_size") is not None:
        raise fields.error("moe_latent_size", fields.raw("moe_latent_size"), "must be null: latent experts are unknown")
    shared = fields.integer("moe_shared_expert_intermediate_size")
    experts = routed(fields, "n_routed_experts", "moe_intermediate_size", 1, "router")
    return replace(experts, shared_hidden=shared, gated=False)
