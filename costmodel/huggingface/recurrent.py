"""Models of one recurrence in every layer, without feed-forwards: one small function per family."""

from __future__ import annotations

from costmodel.huggingface.family import family, refused
from costmodel.huggingface.fields import LARGEST_DEPTH, Fields
from costmodel.huggingface.mamba import mamba1, mamba2
from costmodel.model import LayerSpec, MixerSpec


def _layers(fields: Fields, mixer: MixerSpec) -> tuple[LayerSpec, ...]:
    refused(fields, "use_bias")
    return (LayerSpec(mixer, None, 1),) * fields.integer("num_hidden_layers", high=LARGEST_DEPTH)


MAMBA = {"state_size": 16, "expand": 2, "conv_kernel": 4, "use_bias": False, "time_step_rank": "auto"}


@family("falcon_mamba", tie_word_embeddings=True, **MAMBA)
@family("mamba", tie_word_embeddings=True, **MAMBA)
def _mamba(fields: Fields) -> tuple[LayerSpec, ...]:
    """Mamba; Falcon Mamba's norms of step, keys and queries have no weights."""
    return _layers(fields, mamba1(fields))


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
    return _layers(fields, mamba2(fields))
