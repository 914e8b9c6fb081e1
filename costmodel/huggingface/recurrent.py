"""Models of one recurrence in every layer, without feed-forwards: one small function per family."""

from __future__ import annotations

import math

from costmodel.huggingface.family import family, spec
from costmodel.huggingface.fields import LARGEST_DEPTH, Fields
from costmodel.model import LayerSpec, MixerSpec


def _layers(fields: Fields, mixer: MixerSpec) -> tuple[LayerSpec, ...]:
    if fields.flag("use_bias"):
        raise fields.error("use_bias", True, "must be false: no model of the family has biases there")
    return (LayerSpec(mixer, None, 1),) * fields.integer("num_hidden_layers", high=LARGEST_DEPTH)


@family(
    "falcon_mamba",
    tie_word_embeddings=True,
    state_size=16,
    expand=2,
    conv_kernel=4,
    use_bias=False,
    time_step_rank="auto",
)
@family(
    "mamba",
    tie_word_embeddings=True,
    state_size=16,
    expand=2,
    conv_kernel=4,
    use_bias=False,
    time_step_rank="auto",
)
def _mamba(fields: Fields) -> tuple[LayerSpec, ...]:
    """Mamba; Falcon Mamba's norms of step, keys and queries have no weights."""
    width = fields.integer("hidden_size")
    auto = fields.raw("time_step_rank") == "auto"
    mixer = spec(
        "mamba1",
        channels=fields.integer("expand") * width,
        state_dim=fields.integer("state_size"),
        step_rank=math.ceil(width / 16) if auto else fields.integer("time_step_rank"),
        taps=fields.integer("conv_kernel"),
    )
    return _layers(fields, mixer)


@family(
    "mamba2",
    num_heads=128,
    head_dim=64,
    n_groups=8,
    state_size=128,
    conv_kernel=4,
    chunk_size=256,
    use_bias=False,
)
def _mamba2(fields: Fields) -> tuple[LayerSpec, ...]:
    mixer = spec(
        "mamba2",
        heads=fields.integer("num_heads"),
        kv_heads=fields.integer("n_groups"),
        head_dim=fields.integer("state_size"),
        value_dim=fields.integer("head_dim"),
        taps=fields.integer("conv_kernel"),
        chunk=fields.integer("chunk_size"),
    )
    return _layers(fields, mixer)
