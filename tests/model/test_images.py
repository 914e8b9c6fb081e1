"""Language models that attend to an image: which layers do, to how much, and how many parameters they have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from costmodel.errors import InputError
from costmodel.hardware import parse_cluster
from costmodel.plan import rank
from costmodel.subject import from_model
from costmodel.workload import Workload
from tests.model.configs import EXAMPLES, Config, config, read, refusal

LLAMA = json.loads((EXAMPLES / "llama-3-8b.json").read_text())
VISION: Config = LLAMA | {"model_type": "mllama_text_model", "num_hidden_layers": 40}


def with_image(text: Config, **vision: object) -> Config:
    return {"model_type": "mllama", "text_config": text, "vision_config": vision}


def test_llama_32_vision_11b_has_its_exact_number_of_parameters(tmp_path: Path) -> None:
    """9,775,192,080 in transformers 5.24, of 32 layers of Llama 3 8B and 8 of attention to the image.

    These have norms of queries and keys, and two gates of a number each that we leave out, as we do 8 rows of the
    embedding.
    """
    model = read(tmp_path, VISION)
    assert model.parameters() == 9_775_192_080 - 8 * 2 - 8 * 4096
    own, crossed = 218_112_000, 218_112_000 + 2 * 128
    assert model.parameters() == 32 * own + 8 * crossed + 2 * 128_256 * 4096 + 4096
    names = [layer.mixer.name for layer in model.layers]
    assert [place for place, name in enumerate(names) if name == "cross-attention"] == [3, 8, 13, 18, 23, 28, 33, 38]


@pytest.mark.parametrize(
    ("vision", "tokens"),
    [
        ({}, 4 * (32 * 32 + 1)),
        ({"image_size": 560}, 4 * (40 * 40 + 1)),
        ({"image_size": 30, "patch_size": 10, "max_num_tiles": 2}, 2 * (3 * 3 + 1)),
    ],
)
def test_tokens_of_an_image(tmp_path: Path, vision: Config, tokens: int) -> None:
    """Of each tile, a token for each patch and one for the whole."""
    layer = read(tmp_path, with_image(config("mllama_text_model"), **vision)).layers[1]
    sizes = {"heads": 2, "kv_heads": 1, "head_dim": 4, "memory": tokens, "memory_width": 8, "qk_norm": 1}
    assert (layer.mixer.name, dict(layer.mixer.params)) == ("cross-attention", sizes)


def test_bad_fields_of_an_image(tmp_path: Path) -> None:
    text = config("mllama_text_model")
    assert refusal(tmp_path, text | {"vision_config": 3}).startswith("vision_config: 3 is not valid: must be an object")
    message = refusal(tmp_path, with_image(text, image_size=[448, 448]))
    assert message.startswith("vision_config: image_size: a list of 2 items is not valid")
    with pytest.raises(InputError, match=r"cross_attention_layers: .* must be a list of layer numbers"):
        read(tmp_path, text | {"cross_attention_layers": [True]})


def test_a_model_that_attends_to_an_image_is_planned(tmp_path: Path) -> None:
    """Decoding keeps 4100 tokens of the image in 8 layers, whatever the length of the text."""
    subject = from_model(read(tmp_path, VISION))
    short, long = (
        rank(subject, Workload(length, 4, "decode"), parse_cluster("4xh200")).plan(0).memory["cache"]
        for length in (2**16, 2**17)
    )
    image, text = 8 * 4100, 32 * 2**16
    assert long / short == pytest.approx((2 * text + image) / (text + image))
