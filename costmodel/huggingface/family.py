"""Families of models by ``model_type``, and what their readers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from costmodel.huggingface.fields import LARGEST_DEPTH, Fields, suggest
from costmodel.mixer import mixers
from costmodel.model import LayerSpec, MixerSpec, MlpSpec

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Family:
    """A reader of layers, and the fields that files of the family may omit."""

    layers: Callable[[Fields], tuple[LayerSpec, ...]]
    defaults: Mapping[str, object]


FAMILIES: dict[str, Family] = {}
Layers = Callable[[Fields], tuple[LayerSpec, ...]]


def family(model_type: str, **defaults: object) -> Callable[[Layers], Layers]:
    """Register the reader of a ``model_type``; ``defaults`` are the fields that its files may omit."""
    if model_type in FAMILIES:
        raise ValueError(f"model_type {model_type!r} is registered twice")

    def register(layers: Layers) -> Layers:
        FAMILIES[model_type] = Family(layers, {"tie_word_embeddings": False, **defaults})
        return layers

    return register


def attention(fields: Fields, *, bias: bool, out_bias: bool = False, **flags: bool) -> MixerSpec:
    """Softmax attention without a window; ``flags`` are further ones of ``MixerSpec``."""
    heads = fields.integer("num_attention_heads")
    kv_heads = fields.optional_integer("num_key_value_heads") or heads
    if heads % kv_heads:
        rule = f"must divide num_attention_heads ({heads})"
        remedy = None if "num_key_value_heads" in fields.values else "add the field; this is the family's default"
        raise fields.error("num_key_value_heads", kv_heads, rule, remedy)
    sizes = {"heads": heads, "kv_heads": kv_heads, "head_dim": _head_dim(fields, heads)}
    flags |= {"bias": bias, "out_bias": out_bias}
    return MixerSpec("attention", sizes | {name: True for name, on in flags.items() if on})


def spec(name: str, **sizes: int) -> MixerSpec:
    """A mixer with its usual sizes where none is given."""
    usual = {key: size.usual for key, size in mixers.get(name).sizes.items()}
    return MixerSpec(name, usual | sizes)


def _head_dim(fields: Fields, heads: int) -> int:
    stated = fields.optional_integer("head_dim")
    if stated is not None:
        return stated
    width = fields.integer("hidden_size")
    if width % heads:
        rule = f"must be a multiple of num_attention_heads ({heads}) when head_dim is not given"
        raise fields.error("hidden_size", width, rule, 'add "head_dim"')
    return width // heads


def stack(
    fields: Fields,
    mixer: MixerSpec,
    mlp: Callable[[int], MlpSpec],
    slides: Callable[[int], bool] = lambda layer: False,
    norms: int = 2,
    kinds: tuple[str, ...] = (FULL, SLIDING),
) -> tuple[LayerSpec, ...]:
    """All layers; ``mlp`` is the feed-forward of a layer, ``slides`` whether its attention has a window.

    ``kinds`` are what the file may call a layer's mixer.
    """
    depth = fields.integer("num_hidden_layers", high=LARGEST_DEPTH)
    types = layer_types(fields, depth, kinds)
    sliding = [slides(layer) for layer in range(depth)] if types is None else [t == SLIDING for t in types]
    windowed = mixer.replace(window=window(fields)) if any(sliding) else mixer
    return tuple(LayerSpec(windowed if slide else mixer, mlp(layer), norms) for layer, slide in enumerate(sliding))


def window(fields: Fields) -> int:
    """Tokens that a query of a sliding layer sees."""
    if fields.optional("sliding_window") is None:
        rule = f"is required because some layers are {SLIDING}"
        raise fields.error("sliding_window", None, rule, "give the number of tokens a query sees")
    return fields.integer("sliding_window")


def layer_types(
    fields: Fields, depth: int, kinds: tuple[str, ...] = (FULL, SLIDING), field: str = "layer_types"
) -> list[object] | None:
    """The kind of each layer, where the file states them."""
    types = fields.optional(field)
    if types is None:
        return None
    if not isinstance(types, list):
        raise fields.error(field, types, f"must be a list of {depth} names, one per layer")
    if len(types) != depth:
        rule = f"must have one entry for each of the {depth} layers (num_hidden_layers)"
        raise fields.error(field, types, rule)
    for layer, kind in enumerate(types):
        if kind not in kinds:
            rule = f"must be {' or '.join(kinds)}"
            raise fields.error(f"{field}[{layer}]", kind, rule, suggest(kind, kinds))
    return types


def every(pattern: int) -> Callable[[int], bool]:
    """All layers slide but each ``pattern``-th."""
    return lambda layer: (layer + 1) % pattern != 0


def always(spec: MlpSpec) -> Callable[[int], MlpSpec]:
    """The same feed-forward in every layer."""
    return lambda layer: spec


def sparse_steps(fields: Fields, experts: MlpSpec) -> Callable[[int], MlpSpec]:
    """Qwen's rule: experts in every ``decoder_sparse_step``-th layer that ``mlp_only_layers`` does not name."""
    step, dense_layers = fields.integer("decoder_sparse_step"), numbered(fields, "mlp_only_layers") or ()
    plain = MlpSpec(fields.integer("intermediate_size"))
    return lambda layer: plain if layer in dense_layers or (layer + 1) % step else experts


def stated_mlps(fields: Fields, plain: MlpSpec, experts: MlpSpec) -> Callable[[int], MlpSpec] | None:
    """The feed-forwards that the file's ``mlp_layer_types`` names, where it does."""
    depth = fields.integer("num_hidden_layers", high=LARGEST_DEPTH)
    kinds = layer_types(fields, depth, ("dense", "sparse"), "mlp_layer_types")
    return None if kinds is None else lambda layer: experts if kinds[layer] == "sparse" else plain


def after_dense(plain: MlpSpec, experts: MlpSpec, first: int, step: int = 1) -> Callable[[int], MlpSpec]:
    """DeepSeek's rule: experts from layer ``first`` on, in every ``step``-th."""
    return lambda layer: plain if layer < first or layer % step else experts


def numbered(fields: Fields, field: str) -> frozenset[int] | None:
    """The layers that a list of their numbers names, where the file has it."""
    value = fields.raw(field)
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(layer) is int for layer in value):
        raise fields.error(field, value, "must be a list of layer numbers, counted from 0")
    return frozenset(value)


def refused(fields: Fields, *flags: str) -> None:
    """Biases that no published model of a family has."""
    for flag in flags:
        if fields.flag(flag):
            raise fields.error(flag, True, "must be false: no model of the family has biases there")


def dense(fields: Fields, bias: bool = False) -> Callable[[int], MlpSpec]:
    """A dense feed-forward in every layer."""
    return always(MlpSpec(fields.integer("intermediate_size"), bias=bias))


def routed(fields: Fields, count: str, hidden: str, shared: int = 0, biases: str = "") -> MlpSpec:
    """A feed-forward with experts; ``count`` and ``hidden`` name the fields of their number and size.

    ``biases`` says what has them: "" nothing, "router" the routing scores, "all" the experts too.
    """
    experts = fields.integer(count)
    taken = fields.pick("num_experts_per_tok", "experts_per_token")
    active = fields.integer(taken)
    if active > experts:
        raise fields.error(taken, active, f"must be at most {count} ({experts})")
    size, bias, router_bias = fields.integer(hidden), biases == "all", biases != ""
    return MlpSpec(size, True, experts, active, shared, bias=bias, router_bias=router_bias)


def latent_attention(fields: Fields) -> MixerSpec:
    """DeepSeek's, by its usual fields."""
    fields.raw("q_lora_rank")  # required, but may be null
    sizes = {
        "heads": fields.integer("num_attention_heads"),
        "q_rank": fields.optional_integer("q_lora_rank") or 0,
        "kv_rank": fields.integer("kv_lora_rank"),
        "nope_dim": fields.integer("qk_nope_head_dim"),
        "rope_dim": fields.integer("qk_rope_head_dim"),
        "value_dim": fields.integer("v_head_dim"),
    }
    return MixerSpec("mla", sizes | ({"bias": True} if fields.flag("attention_bias") else {}))
