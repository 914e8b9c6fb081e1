"""The JSON file of a config and its fields, read with a check each."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from costmodel.errors import InputError

LARGEST_SIZE = 10**9  # no dimension of a real model comes near
LARGEST_DEPTH = 10_000  # layers
_LARGEST_FILE = 16 * 2**20  # bytes; real configs have a few thousand
# every field that a family reads, so that a key of another meaning is not taken for a misspelling
FIELDS = frozenset(
    """
    model_type text_config hidden_size vocab_size num_hidden_layers intermediate_size
    num_attention_heads num_key_value_heads head_dim max_position_embeddings tie_word_embeddings dtype
    torch_dtype attention_bias mlp_bias sliding_window use_sliding_window max_window_layers layer_types
    sliding_window_pattern _sliding_window_pattern num_local_experts num_experts num_experts_per_tok
    experts_per_token moe_intermediate_size decoder_sparse_step mlp_only_layers n_routed_experts
    n_shared_experts first_k_dense_replace moe_layer_freq q_lora_rank kv_lora_rank qk_nope_head_dim
    qk_rope_head_dim v_head_dim qk_head_dim linear_num_value_heads linear_num_key_heads linear_key_head_dim
    linear_value_head_dim linear_conv_kernel_dim shared_expert_intermediate_size full_attention_interval
    linear_num_heads linear_head_dim linear_attn_config mamba_d_state mamba_d_conv mamba_expand mamba_dt_rank
    mamba_n_heads mamba_d_head mamba_n_groups mamba_chunk_size attn_layer_indices attn_layer_period
    attn_layer_offset expert_layer_period expert_layer_offset shared_intermediate_size block_size
    layers_block_type num_shared_experts conv_bias conv_L_cache full_attn_idxs block_ff_dim
    block_auto_adjust_ff_dim block_multiple_of block_ffn_dim_multiplier hybrid_override_pattern use_bias
    ssm_state_size mamba_num_heads mamba_head_dim n_groups conv_kernel chunk_size moe_latent_size
    moe_shared_expert_intermediate_size index_topk index_head_dim index_n_heads mlp_layer_types mamba_d_ssm
    n_mamba_heads mamba_ngroups num_mem_blocks use_shared_attention_adapter adapter_rank add_bias_linear
    cross_attention_layers vision_config image_size patch_size max_num_tiles
    mamba_proj_bias projectors_bias state_size expand time_step_rank num_heads num_dense_layers use_expert_bias
    """.split()  # noqa: SIM905 - a list would take a line each
)


class _Plain(str):
    """Text that an error shows without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


_THE_FILE = _Plain("this file")


def load(path: str | os.PathLike[str], shown: str) -> dict[str, object]:
    """The JSON object in a file."""
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
        raise InputError(shown, as_json(values), "the top level must be a JSON object", "wrap the fields in { }")
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
        return f"its directory {as_json(str(path.parent))} cannot be listed"
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {as_json(os.path.join(path.parent, close[0]))}?"
    configs = [name for name in names if name.endswith(".json")][:5]
    found = f"found {', '.join(map(as_json, configs))}" if configs else "found no .json files"
    return f"in its directory {found}"


def as_json(value: object) -> _Plain:
    """A value as its JSON text, short enough for one line and safe to print."""
    if isinstance(value, dict | list):
        kind = "an object" if isinstance(value, dict) else "a list"
        return _Plain(f"{kind} of {len(value)} items")
    text = json.dumps(value)
    return _Plain(text if len(text) <= 60 else text[:57] + "...")


@dataclass(frozen=True)
class Fields:
    """The fields of one JSON object, read with a check each; ``where`` begins every message."""

    where: str
    values: Mapping[str, object]
    defaults: Mapping[str, object]

    def error(self, field: str, value: object, rule: str, remedy: str | None = None) -> InputError:
        return InputError(f"{self.where}: {field}", as_json(value), rule, remedy)

    def pick(self, *names: str) -> str:
        """The first of several names for one field that is present, or else that has a default."""
        present = [name for name in names if self.values.get(name) is not None]
        return next(iter([*present, *(name for name in names if name in self.defaults)]), names[0])

    def raw(self, field: str) -> object:
        if field in self.values:
            return self.values[field]
        required = field not in self.defaults
        unknown = [key for key in self.values if key not in FIELDS]
        close = difflib.get_close_matches(field, unknown, n=1, cutoff=0.8 if required else 0.93)
        if close:
            remedy = f"found {as_json(close[0])}: rename it to {as_json(field)}"
        elif required:
            remedy = f"add {as_json(field)}"
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
        return Fields(self.where, self.values, {field: None, **self.defaults}).raw(field)

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


def suggest(value: object, choices: Sequence[str]) -> str | None:
    """The choice that was probably meant."""
    text = value if isinstance(value, str) else ""
    longer = [name for name in choices if text and name.startswith(text)]
    close = longer or difflib.get_close_matches(text, choices, n=1, cutoff=0.7)
    return f"did you mean {as_json(close[0])}?" if close else None
