"""What several mixers need when they are written out (``Mixer.written``): rotary positions, masks, softmax.

Array functions come from the namespace ``xp``, which is ``torch`` in tests; this package imports none.
"""

from __future__ import annotations

from typing import Any

from costmodel.masks import Mask


def kept(xp: Any, mask: Mask, n_q: int, n_k: int) -> Any:
    """Which pairs [n_q, n_k] a mask leaves, each by itself."""
    query = xp.arange(n_k * mask.stride - n_q, n_k * mask.stride)[:, None] - mask.ahead
    key = (xp.arange(n_k)[None, :] + 1) * mask.stride - 1
    keep = xp.ones((n_q, n_k), dtype=xp.bool)
    if mask.causal:
        keep &= key <= query
    if mask.window is not None:
        keep &= (query - key < mask.window) & (key - query < mask.window)
    return keep


def softmax_matrix(xp: Any, scores: Any, mask: Mask) -> Any:
    """exp(scores) over its row sums, zero where the mask says so; scores [..., n_q, n_k]."""
    return softmax_where(xp, scores, kept(xp, mask, *scores.shape[-2:]))


def softmax_where(xp: Any, scores: Any, keep: Any) -> Any:
    """exp(scores) over its row sums, zero where ``keep`` [n_q, n_k] is not; scores [..., n_q, n_k]."""
    weights = xp.exp(scores - scores.detach().amax(-1, True)) * keep
    return weights / weights.sum(-1, True)


def turned(xp: Any, x: Any, cos: Any, sin: Any) -> Any:
    """Rotary positions as complex numbers: x [B, H, n, d] times cos + i sin [n, d/2], halves as real and imaginary."""
    real, imaginary = x.chunk(2, -1)
    y = xp.complex(real, imaginary) * xp.complex(cos, sin)
    return xp.cat((y.real, y.imag), -1)


def decayed(xp: Any, q: Any, k: Any, log_decay: Any) -> Any:
    """q_i^T diag(product of the decays after j, up to i) k_j for j <= i: [B, H, n, n], entry by entry.

    Args:
        q, k: [B, H, n, d].
        log_decay: [B, H, n, d], or [B, H, n, 1] for one decay a head.
    """
    n = q.shape[2]
    rows = []
    for i in range(n):
        after = log_decay[:, :, : i + 1].flip(2).cumsum(2).flip(2) - log_decay[:, :, : i + 1]
        seen = (k[:, :, : i + 1] * q[:, :, i : i + 1] * xp.exp(after)).sum(-1)
        rows.append(xp.cat((seen, xp.zeros_like(q[:, :, i + 1 :, 0])), -1))
    return xp.stack(rows, 2)


def gated_normed(x: Any, gate: Any, weight: Any = 1.0) -> Any:
    """x over its root mean square along the last axis, times weight and gate."""
    return x * (x.square().mean(-1, True) + 1e-5) ** -0.5 * weight * gate


def standardised(x: Any, weight: Any, bias: Any) -> Any:
    """x less its mean, over its standard deviation, along the last axis, times weight, plus bias."""
    centred = x - x.mean(-1, True)
    return centred * (centred.square().mean(-1, True) + 1e-5) ** -0.5 * weight + bias


def causal_convolution(xp: Any, x: Any, taps: Any) -> Any:
    """silu of y_i = sum over j of taps[j] x_{i - K + 1 + j}: x [B, H, n, d], taps [H, d, K]."""
    k, n = taps.shape[-1], x.shape[2]
    padded = xp.cat((xp.zeros_like(x[:, :, :1]).expand(-1, -1, k - 1, -1), x), 2)
    y = sum(padded[:, :, j : j + n] * taps[:, None, :, j] for j in range(k))
    return y / (1 + xp.exp(-y))


def delta_matrix(xp: Any, q: Any, k: Any, beta: Any, log_decay: Any) -> Any:
    """P [B, H, n, n] of the delta rule, token by token: the outputs for values that are unit vectors."""
    b, h, n, d = k.shape
    state, rows = xp.zeros((b, h, d, n), dtype=k.dtype), []
    for t in range(n):
        key, value = k[:, :, t], xp.eye(n, dtype=k.dtype)[t].expand(b, h, n)
        state = state * xp.exp(log_decay[:, :, t])[..., None]
        held = xp.einsum("bhd,bhdn->bhn", key, state)
        state = state + xp.einsum("bhd,bhn->bhdn", key, (value - held) * beta[:, :, t])
        rows.append(xp.einsum("bhd,bhdn->bhn", q[:, :, t], state))
    return xp.stack(rows, 2)


def banded(xp: Any, taps: Any, n: int, left: int) -> Any:
    """P [H, n, n] with P_ij = taps[H, j - i + left], zero outside the band."""
    return shifted_rows(xp, taps[None, :, None].expand(1, -1, n, -1), left)[0]


def shifted_rows(xp: Any, taps: Any, left: int) -> Any:
    """P [B, H, n, n] with P_ij = taps[B, H, i, j - i + left], zero outside the band."""
    b, h, n, k = taps.shape
    wide = xp.zeros((b, h, n, n + k - 1), dtype=taps.dtype)
    rows = xp.arange(n)[:, None]
    wide[:, :, rows, rows + xp.arange(k)] = taps
    return wide[..., left : left + n]


def low_rank_matrix(xp: Any, q: Any, k: Any, z: Any, b: Any, log_decay: Any) -> Any:
    """P [B, H, n, n] of S_t = (diag(exp log_decay) - b z^T) S_{t-1} + k v^T, token by token, as ``delta_matrix``."""
    n = k.shape[2]
    state, rows = xp.zeros((*k.shape[:2], k.shape[3], n), dtype=k.dtype), []
    for t in range(n):
        held = (z[:, :, t, :, None] * state).sum(2, True)
        state = state * xp.exp(log_decay[:, :, t])[..., None] - b[:, :, t, :, None] * held
        state = state + k[:, :, t, :, None] * (xp.arange(n) == t)
        rows.append((q[:, :, t, :, None] * state).sum(2))
    return xp.stack(rows, 2)


def toeplitz(xp: Any, taps: Any) -> Any:
    """P [H, n, n] with P_ij = taps[H, i - j] for j <= i, else 0."""
    n = taps.shape[-1]
    lags = xp.arange(n)[:, None] - xp.arange(n)[None, :]
    return taps[:, lags.clamp(min=0)] * (lags >= 0)


def gelu(xp: Any, x: Any) -> Any:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): Hendrycks & Gimpel 2016, arXiv 1606.08415, equation 2."""
    return x / 2 * (1 + xp.tanh((2 / xp.pi) ** 0.5 * (x + 0.044715 * x**3)))


def glu(xp: Any, value: Any, gate: Any) -> Any:
    """value sigmoid(gate)."""
    return value / (1 + xp.exp(-gate))
