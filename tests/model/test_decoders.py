"""Decoders with attention in every layer: exact counts of real models, and the rules of each family."""

import json
from pathlib import Path

import pytest

from costmodel.huggingface import read_config
from costmodel.model import Model
from tests.model.configs import EXAMPLES, Config, config, read


def windows(model: Model) -> list[object]:
    return [layer.mixer.params.get("window") for layer in model.layers]


# --- real models ---

# Each comment derives the count by hand, layer by layer: D is the width; layer x layers + embeddings and head
# + final norm. All were also counted from transformers 5.23, building the model on torch's meta device; to
# DeepSeek-V3 the score-correction biases are added that its checkpoint has and transformers keeps as buffers.
REAL = {
    # D 4096. Attention 2*4096*4096 + 2*4096*1024 = 41,943,040; MLP 3*4096*14336 = 176,160,768; norms 8192.
    # 218,112,000 x 32 + 2*128256*4096 + 4096
    "llama-3-8b": 8_030_261_248,
    # The same layer; 218,112,000 x 32 + 2*32000*4096 + 4096
    "mistral-7b": 7_241_732_096,
    # The same attention; 8 experts of 176,160,768; router 8*4096. 1,451,270,144 x 32 + 2*32000*4096 + 4096
    "mixtral-8x7b": 46_702_792_704,
    # D 3584. Query and output 2*3584*3584, key and value 2*3584*512, biases 3584+512+512 = 29,364,736;
    # MLP 3*3584*18944 = 203,685,888; norms 7168. 233,057,792 x 28 + 2*152064*3584 + 3584
    "qwen2.5-7b": 7_615_616_512,
    # D 4096. Attention 41,943,040, query and key norm 2*128; MLP 3*4096*12288 = 150,994,944; norms 8192.
    # 192,946,432 x 36 + 2*151936*4096 + 4096
    "qwen3-8b": 8_190_735_360,
    # D 2560. Query and output 2*2560*4096, key and value 2*2560*1024, norms 2*128 = 26,214,656; MLP 3*2560*9728 =
    # 74,711,040; norms 5120. 100,930,816 x 36 + 151936*2560 (tied) + 2560
    "qwen3-4b": 4_022_468_096,
    # D 2048. Query and output 2*2048*4096, key and value 2*2048*512, norms 2*128 = 18,874,624;
    # 128 experts of 3*2048*768; router 128*2048; norms 4096. 623,120,640 x 48 + 2*151936*2048 + 2048
    "qwen3-30b-a3b": 30_532_122_624,
    # D 3072. Attention 4*3072*3072, MLP 3*3072*8192, norms 6144. 113,252,352 x 32 + 2*32064*3072 + 3072;
    # keras-hub's presets give the same 3,821,079,552
    "phi-3-mini-4k": 3_821_079_552,
    # D 3840. Query and output 2*3840*4096, key and value 2*3840*2048, norms 2*256 = 47,186,432; MLP
    # 3*3840*15360 = 176,947,200; 4 norms 15,360. 224,148,992 x 48 + 262208*3840 (tied) + 3840; keras-hub has
    # 11,765,788,416, without the 64 image tokens of the vocabulary, 64*3840 = 245,760 less
    "gemma-3-12b": 11_766_034_176,
    # D 2048. Latent attention: query 2048*16*192, down 2048*576, norm 512, up 512*16*256, output 2048*2048 =
    # 13,763,072; norms 4096. Dense MLP 3*2048*10944 = 67,239,936 in 1 layer; 66 experts of 3*2048*1408 and
    # router 64*2048 = 571,080,704 in 26. 81,007,104 + 584,847,872 x 26 + 2*102400*2048 + 2048
    "deepseek-v2-lite": 15_706_484_224,
    # D 7168. Latent attention: query 7168*1536 + 1536 + 1536*128*192, down 7168*576, norm 512, up
    # 512*128*256, output 128*128*7168 = 187,107,328; norms 14,336. Dense MLP 3*7168*18432 = 396,361,728 in 3
    # layers; 257 experts of 3*7168*2048 and router 256*7168 + 256 = 11,320,164,608 in 58.
    # 583,483,392 x 3 + 11,507,286,272 x 58 + 2*129280*7168 + 7168
    "deepseek-v3": 671_026_419_200,
}


@pytest.mark.parametrize("name", REAL)
def test_real_models_have_their_exact_number_of_parameters(name: str) -> None:
    model = read_config(EXAMPLES / f"{name}.json")
    assert (model.name, model.parameters()) == (name, REAL[name])


def test_every_example_is_counted() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.json")} >= set(REAL)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # Llama-3-70B, D 8192. Attention 2*8192*8192 + 2*8192*1024 = 150,994,944; MLP 3*8192*28672 =
        # 704,643,072; norms 16,384. 855,654,400 x 80 + 2*128256*8192 + 8192
        (
            {
                "model_type": "llama",
                "hidden_size": 8192,
                "intermediate_size": 28672,
                "num_hidden_layers": 80,
                "num_attention_heads": 64,
                "num_key_value_heads": 8,
                "vocab_size": 128256,
            },
            70_553_706_496,
        ),
        # gpt-oss-20b, D 2880. Query and output 2*2880*4096, key and value 2*2880*512, biases 4096 + 512 + 512
        # + 2880, sinks 64 = 26,550,144; 32 experts of 3*2880*2880 + 3*2880 and router 32*2880 + 32 =
        # 796,631,072; norms 5760. 823,186,976 x 24 + 2*201088*2880 + 2880
        (
            {
                "model_type": "gpt_oss",
                "hidden_size": 2880,
                "intermediate_size": 2880,
                "num_hidden_layers": 24,
                "num_attention_heads": 64,
                "num_local_experts": 32,
                "experts_per_token": 4,
                "vocab_size": 201088,
            },
            20_914_757_184,
        ),
        # Gemma-2-9B, D 3584. Query and output 2*3584*4096, key and value 2*3584*2048; MLP 3*3584*14336;
        # 4 norms. 198,195,200 x 42 + 256000*3584 (tied) + 3584
        (
            {
                "model_type": "gemma2",
                "hidden_size": 3584,
                "intermediate_size": 14336,
                "num_hidden_layers": 42,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "vocab_size": 256000,
            },
            9_241_705_984,
        ),
        # Gemma-3-4B as Google publishes it, heads and vocabulary left out. D 2560: attention 2*2560*2048 +
        # 2*2560*1024 + 512; MLP 3*2560*10240; 4 norms. 94,382,592 x 34 + 262208*2560 (tied) + 2560
        (
            {
                "model_type": "gemma3",
                "text_config": {
                    "model_type": "gemma3_text",
                    "hidden_size": 2560,
                    "intermediate_size": 10240,
                    "num_hidden_layers": 34,
                    "sliding_window": 1024,
                },
            },
            3_880_263_168,
        ),
    ],
)
def test_further_real_sizes(tmp_path: Path, values: Config, expected: int) -> None:
    assert read(tmp_path, values).parameters() == expected


def test_what_is_read_of_llama() -> None:
    model = read_config(EXAMPLES / "llama-3-8b.json")
    assert (model.width, model.vocabulary, model.max_positions) == (4096, 128256, 8192)
    assert (model.tied_embeddings, model.dtype) == (False, "bfloat16")
    ((layer, count),) = model.groups()
    assert count == 32
    assert dict(layer.mixer.params) == {"heads": 32, "kv_heads": 8, "head_dim": 128}
    assert (layer.mlp.hidden, layer.mlp.gated, layer.mlp.experts) == (14336, True, 1)


def test_the_layers_of_deepseek() -> None:
    (dense, few), (routed, many) = read_config(EXAMPLES / "deepseek-v2-lite.json").groups()
    assert (few, many) == (1, 26)
    assert dense.mixer == routed.mixer
    assert dict(dense.mixer.params) == {
        "heads": 16,
        "q_rank": 0,
        "kv_rank": 512,
        "nope_dim": 128,
        "rope_dim": 64,
        "value_dim": 128,
    }
    assert (dense.mlp.hidden, dense.mlp.experts) == (10944, 1)
    assert (routed.mlp.hidden, routed.mlp.experts, routed.mlp.active) == (1408, 64, 6)
    assert (routed.mlp.shared, routed.mlp.shared_hidden) == (2, 1408)


def test_the_index_of_deepseek_v32(tmp_path: Path) -> None:
    """DeepSeek-V3.2 at its published sizes: 671,877,929,216 parameters in transformers 5.24, and 256 score-correction
    biases, which it keeps as buffers, in each of 58 layers. The index of a layer has 1536*64*128 + 7168*128 + 2*128 +
    7168*64 = 13,959,424: times 61, what it has more than DeepSeek-V3.
    """
    sizes = json.loads((EXAMPLES / "deepseek-v3.json").read_text())
    sizes |= {"model_type": "deepseek_v32", "index_topk": 2048, "index_head_dim": 128, "index_n_heads": 64}
    model = read(tmp_path, sizes)
    assert model.parameters() == 671_877_929_216 + 58 * 256 == REAL["deepseek-v3"] + 61 * 13_959_424
    index = {"index_heads": 64, "index_dim": 64, "chosen": 2048}
    assert {key: model.layers[0].mixer.params[key] for key in index} == index
    stated = {"layer_types": ["indexed_attention"] * 61, "mlp_layer_types": ["dense", "sparse"] * 30 + ["dense"]}
    assert [layer.mlp and layer.mlp.experts for layer in read(tmp_path, sizes | stated).layers[:3]] == [1, 256, 1]


# --- families, against transformers' rules ---


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        # Attention 8*8 + 2*8*4 + 8*8 = 192, MLP 3*8*10 = 240, norms 16: 448 x 3 + 2*160 + 8 = 1672
        ("llama", 1672),
        ("mistral", 1672),
        ("phi3", 1672),
        ("mllama_text_model", 1672 + 2 * 4),  # norms of the cross-attention's queries and keys
        ("qwen2", 1672 + 3 * (8 + 4 + 4)),  # query, key and value biases
        ("qwen3", 1672 + 3 * 2 * 4),  # query and key norms
        ("gemma2", 1672 - 160 + 3 * 16),  # tied; two more norms
        ("gemma3_text", 1672 - 160 + 3 * (16 + 8)),
        ("mixtral", 1672 + 3 * (3 * 240 + 32)),  # three more experts, and a router of 4*8
        ("qwen3_moe", 1672 + 3 * (4 * 144 - 240 + 32 + 8)),  # experts of 3*8*6 = 144
        # biases of attention 8+4+4+8, sinks 2, of 4 experts 10+10+8, of the router 4
        ("gpt_oss", 1672 + 3 * (3 * 240 + 32 + 24 + 2 + 4 * 28 + 4)),
        # latent attention: 8*2*5 + 8*6 + 4 + 4*2*8 + 2*5*8 = 276; 5 experts of 144 and the router
        ("deepseek_v2", 3 * (276 + 5 * 144 + 32 + 16) + 320 + 8),
        # first layer dense; a correction bias for each of the 4 experts of the others
        ("deepseek_v3", 3 * (276 + 16) + 240 + 2 * (5 * 144 + 32 + 4) + 320 + 8),
    ],
)
def test_small_models_by_hand(tmp_path: Path, model_type: str, expected: int) -> None:
    assert read(tmp_path, config(model_type)).parameters() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (config("llama"), [None] * 3),
        (config("llama", sliding_window=9), [None] * 3),
        (config("mistral"), [4096] * 3),
        (config("mistral", sliding_window=9), [9] * 3),
        (config("mistral", sliding_window=None), [None] * 3),
        (
            config("mistral", layer_types=["full_attention", "sliding_attention", "full_attention"]),
            [None, 4096, None],
        ),
        (config("mixtral"), [None] * 3),
        (config("phi3", sliding_window=9), [9] * 3),
        (config("qwen2", sliding_window=9), [None] * 3),
        (config("qwen2", sliding_window=9, use_sliding_window=True, max_window_layers=2), [None, None, 9]),
        (config("qwen3", sliding_window=9, use_sliding_window=True, max_window_layers=0), [9] * 3),
        (config("qwen3_moe", sliding_window=9, use_sliding_window=True), [9] * 3),
        (config("gemma2", sliding_window=9), [9, None, 9]),
        (config("gemma3_text", sliding_window=9), [9, 9, 9]),
        (config("gemma3_text", sliding_window=9, sliding_window_pattern=3), [9, 9, None]),
        (config("gemma3_text", sliding_window=9, _sliding_window_pattern=2), [9, None, 9]),
        (config("gemma3_text", sliding_window=None, layer_types=["full_attention"] * 3), [None] * 3),
        (config("gpt_oss"), [128, None, 128]),
        (config("gpt_oss", layer_types=["full_attention"] * 2 + ["sliding_attention"]), [None, None, 128]),
    ],
)
def test_windows(tmp_path: Path, values: Config, expected: list[object]) -> None:
    assert windows(read(tmp_path, values)) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (config("qwen3_moe"), [4, 4, 4]),
        (config("qwen3_moe", decoder_sparse_step=2), [1, 4, 1]),
        (config("qwen3_moe", mlp_only_layers=[0]), [1, 4, 4]),
        (config("deepseek_v2"), [4, 4, 4]),
        (config("deepseek_v2", first_k_dense_replace=1, moe_layer_freq=2), [1, 1, 4]),
        (config("deepseek_v2", n_routed_experts=None), [1, 1, 1]),
        (config("deepseek_v3", first_k_dense_replace=99), [1, 1, 1]),
    ],
)
def test_which_layers_have_experts(tmp_path: Path, values: Config, expected: list[int]) -> None:
    assert [layer.mlp.experts for layer in read(tmp_path, values).layers] == expected


def test_head_dim_need_not_divide_the_width(tmp_path: Path) -> None:
    model = read(tmp_path, config("gemma2", hidden_size=9, head_dim=7))
    assert (model.width, model.layers[0].mixer.params["head_dim"]) == (9, 7)
    assert read(tmp_path, config("llama", head_dim=None)).layers[0].mixer.params["head_dim"] == 4


def test_absent_or_null_key_value_heads_mean_as_many_as_heads(tmp_path: Path) -> None:
    for changed in (config("llama", num_key_value_heads=None), config("llama")):
        if changed["num_key_value_heads"] is not None:
            del changed["num_key_value_heads"]
        assert read(tmp_path, changed).layers[0].mixer.params["kv_heads"] == 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "bfloat16"),
        ({"torch_dtype": "float16"}, "float16"),
        ({"torch_dtype": "torch.float32"}, "float32"),
        ({"dtype": "float32", "torch_dtype": "float16"}, "float32"),
        ({"dtype": None, "torch_dtype": "float16"}, "float16"),
        ({"torch_dtype": "auto"}, "bfloat16"),
    ],
)
def test_dtypes(tmp_path: Path, changes: Config, expected: str) -> None:
    assert read(tmp_path, config("llama", **changes)).dtype == expected


def test_multimodal_configs_are_read_through_to_their_language_model(tmp_path: Path) -> None:
    outer = {
        "model_type": "llava",
        "torch_dtype": "float16",
        "tie_word_embeddings": True,
        "text_config": config("llama"),
        "vision_config": {"hidden_size": 1},
    }
    model = read(tmp_path, outer)
    assert (model.width, model.dtype, model.tied_embeddings) == (8, "float16", True)
    inner = {key: value for key, value in config("gemma3_text").items() if key != "model_type"}
    assert read(tmp_path, {"model_type": "gemma3", "text_config": inner}).width == 8


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "Some-Model-7B"
    folder.mkdir()
    assert read(folder, config("llama")).name == "Some-Model-7B"
    monkeypatch.chdir(folder)
    assert read_config("config.json").name == "Some-Model-7B"
    (folder / "other.json").write_text("\ufeff" + json.dumps(config("llama")), encoding="utf-8")
    assert read_config("other.json").name == "other"
