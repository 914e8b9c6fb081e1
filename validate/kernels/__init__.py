"""How each primitive of the vocabulary runs on real tensors; files are named as those of ``costmodel.ops``.

Each registers its kernels when it is imported.
"""

from validate.kernels import (
    affine_scan,
    block_table,
    chosen_blocks,
    communication,
    contraction,
    convolution,
    fourier,
    fused_attention,
    layout,
    pointwise,
    resets,
    selection,
    sorted_attention,
    thinning,
    triangular,
)
from validate.kernels.registry import run, runs

__all__ = [
    "affine_scan",
    "block_table",
    "chosen_blocks",
    "communication",
    "contraction",
    "convolution",
    "fourier",
    "fused_attention",
    "layout",
    "pointwise",
    "resets",
    "run",
    "runs",
    "selection",
    "sorted_attention",
    "thinning",
    "triangular",
]
