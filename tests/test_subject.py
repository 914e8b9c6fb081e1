"""What a workload runs, from the models and mixers that users name."""

from __future__ import annotations

from pathlib import Path

import pytest

from costmodel.errors import InputError, UnknownNameError
from costmodel.huggingface import read_config
from costmodel.subject import from_mixer, from_model

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.json"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_becomes_a_subject(path: Path) -> None:
    model = read_config(path)
    subject = from_model(model)
    assert sum(layer.count for layer in subject.layers) == sum(count for _, count in model.groups())
    assert subject.width == model.width


def test_a_latent_of_the_queries_is_optional() -> None:
    """DeepSeek-V2-Lite has none: ``q_lora_rank`` is null in its config."""
    (layer,) = from_mixer("mla", q_rank=0).layers
    assert layer.sizes["r_q"] == 0


@pytest.mark.parametrize(("size", "value"), [("heads", 0), ("head_dim", -1), ("window", -1)])
def test_sizes_out_of_range_are_refused(size: str, value: int) -> None:
    with pytest.raises(InputError, match=rf"attention.{size}: {value} is not valid: must be at least [01]"):
        from_mixer("attention", **{size: value})


def test_kv_heads_divide_heads_and_follow_them() -> None:
    assert from_mixer("attention", heads=6).layers[0].sizes["H_kv"] == 6
    with pytest.raises(InputError, match="must divide the 6 heads"):
        from_mixer("attention", heads=6, kv_heads=4)


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'heads'"):
        from_mixer("attention", head=4)


def test_an_odd_number_of_entries_does_not_turn() -> None:
    with pytest.raises(InputError, match=r"mla\.rope_dim: 3 is not valid: must be even: .*; nearest: 4"):
        from_mixer("mla", rope_dim=3)
