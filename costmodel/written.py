"""What several mixers need when they are written out (``Mixer.written``): rotary positions, masks, softmax.

Array functions come from the namespace ``xp``, which is ``torch`` in tests; this package imports none.
"""

from __future__ import annotations

from typing import Any

from costmodel.masks import Mask


def kept(xp: Any, mask: Mask, n_q: int, n_k: int) -> Any:
    """Which pairs [n_q, n_k] a mask leaves, each by itself."""
    query, key = xp.arange(n_k - n_q, n_k)[:, None], xp.arange(n_k)[None, :]
    keep = xp.ones((n_q, n_k), dtype=xp.bool)
    if mask.causal:
        keep &= key <= query
    if mask.window is not None:
        keep &= (query - key < mask.window) & (key - query < mask.window)
    return keep


def softmax_matrix(xp: Any, scores: Any, mask: Mask) -> Any:
    """exp(scores) over its row sums, zero where the mask says so; scores [..., n_q, n_k]."""
    keep = kept(xp, mask, *scores.shape[-2:])
    weights = xp.exp(scores - scores.detach().amax(-1, True)) * keep
    return weights / weights.sum(-1, True)


def turned(xp: Any, x: Any, cos: Any, sin: Any) -> Any:
    """Rotary positions as complex numbers: x [B, H, n, d] times cos + i sin [n, d/2], halves as real and imaginary."""
    real, imaginary = x.chunk(2, -1)
    y = xp.complex(real, imaginary) * xp.complex(cos, sin)
    return xp.cat((y.real, y.imag), -1)
