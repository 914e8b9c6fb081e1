"""Read a Hugging Face ``config.json`` into a ``Model``.

One small function per model family, registered with ``@_family``; to add one, write that function here.
Every default below is the one of the family's configuration class in transformers 5.23
(``transformers/models/<family>/configuration_<family>.py``). Only what decides cost is read: rotary
parameters, activation functions, soft-capping and quantisation are not, so the weights count at ``dtype``.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from costmodel.errors import InputError
from costmodel.model import LayerSpec, MixerSpec, MlpSpec, Model

LARGEST_SIZE = 10**9  # no dimension of a real model comes near
LARGEST_DEPTH = 10_000  # layers
_LARGEST_FILE = 16 * 2**20  # bytes; real configs have a few thousand
_FULL, _SLIDING = "full_attention", "sliding_attention"
_DTYPES = ("bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")
# every field read below, so that a key of another meaning is not taken for a misspelling
_FIELDS = frozenset(
    """
    model_type text_config hidden_size vocab_size num_hidden_layers intermediate_size
    num_attention_heads num_key_value_heads head_dim max_position_embeddings tie_word_embeddings dtype
    torch_dtype attention_bias mlp_bias sliding_window use_sliding_window max_window_layers layer_types
    sliding_window_pattern _sliding_window_pattern num_local_experts num_experts num_experts_per_tok
    experts_per_token moe_intermediate_size decoder_sparse_step mlp_only_layers n_routed_experts
    n_shared_experts first_k_dense_replace moe_layer_freq q_lora_rank kv_lora_rank qk_nope_head_dim
    qk_rope_head_dim v_head_dim qk_head_dim
    """.split()  # noqa: SIM905 - a list would take a line each
)


def read_config(path: str | os.PathLike[str]) -> Model:
    """The model that a Hugging Face ``config.json`` describes.

    Decoder-only softmax-attention families, by ``model_type``: see ``supported_model_types``. Of a multimodal
    config the language model (``text_config``) is taken; its vision tower is not part of the ``Model``.
    ``layer_types``, where present, says which layers have a sliding window; otherwise the family's rule does.
    DeepSeek's multi-token-prediction layers are left out, as transformers does. GPT-OSS attention sinks are
    counted as parameters and otherwise ignored. Without a ``dtype`` the weights are taken as bfloat16, in
    which these families are published.

    Raises ``InputError``, and no other exception, for any path or content that is not such a config; the
    message reads ``path: field: value is not valid: rule; remedy``.

    >>> import tempfile
    >>> config = dict(model_type="llama", hidden_size=4096, intermediate_size=14336, vocab_size=128256,
    ...               num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "my-llama.json")
    ...     _ = path.write_text(json.dumps(config))
    ...     model = read_config(path)
    >>> model.name, model.parameters()
    ('my-llama', 8030261248)
    """
    shown = os.fspath(path).encode("utf-8", "replace").decode()
    fields = _language_fields(shown, _load(path, shown))
    family = _FAMILIES[_model_type(fields)]
    fields = _Fields(fields.where, fields.values, family.defaults)
    layers = family.layers(fields)
    return Model(
        name=_model_name(Path(shown)),
        width=fields.integer("hidden_size"),
        vocabulary=fields.integer("vocab_size"),
        layers=layers,
        tied_embeddings=fields.flag("tie_word_embeddings"),
        max_positions=fields.optional_integer("max_position_embeddings"),
        dtype=_dtype(fields),
    )


def supported_model_types() -> tuple[str, ...]:
    """The values of ``model_type`` that ``read_config`` understands, sorted.

    >>> "llama" in supported_model_types()
    True
    """
    return tuple(sorted(_FAMILIES))


# --- the file ---


class _Plain(str):
    """Text that an error shows without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


_THE_FILE = _Plain("this file")


def _load(path: str | os.PathLike[str], shown: str) -> dict[str, object]:
    text = _read_text(path, shown)
    if not text.strip():
        raise InputError(shown, _THE_FILE, "it is empty", "download the model's config.json again")
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        rule = f"it is not JSON: line {error.lineno}, column {error.colno}: {error.msg}"
        raise InputError(shown, _THE_FILE, rule, "give the config.json of a model") from None
    except (ValueError, RecursionError):
        rule = "its JSON has a number or a nesting beyond what can be read"
        raise InputError(shown, _THE_FILE, rule, "give the config.json of a model") from None
    if not isinstance(values, dict):
        raise InputError(shown, _json(values), "the top level must be a JSON object", "wrap the fields in { }")
    return values


def _read_text(path: str | os.PathLike[str], shown: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except FileNotFoundError:
        raise InputError(shown, _THE_FILE, "it does not exist", _near_file(Path(path))) from None
    except IsADirectoryError:
        inside = "give the config.json in it" if Path(path, "config.json").is_file() else "give a config.json"
        raise InputError(shown, _Plain("this path"), "it is a directory", inside) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(shown, _THE_FILE, f"it cannot be read: {reason}") from None
    if len(data) > _LARGEST_FILE:
        rule = f"it is larger than {_LARGEST_FILE >> 20} MiB, so not a config.json"
        raise InputError(shown, _THE_FILE, rule, "give the config.json, not the weights")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        rule = f"it is not UTF-8 text (byte {error.start})"
        raise InputError(shown, _THE_FILE, rule, "give the config.json of a model") from None


def _near_file(path: Path) -> str:
    try:
        names = sorted(os.listdir(path.parent))
    except OSError:
        return f"its directory {_json(str(path.parent))} cannot be listed"
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {_json(os.path.join(path.parent, close[0]))}?"
    configs = [name for name in names if name.endswith(".json")][:5]
    found = f"found {', '.join(map(_json, configs))}" if configs else "found no .json files"
    return f"in its directory {found}"


def _model_name(path: Path) -> str:
    resolved = path.absolute()
    return (resolved.parent.name if resolved.stem == "config" else resolved.stem) or "model"


# --- its fields ---


def _json(value: object) -> _Plain:
    """A value as its JSON text, short enough for one line and safe to print."""
    if isinstance(value, dict | list):
        kind = "an object" if isinstance(value, dict) else "a list"
        return _Plain(f"{kind} of {len(value)} items")
    text = json.dumps(value)
    return _Plain(text if len(text) <= 60 else text[:57] + "...")


@dataclass(frozen=True)
class _Fields:
    """The fields of one JSON object, read with a check each; ``where`` begins every message."""

    where: str
    values: Mapping[str, object]
    defaults: Mapping[str, object]

    def error(self, field: str, value: object, rule: str, remedy: str | None = None) -> InputError:
        return InputError(f"{self.where}: {field}", _json(value), rule, remedy)

    def pick(self, *names: str) -> str:
        """The first of several names for one field that is present."""
        return next((name for name in names if self.values.get(name) is not None), names[0])

    def raw(self, field: str) -> object:
        if field in self.values:
            return self.values[field]
        required = field not in self.defaults
        unknown = [key for key in self.values if key not in _FIELDS]
        close = difflib.get_close_matches(field, unknown, n=1, cutoff=0.8 if required else 0.93)
        if close:
            remedy = f"found {_json(close[0])}: rename it to {_json(field)}"
        elif required:
            remedy = f"add {_json(field)}"
        else:
            return self.defaults[field]
        rule = "is a required field" if required else "is missing, but a similar name is there"
        raise InputError(f"{self.where}: {field}", _Plain("(missing)"), rule, remedy)

    def integer(self, field: str, low: int = 1, high: int = LARGEST_SIZE) -> int:
        value = self.raw(field)
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        meant = _as_integer(value) if isinstance(value, str | float) else None
        remedy = f"write {meant}" if meant is not None and low <= meant <= high else None
        raise self.error(field, value, f"must be a whole number from {low} to {high}", remedy)

    def optional_integer(self, field: str, low: int = 1) -> int | None:
        return None if self.optional(field) is None else self.integer(field, low)

    def optional(self, field: str) -> object:
        """The value, or else the default; None when the field is null, or absent without a default."""
        return _Fields(self.where, self.values, {field: None, **self.defaults}).raw(field)

    def flag(self, field: str) -> bool:
        value = self.raw(field)
        if not isinstance(value, bool):
            raise self.error(field, value, "must be true or false")
        return value


def _as_integer(value: str | float) -> int | None:
    try:
        return int(value) if float(value).is_integer() else None
    except (ValueError, OverflowError):
        return None


def _language_fields(shown: str, outer: dict[str, object]) -> _Fields:
    """The fields of the language model: ``text_config`` where there is one."""
    whole = _Fields(shown, outer, {})
    if outer.get("text_config") is None or outer.get("model_type") in supported_model_types():
        return whole
    inner = outer["text_config"]
    if not isinstance(inner, dict):
        raise whole.error("text_config", inner, "must be an object, the config of the language model")
    inherited = ("dtype", "torch_dtype", "tie_word_embeddings")
    values = {key: outer[key] for key in inherited if key in outer}
    if outer.get("model_type") == "gemma3":
        values["model_type"] = "gemma3_text"
    return _Fields(f"{shown}: text_config", values | inner, {})


def _model_type(fields: _Fields) -> str:
    value = fields.raw("model_type")
    if isinstance(value, str) and value in _FAMILIES:
        return value
    rule = f"must be one of {', '.join(supported_model_types())}"
    raise fields.error("model_type", value, rule, _suggest(value, supported_model_types()))


def _suggest(value: object, choices: Sequence[str]) -> str | None:
    text = value if isinstance(value, str) else ""
    longer = [name for name in choices if text and name.startswith(text)]
    close = longer or difflib.get_close_matches(text, choices, n=1, cutoff=0.7)
    return f"did you mean {_json(close[0])}?" if close else None


def _dtype(fields: _Fields) -> str:
    field = fields.pick("dtype", "torch_dtype")
    value = fields.values.get(field)
    if value is None or value == "auto":
        return "bfloat16"
    name = value.removeprefix("torch.") if isinstance(value, str) else None
    if name in _DTYPES:
        return name
    raise fields.error(field, value, f"must be one of {', '.join(_DTYPES)}", _suggest(name, _DTYPES))


# --- what families share ---


def _attention(fields: _Fields, *, bias: bool, out_bias: bool = False, **flags: bool) -> MixerSpec:
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


def _head_dim(fields: _Fields, heads: int) -> int:
    stated = fields.optional_integer("head_dim")
    if stated is not None:
        return stated
    width = fields.integer("hidden_size")
    if width % heads:
        rule = f"must be a multiple of num_attention_heads ({heads}) when head_dim is not given"
        raise fields.error("hidden_size", width, rule, 'add "head_dim"')
    return width // heads


def _stack(
    fields: _Fields,
    mixer: MixerSpec,
    mlp: Callable[[int], MlpSpec],
    slides: Callable[[int], bool] = lambda layer: False,
    norms: int = 2,
) -> tuple[LayerSpec, ...]:
    """All layers; ``mlp`` is the feed-forward of a layer, ``slides`` whether its attention has a window."""
    depth = fields.integer("num_hidden_layers", high=LARGEST_DEPTH)
    types = _layer_types(fields, depth)
    sliding = [slides(layer) for layer in range(depth)] if types is None else [t == _SLIDING for t in types]
    windowed = mixer.replace(window=_window(fields)) if any(sliding) else mixer
    return tuple(LayerSpec(windowed if slide else mixer, mlp(layer), norms) for layer, slide in enumerate(sliding))


def _window(fields: _Fields) -> int:
    if fields.optional("sliding_window") is None:
        rule = f"is required because some layers are {_SLIDING}"
        raise fields.error("sliding_window", None, rule, "give the number of tokens a query sees")
    return fields.integer("sliding_window")


def _layer_types(fields: _Fields, depth: int) -> list[object] | None:
    types = fields.optional("layer_types")
    if types is None:
        return None
    if not isinstance(types, list):
        raise fields.error("layer_types", types, f"must be a list of {depth} names, one per layer")
    if len(types) != depth:
        rule = f"must have one entry for each of the {depth} layers (num_hidden_layers)"
        raise fields.error("layer_types", types, rule)
    for layer, kind in enumerate(types):
        if kind not in (_FULL, _SLIDING):
            rule = f"must be {_FULL} or {_SLIDING}"
            raise fields.error(f"layer_types[{layer}]", kind, rule, _suggest(kind, (_FULL, _SLIDING)))
    return types


def _every(pattern: int) -> Callable[[int], bool]:
    """All layers slide but each ``pattern``-th."""
    return lambda layer: (layer + 1) % pattern != 0


def _always(spec: MlpSpec) -> Callable[[int], MlpSpec]:
    return lambda layer: spec


def _dense(fields: _Fields, bias: bool = False) -> Callable[[int], MlpSpec]:
    return _always(MlpSpec(fields.integer("intermediate_size"), bias=bias))


def _routed(fields: _Fields, count: str, hidden: str, shared: int = 0, biases: str = "") -> MlpSpec:
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


# --- one function per family ---


@dataclass(frozen=True)
class _Family:
    layers: Callable[[_Fields], tuple[LayerSpec, ...]]
    defaults: Mapping[str, object]


_FAMILIES: dict[str, _Family] = {}
_Layers = Callable[[_Fields], tuple[LayerSpec, ...]]


def _family(model_type: str, **defaults: object) -> Callable[[_Layers], _Layers]:
    """Register the reader of a ``model_type``; ``defaults`` are the fields that its files may omit."""
    if model_type in _FAMILIES:
        raise ValueError(f"model_type {model_type!r} is registered twice")

    def register(layers: _Layers) -> _Layers:
        _FAMILIES[model_type] = _Family(layers, {"tie_word_embeddings": False, **defaults})
        return layers

    return register


@_family("llama", attention_bias=False, mlp_bias=False)
def _llama(fields: _Fields) -> tuple[LayerSpec, ...]:
    bias = fields.flag("attention_bias")
    mixer = _attention(fields, bias=bias, out_bias=bias)
    return _stack(fields, mixer, _dense(fields, bias=fields.flag("mlp_bias")))


@_family("mistral", num_key_value_heads=8, sliding_window=4096)
@_family("phi3", sliding_window=None)
def _mistral(fields: _Fields) -> tuple[LayerSpec, ...]:
    slides = fields.raw("sliding_window") is not None
    return _stack(fields, _attention(fields, bias=False), _dense(fields), lambda layer: slides)


@_family("mixtral", num_key_value_heads=8, sliding_window=None, num_experts_per_tok=2)
def _mixtral(fields: _Fields) -> tuple[LayerSpec, ...]:
    slides = fields.raw("sliding_window") is not None
    experts = _routed(fields, fields.pick("num_local_experts", "num_experts"), "intermediate_size")
    return _stack(fields, _attention(fields, bias=False), _always(experts), lambda layer: slides)


def _upper_layers_slide(fields: _Fields) -> Callable[[int], bool]:
    """Qwen's rule: with ``use_sliding_window``, the layers from ``max_window_layers`` on have a window."""
    if not fields.flag("use_sliding_window"):
        return lambda layer: False
    first = fields.integer("max_window_layers", low=0)
    return lambda layer: layer >= first


@_family("qwen2", use_sliding_window=False, max_window_layers=28, sliding_window=4096)
def _qwen2(fields: _Fields) -> tuple[LayerSpec, ...]:
    return _stack(fields, _attention(fields, bias=True), _dense(fields), _upper_layers_slide(fields))


@_family(
    "qwen3",
    attention_bias=False,
    head_dim=128,
    use_sliding_window=False,
    max_window_layers=28,
    sliding_window=4096,
)
def _qwen3(fields: _Fields) -> tuple[LayerSpec, ...]:
    bias = fields.flag("attention_bias")
    mixer = _attention(fields, bias=bias, out_bias=bias, qk_norm=True)
    return _stack(fields, mixer, _dense(fields), _upper_layers_slide(fields))


@_family(
    "qwen3_moe",
    attention_bias=False,
    num_key_value_heads=4,
    use_sliding_window=False,
    sliding_window=4096,
    decoder_sparse_step=1,
    mlp_only_layers=None,
)
def _qwen3_moe(fields: _Fields) -> tuple[LayerSpec, ...]:
    bias, slides = fields.flag("attention_bias"), fields.flag("use_sliding_window")
    mixer = _attention(fields, bias=bias, out_bias=bias, qk_norm=True)
    experts = _routed(fields, fields.pick("num_experts", "num_local_experts"), "moe_intermediate_size")
    step, dense_layers = fields.integer("decoder_sparse_step"), _mlp_only_layers(fields)
    dense = MlpSpec(fields.integer("intermediate_size"))

    def mlp(layer: int) -> MlpSpec:
        return dense if layer in dense_layers or (layer + 1) % step else experts

    return _stack(fields, mixer, mlp, lambda layer: slides)


def _mlp_only_layers(fields: _Fields) -> frozenset[int]:
    value = fields.raw("mlp_only_layers")
    if value is None:
        return frozenset()
    if not isinstance(value, list) or not all(type(layer) is int for layer in value):
        raise fields.error("mlp_only_layers", value, "must be a list of layer numbers, counted from 0")
    return frozenset(value)


@_family(
    "gemma2",
    attention_bias=False,
    num_key_value_heads=4,
    head_dim=256,
    sliding_window=4096,
    tie_word_embeddings=True,
)
def _gemma2(fields: _Fields) -> tuple[LayerSpec, ...]:
    bias = fields.flag("attention_bias")
    return _stack(fields, _attention(fields, bias=bias, out_bias=bias), _dense(fields), _every(2), norms=4)


@_family(
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
def _gemma3(fields: _Fields) -> tuple[LayerSpec, ...]:
    bias = fields.flag("attention_bias")
    mixer = _attention(fields, bias=bias, out_bias=bias, qk_norm=True)
    pattern = fields.optional_integer(fields.pick("sliding_window_pattern", "_sliding_window_pattern")) or 6
    return _stack(fields, mixer, _dense(fields), _every(pattern), norms=4)


@_family("gpt_oss", attention_bias=True, num_key_value_heads=8, head_dim=64, sliding_window=128)
def _gpt_oss(fields: _Fields) -> tuple[LayerSpec, ...]:
    bias = fields.flag("attention_bias")
    mixer = _attention(fields, bias=bias, out_bias=bias, sinks=True)
    count = fields.pick("num_local_experts", "num_experts")
    experts = _routed(fields, count, "intermediate_size", biases="all")
    return _stack(fields, mixer, _always(experts), _every(2))


@_family("deepseek_v2", attention_bias=False, mlp_bias=False, first_k_dense_replace=0, moe_layer_freq=1)
def _deepseek_v2(fields: _Fields) -> tuple[LayerSpec, ...]:
    if fields.flag("mlp_bias"):
        raise fields.error("mlp_bias", True, "must be false: no DeepSeek model has biases there")
    return _deepseek(fields, biases="")


@_family("deepseek_v3", attention_bias=False, first_k_dense_replace=3, moe_layer_freq=1)
def _deepseek_v3(fields: _Fields) -> tuple[LayerSpec, ...]:
    return _deepseek(fields, biases="router")  # e_score_correction_bias, arXiv:2412.19437 equation 16


def _deepseek(fields: _Fields, biases: str) -> tuple[LayerSpec, ...]:
    """Latent attention; experts from layer ``first_k_dense_replace`` on, in every ``moe_layer_freq``-th."""
    dense = MlpSpec(fields.integer("intermediate_size"))
    count = fields.pick("n_routed_experts", "num_experts", "num_local_experts")
    if fields.optional(count) is None:
        return _stack(fields, _latent_attention(fields), _always(dense))
    shared = fields.optional_integer("n_shared_experts", low=0) or 0
    experts = _routed(fields, count, "moe_intermediate_size", shared, biases)
    first, step = fields.integer("first_k_dense_replace", low=0), fields.integer("moe_layer_freq")

    def mlp(layer: int) -> MlpSpec:
        return dense if layer < first or layer % step else experts

    return _stack(fields, _latent_attention(fields), mlp)


def _latent_attention(fields: _Fields) -> MixerSpec:
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
