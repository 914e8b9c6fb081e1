"""Decoders whose layers all have attention: one small function per family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from costmodel.huggingface.family import (
    FULL,
    after_dense,
    always,
    attention,
    dense,
    every,
    family,
    latent_attention,
    numbered,
    refused,
    routed,
    sparse_steps,
    spec,
    stack,
    stated_mlps,
)
from costmodel.huggingface.fields import Fields
from costmodel.model import LayerSpec, MixerSpec, MlpSpec


@family("llama", attention_bias=False, mlp_bias=False)
def _llama(fields: Fields) -> tuple[LayerSpec, ...]:
    bias = fields.flag("attention_bias")
    mixer = attention(fields, bias=bias, out_bias=bias)
    return stack(fields, mixer, dense(fields, bias=fields.flag("mlp_bias")))


@family("mistral", num_key_value_heads=8, sliding_window=4096)
@family("phi3", sliding_window=None)
def _mistral(fields: Fields) -> tuple[LayerSpec, ...]:
    slides = fields.raw("sliding_window") is not None
    return stack(fields, attention(fields, bias=False), dense(fields), lambda layer: slides)


@family("mixtral", num_key_value_heads=8, sliding_window=None, num_experts_per_tok=2)
def _mixtral(fields: Fields) -> tuple[LayerSpec, ...]:
    slides = fields.raw("sliding_window") is not None
    experts = routed(fields, fields.pick("num_local_experts", "num_experts"), "intermediate_size")
    return stack(fields, attention(fields, bias=False), always(experts), lambda layer: slides)


@family("mllama_text_model", num_key_value_heads=8, cross_attention_layers=None, vision_config=None)
def _mllama(fields: Fields) -> tuple[LayerSpec, ...]:
    """Llama of which some layers attend to an image in place of the text.

    The gates of these layers, a number each, and the 8 further rows of the embedding are left out.
    """
    own, chosen = attention(fields, bias=False), numbered(fields, "cross_attention_layers")
    heads = {key: own.params[key] for key in ("heads", "kv_heads", "head_dim")}
    tokens, width = _image_tokens(fields), fields.integer("hidden_size")
    cross = spec("cross-attention", **heads, memory=tokens, memory_width=width, qk_norm=True)
    layers = stack(fields, own, dense(fields), kinds=(FULL,))
    crossed = range(3, len(layers), 5) if chosen is None else chosen
    return tuple(replace(layer, mixer=cross) if place in crossed else layer for place, layer in enumerate(layers))


def _image_tokens(fields: Fields) -> int:
    """Tokens of one image: of each of its tiles, the patches and one for the whole tile."""
    vision = fields.raw("vision_config")
    where = fields.where.replace(": text_config", "")
    if vision is not None and not isinstance(vision, dict):
        raise Fields(where, {}, {}).error("vision_config", vision, "must be an object")
    image = Fields(f"{where}: vision_config", vision or {}, {"image_size": 448, "patch_size": 14, "max_num_tiles": 4})
    side = image.integer("image_size") // image.integer("patch_size")
    return image.integer("max_num_tiles") * (side * side + 1)


def _upper_layers_slide(fields: Fields) -> Callable[[int], bool]:
    """Qwen's rule: with ``use_sliding_window``, the layers from ``max_window_layers`` on have a window."""
    if not fields.flag("use_sliding_window"):
        return lambda layer: False
    first = fields.integer("max_window_layers", low=0)
    return lambda layer: layer >= first


@family("qwen2", use_sliding_window=False, max_window_layers=28, sliding_window=4096)
def _qwen2(fields: Fields) -> tuple[LayerSpec, ...]:
    return stack(fields, attention(fields, bias=True), dense(fields), _upper_layers_slide(fields))


@family(
    "qwen3",
    attention_bias=False,
    head_dim=128,
    use_sliding_window=False,
    max_window_layers=28,
    sliding_window=4096,
)
def _qwen3(fields: Fields) -> tuple[LayerSpec, ...]:
    bias = fields.flag("attention_bias")
    mixer = attention(fields, bias=bias, out_bias=bias, qk_norm=True)
    return stack(fields, mixer, dense(fields), _upper_layers_slide(fields))


@family(
    "qwen3_moe",
    attention_bias=False,
    num_key_value_heads=4,
    use_sliding_window=False,
    sliding_window=4096,
    decoder_sparse_step=1,
    mlp_only_layers=None,
)
def _qwen3_moe(fields: Fields) -> tuple[LayerSpec, ...]:
    bias, slides = fields.flag("attention_bias"), fields.flag("use_sliding_window")
    mixer = attention(fields, bias=bias, out_bias=bias, qk_norm=True)
    experts = routed(fields, fields.pick("num_experts", "num_local_experts"), "moe_intermediate_size")
    return stack(fields, mixer, sparse_steps(fields, experts), lambda layer: slides)


@family(
    "gemma2",
    attention_bias=False,
    num_key_value_heads=4,
    head_dim=256,
    sliding_window=4096,
    tie_word_embeddings=True,
)
def _gemma2(fields: Fields) -> tuple[LayerSpec, ...]:
    bias = fields.flag("attention_bias")
    return stack(fields, attention(fields, bias=bias, out_bias=bias), dense(fields), every(2), norms=4)


@family(
    "gemma3_text",  # Google's own files leave out whatever equals these
    attention_bias=False,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=256,
    vocab_size=262_208,
    max_position_embeddings=131_072,
    sliding_window=4096,
    tie_word_embeddings=True,
)
def _gemma3(fields: Fields) -> tuple[LayerSpec, ...]:
    bias = fields.flag("attention_bias")
    mixer = attention(fields, bias=bias, out_bias=bias, qk_norm=True)
    pattern = fields.optional_integer(fields.pick("sliding_window_pattern", "_sliding_window_pattern")) or 6
    return stack(fields, mixer, dense(fields), every(pattern), norms=4)


@family("gpt_oss", attention_bias=True, num_key_value_heads=8, head_dim=64, sliding_window=128)
def _gpt_oss(fields: Fields) -> tuple[LayerSpec, ...]:
    bias = fields.flag("attention_bias")
    mixer = attention(fields, bias=bias, out_bias=bias, sinks=True)
    count = fields.pick("num_local_experts", "num_experts")
    experts = routed(fields, count, "intermediate_size", biases="all")
    return stack(fields, mixer, always(experts), every(2))


@family("deepseek_v2", attention_bias=False, mlp_bias=False, first_k_dense_replace=0, moe_layer_freq=1)
def _deepseek_v2(fields: Fields) -> tuple[LayerSpec, ...]:
    refused(fields, "mlp_bias")
    return _deepseek(fields, biases="")


@family("deepseek_v3", attention_bias=False, first_k_dense_replace=3, moe_layer_freq=1)
def _deepseek_v3(fields: Fields) -> tuple[LayerSpec, ...]:
    return _deepseek(fields, biases="router")  # e_score_correction_bias, arXiv:2412.19437 equation 16


@family(
    "deepseek_v32",
    attention_bias=False,
    first_k_dense_replace=3,
    moe_layer_freq=1,
    index_topk=2048,
    index_head_dim=128,
    index_n_heads=64,
)
def _deepseek_v32(fields: Fields) -> tuple[LayerSpec, ...]:
    """DeepSeek-V3 with sparse attention (DSA): the tokens that a query sees are chosen by an index."""
    latent = latent_attention(fields)
    if latent.params.get("bias") or not latent.params["q_rank"]:
        field, value = ("attention_bias", True) if latent.params.get("bias") else ("q_lora_rank", None)
        raise fields.error(field, value, "is not so in any model with DSA, whose index reads the query latent")
    turning, whole = latent.params["rope_dim"], fields.integer("index_head_dim")
    if whole <= turning:
        raise fields.error("index_head_dim", whole, f"must be above qk_rope_head_dim ({turning}), which is part of it")
    index = {"index_heads": fields.integer("index_n_heads"), "index_dim": whole - turning}
    mixer = MixerSpec("dsa", {**latent.params, **index, "chosen": fields.integer("index_topk")})
    return _deepseek(fields, "router", mixer, (FULL, "indexed_attention"))


def _deepseek(
    fields: Fields, biases: str, mixer: MixerSpec | None = None, kinds: tuple[str, ...] = (FULL,)
) -> tuple[LayerSpec, ...]:
    """Experts in layers that the file names, or else from ``first_k_dense_replace`` on, in every ``moe_layer_freq``-th.

    ``mixer`` is latent attention unless given; ``kinds`` are what the file may call it.
    """
    mixer = mixer or latent_attention(fields)
    plain = MlpSpec(fields.integer("intermediate_size"))
    count = fields.pick("n_routed_experts", "num_experts", "num_local_experts")
    if fields.optional(count) is None:
        return stack(fields, mixer, always(plain), kinds=kinds)
    shared = fields.optional_integer("n_shared_experts", low=0) or 0
    experts = routed(fields, count, "moe_intermediate_size", shared, biases)
    first, step = fields.integer("first_k_dense_replace", low=0), fields.integer("moe_layer_freq")
    mlps = stated_mlps(fields, plain, experts) or after_dense(plain, experts, first, step)
    return stack(fields, mixer, mlps, kinds=kinds)
