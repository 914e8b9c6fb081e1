"""Small configs to read, by family, and what a file that cannot be read is answered."""

import json
from pathlib import Path

import pytest

from costmodel.errors import InputError
from costmodel.huggingface import read_config
from costmodel.model import Model

EXAMPLES = Path(__file__).parents[2] / "examples"
Config = dict[str, object]

# Sizes small enough to count by hand: width 8, 2 heads of 4, inner size 10, 3 layers, 20 tokens.
SMALL: Config = {
    "hidden_size": 8,
    "intermediate_size": 10,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "vocab_size": 20,
}
MIXTURE: Config = {"num_experts_per_tok": 2, "moe_intermediate_size": 6}
LATENT: Config = {
    "q_lora_rank": None,
    "kv_lora_rank": 4,
    "qk_nope_head_dim": 3,
    "qk_rope_head_dim": 2,
    "v_head_dim": 5,
}
FAMILIES: dict[str, Config] = {
    "llama": {},
    "mistral": {},
    "mixtral": MIXTURE | {"num_local_experts": 4},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": MIXTURE | {"num_experts": 4},
    "gemma2": {},
    "gemma3_text": {},
    "phi3": {},
    "mllama_text_model": {"cross_attention_layers": [1]},
    "gpt_oss": MIXTURE | {"num_local_experts": 4},
    "deepseek_v2": MIXTURE | LATENT | {"n_routed_experts": 4, "n_shared_experts": 1},
    "deepseek_v3": MIXTURE | LATENT | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "deepseek_v32": MIXTURE
    | LATENT
    | {"q_lora_rank": 6, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
    | {"index_head_dim": 5, "index_n_heads": 3, "index_topk": 2},
}


def config(model_type: str, **changes: object) -> Config:
    return SMALL | FAMILIES[model_type] | {"model_type": model_type} | changes


def read(folder: Path, values: object) -> Model:
    path = folder / "config.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return read_config(path)


def refusal(folder: Path, values: object) -> str:
    with pytest.raises(InputError) as caught:
        read(folder, values)
    prefix = str(folder / "config.json") + ": "
    message = str(caught.value)
    assert message.startswith(prefix)
    return message.removeprefix(prefix)
