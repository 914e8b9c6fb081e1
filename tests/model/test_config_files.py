"""Files that are no config, and fields that do not fit: every refusal."""

import math
from pathlib import Path

import pytest

from costmodel.errors import InputError
from costmodel.huggingface import LARGEST_DEPTH, read_config
from tests.model.configs import EXAMPLES, Config, config, refusal

# --- refusals: paths and content ---


def test_a_missing_file_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"llama-3-8\.json: this file is not valid: it does not exist; did you mean"):
        read_config(EXAMPLES / "llama-3-8.json")


def test_a_missing_file_far_from_any_name_lists_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r'does not exist; in its directory found "config\.json"'):
        read_config(tmp_path / "zzz")
    with pytest.raises(InputError, match="cannot be listed"):
        read_config(tmp_path / "no" / "such.json")


def test_a_directory_points_into_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"it is a directory; give a config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"it is a directory; give the config\.json in it"):
        read_config(tmp_path)


def test_paths_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("{}")
    for path in (tmp_path / "file" / "config.json", tmp_path / ("x" * 300), "a\0b"):
        with pytest.raises(InputError, match="cannot be read"):
            read_config(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "this file is not valid: it is empty"),
        (b" \n", "it is empty"),
        (b"\xff\xfe{}", "it is not UTF-8 text (byte 0)"),
        (b'{"model_type": "llama",}', "it is not JSON: line 1, column 24"),
        (b"model_type: llama", "it is not JSON: line 1, column 1"),
        (b"[1, 2]", "a list of 2 items is not valid: the top level must be a JSON object"),
        (b"null", "null is not valid: the top level must be a JSON object"),
        (b"[" * 100_000, "its JSON has a number or a nesting beyond what can be read"),
        (b'{"a": ' + b"1" * 5000 + b"}", "its JSON has a number or a nesting beyond what can be read"),
        (b" " * (16 * 2**20 + 1), "it is larger than 16 MiB"),
    ],
)
def test_content_that_is_no_config(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


# --- refusals: fields ---


def test_unsupported_families_name_the_supported(tmp_path: Path) -> None:
    assert "did you mean" not in refusal(tmp_path, config("llama") | {"model_type": "t5"})
    message = refusal(tmp_path, config("llama") | {"model_type": "lama"})
    assert message.startswith(
        'model_type: "lama" is not valid: must be one of bamba, deepseek_v2, deepseek_v3, deepseek_v32, '
    )
    assert message.endswith('; did you mean "llama"?')
    assert 'did you mean "gemma3_text"?' in refusal(tmp_path, config("llama") | {"model_type": "gemma3"})
    assert refusal(tmp_path, config("llama") | {"model_type": None}).startswith("model_type: null is not valid")
    assert refusal(tmp_path, {}) == 'model_type: (missing) is not valid: is a required field; add "model_type"'


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_required_fields(tmp_path: Path, field: str) -> None:
    values = config("llama")
    value = values.pop(field)
    assert refusal(tmp_path, values) == f'{field}: (missing) is not valid: is a required field; add "{field}"'
    misspelt = field[:-1]
    remedy = f'found "{misspelt}": rename it to "{field}"'
    assert refusal(tmp_path, values | {misspelt: value}).endswith(remedy)


def test_a_misspelt_optional_field_is_not_passed_over(tmp_path: Path) -> None:
    values = config("llama")
    values["num_key_value_head"] = values.pop("num_key_value_heads")
    assert "num_key_value_heads: (missing) is not valid" in refusal(tmp_path, values)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (-8, "-8"),
        (10**9 + 1, "1000000001"),
        (10**40, str(10**40)),
        (8.5, "8.5"),
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        (True, "true"),
        (None, "null"),
        ("many", '"many"'),
        ([8], "a list of 1 items"),
        ({}, "an object of 0 items"),
    ],
)
@pytest.mark.parametrize(
    "field",
    [
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "vocab_size",
        "num_key_value_heads",
        "head_dim",
    ],
)
def test_sizes_must_be_whole_and_in_range(tmp_path: Path, field: str, value: object, shown: str) -> None:
    if value is None and field in ("num_key_value_heads", "head_dim"):
        return  # null is how these say "derive it"
    message = refusal(tmp_path, config("llama", **{field: value}))
    assert message == f"{field}: {shown} is not valid: must be a whole number from 1 to 1000000000"


@pytest.mark.parametrize("value", [8.0, "8", "8.0"])
def test_whole_numbers_written_otherwise_get_a_remedy(tmp_path: Path, value: object) -> None:
    message = refusal(tmp_path, config("llama", hidden_size=value))
    assert message.endswith("; write 8") or value == "8.0"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            config("llama", num_key_value_heads=4),
            "num_key_value_heads: 4 is not valid: must divide num_attention_heads (2)",
        ),
        (
            config("llama", num_attention_heads=3, num_key_value_heads=2),
            "must divide num_attention_heads (3)",
        ),
        (
            config("llama", hidden_size=9, head_dim=None),
            "9 is not valid: must be a multiple of num_attention_heads (2) when head_dim is not given; add",
        ),
        (config("llama", num_hidden_layers=LARGEST_DEPTH + 1), "must be a whole number from 1 to 10000"),
        (config("llama", max_position_embeddings=-1), "max_position_embeddings: -1 is not valid"),
        (config("llama", attention_bias="no"), 'attention_bias: "no" is not valid: must be true or false'),
        (
            config("llama", tie_word_embeddings=1),
            "tie_word_embeddings: 1 is not valid: must be true or false",
        ),
        (config("llama", torch_dtype="bfloat"), 'did you mean "bfloat16"?'),
        (config("llama", torch_dtype=16), "torch_dtype: 16 is not valid: must be one of bfloat16, float16"),
        (
            config("mistral", sliding_window=0),
            "sliding_window: 0 is not valid: must be a whole number from 1",
        ),
        (config("mistral", sliding_window=-4096), "sliding_window: -4096 is not valid"),
        (
            config("gemma2", sliding_window=None),
            "sliding_window: null is not valid: is required because some layers",
        ),
        (
            config("gpt_oss", layer_types=["full_attention"]),
            "layer_types: a list of 1 items is not valid: must have one",
        ),
        (
            config("gpt_oss", layer_types="full_attention"),
            'layer_types: "full_attention" is not valid: must be a list',
        ),
        (
            config("gpt_oss", layer_types=["full_attention", "slide_attention", 3]),
            'layer_types[1]: "slide_attention" is not valid: must be full_attention or sliding_attention; ',
        ),
        (
            config("mixtral", num_experts_per_tok=5),
            "num_experts_per_tok: 5 is not valid: must be at most num_local_experts (4)",
        ),
        (config("mixtral", num_local_experts=0), "num_local_experts: 0 is not valid"),
        (config("qwen3_moe", mlp_only_layers=[1.5]), "mlp_only_layers: a list of 1 items is not valid"),
        (config("deepseek_v2", mlp_bias=True), "mlp_bias: true is not valid"),
        (config("deepseek_v2", n_shared_experts=-1), "n_shared_experts: -1 is not valid"),
        (config("deepseek_v2", q_lora_rank=0), "q_lora_rank: 0 is not valid"),
        (
            {key: value for key, value in config("deepseek_v2").items() if key != "q_lora_rank"},
            "q_lora_rank: (missing)",
        ),
        (config("deepseek_v32", q_lora_rank=None), "q_lora_rank: null is not valid: is not so in any model with DSA"),
        (config("deepseek_v32", index_head_dim=2), "index_head_dim: 2 is not valid: must be above qk_rope_head_dim"),
        (config("deepseek_v3", mlp_layer_types=["moe"] * 3), 'mlp_layer_types[0]: "moe" is not valid: must be dense'),
        ({"model_type": "llava", "text_config": 3}, "text_config: 3 is not valid: must be an object"),
        ({"text_config": config("llama", head_dim=0)}, "text_config: head_dim: 0 is not valid"),
    ],
)
def test_fields_that_do_not_fit(tmp_path: Path, values: Config, message: str) -> None:
    assert message in refusal(tmp_path, values)


def test_messages_stay_short_and_printable(tmp_path: Path) -> None:
    message = refusal(tmp_path, config("llama", hidden_size="\ud800\n" * 10_000))
    assert len(message) < 200
    assert message.isascii()
    assert "\n" not in message
