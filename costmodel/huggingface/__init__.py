"""Read a Hugging Face ``config.json`` into a ``Model``.

One small function per model family, registered with ``@family``: in ``decoders`` those whose layers all have attention,
in ``recurrent`` those where none has, in ``hybrids`` the others.
Every default below is the one of the family's configuration class in transformers 5.23
(``transformers/models/<family>/configuration_<family>.py``). Only what decides cost is read: rotary
parameters, activation functions, soft-capping and quantisation are not, so the weights count at ``dtype``.
"""

from __future__ import annotations

import os
from pathlib import Path

from costmodel.huggingface import decoders, hybrids, recurrent
from costmodel.huggingface.family import FAMILIES
from costmodel.huggingface.fields import LARGEST_DEPTH, LARGEST_SIZE, Fields, load, suggest
from costmodel.model import Model

__all__ = ["LARGEST_DEPTH", "LARGEST_SIZE", "decoders", "hybrids", "read_config", "recurrent", "supported_model_types"]

_DTYPES = ("bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")


def read_config(path: str | os.PathLike[str]) -> Model:
    """The model that a Hugging Face ``config.json`` describes.

    Decoder-only families, by ``model_type``: see ``supported_model_types``. Of a multimodal
    config the language model (``text_config``) is taken; its vision tower is not part of the ``Model``;
    where layers attend to an image (Llama 3.2 Vision), it is one of as many tiles as the model takes.
    ``layer_types``, where present, says which layers have a sliding window; otherwise the family's rule does.
    DeepSeek's multi-token-prediction layers are left out, as transformers does. GPT-OSS attention sinks are
    counted as parameters and otherwise ignored. Without a ``dtype`` the weights are taken as bfloat16, in
    which these families are published.

    Raises ``InputError``, and no other exception, for any path or content that is not such a config; the
    message reads ``path: field: value is not valid: rule; remedy``.

    >>> import json, tempfile
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
    fields = language_fields(shown, load(path, shown))
    family = FAMILIES[_model_type(fields)]
    fields = Fields(fields.where, fields.values, family.defaults)
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
    return tuple(sorted(FAMILIES))


def language_fields(shown: str, outer: dict[str, object]) -> Fields:
    """The fields of the language model: ``text_config`` where there is one."""
    whole = Fields(shown, outer, {})
    if outer.get("text_config") is None or outer.get("model_type") in supported_model_types():
        return whole
    inner = outer["text_config"]
    if not isinstance(inner, dict):
        raise whole.error("text_config", inner, "must be an object, the config of the language model")
    inherited = ("dtype", "torch_dtype", "tie_word_embeddings", "vision_config")
    values = {key: outer[key] for key in inherited if key in outer}
    if outer.get("model_type") == "gemma3":
        values["model_type"] = "gemma3_text"
    return Fields(f"{shown}: text_config", values | inner, {})


def _model_type(fields: Fields) -> str:
    value = fields.raw("model_type")
    if isinstance(value, str) and value in FAMILIES:
        return value
    rule = f"must be one of {', '.join(supported_model_types())}"
    raise fields.error("model_type", value, rule, suggest(value, supported_model_types()))


def _dtype(fields: Fields) -> str:
    field = fields.pick("dtype", "torch_dtype")
    value = fields.values.get(field)
    if value is None or value == "auto":
        return "bfloat16"
    name = value.removeprefix("torch.") if isinstance(value, str) else None
    if name in _DTYPES:
        return name
    raise fields.error(field, value, f"must be one of {', '.join(_DTYPES)}", suggest(name, _DTYPES))


def _model_name(path: Path) -> str:
    resolved = path.absolute()
    return (resolved.parent.name if resolved.stem == "config" else resolved.stem) or "model"
