"""Mamba and Mamba-2 from a config: families call the same sizes by other names."""

from __future__ import annotations

import math

from costmodel.huggingface.family import spec
from costmodel.huggingface.fields import Fields
from costmodel.model import MixerSpec


def mamba1(fields: Fields) -> MixerSpec:
    """Mamba, its step's rank a sixteenth of the width where the file says ``auto``."""
    width = fields.integer("hidden_size")
    rank = fields.pick("mamba_dt_rank", "time_step_rank")
    return spec(
        "mamba1",
        channels=fields.integer(fields.pick("mamba_expand", "expand")) * width,
        state_dim=fields.integer(fields.pick("mamba_d_state", "state_size")),
        step_rank=math.ceil(width / 16) if fields.raw(rank) == "auto" else fields.integer(rank),
        taps=fields.integer(fields.pick("mamba_d_conv", "conv_kernel")),
    )


def mamba2(fields: Fields) -> MixerSpec:
    """Mamba-2, its channels shared out over the heads where the file says ``auto``."""
    count = fields.pick("mamba_num_heads", "mamba_n_heads", "n_mamba_heads", "num_heads")
    heads, size = fields.integer(count), fields.pick("mamba_head_dim", "mamba_d_head", "head_dim")
    return spec(
        "mamba2",
        heads=heads,
        kv_heads=fields.integer(fields.pick("n_groups", "mamba_n_groups", "mamba_ngroups")),
        head_dim=fields.integer(fields.pick("ssm_state_size", "mamba_d_state", "state_size")),
        value_dim=_shared_out(fields, count) if fields.raw(size) == "auto" else fields.integer(size),
        taps=fields.integer(fields.pick("conv_kernel", "mamba_d_conv")),
        chunk=fields.integer(fields.pick("chunk_size", "mamba_chunk_size")),
    )


def _shared_out(fields: Fields, count: str) -> int:
    """Channels of a head."""
    inner, heads = fields.optional_integer("mamba_d_ssm"), fields.integer(count)
    inner = inner or fields.integer("mamba_expand") * fields.integer("hidden_size")
    if inner % heads:
        raise fields.error(count, heads, f"must divide the {inner} inner channels")
    return inner // heads
