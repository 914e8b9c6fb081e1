"""Layers with the token-mixing matrix written out: slow, in float64, differentiable; what runs are compared with.

A mixer's own definition is ``Mixer.written``; the rest of a layer is written here in plain torch, apart from the op
vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, einsum

from costmodel.masks import Mask
from costmodel.mixer import Site, Written
from costmodel.subject import Layer
from validate.attention import kept

Weights = Mapping[str, Tensor]

#: Of root-mean-square norms, as in Llama 3.
EPSILON = 1e-5


def written(layer: Layer, x: Tensor, w: Weights, causal: bool, memory: Tensor | None = None) -> Written:
    """The mixer of a layer on its input [B, L, D], and on a second sequence if it reads one, with whole weights."""
    length, turns = x.shape[1], layer.mixer.turns(layer.sizes)
    turn = torch.tensor([[place * angle for angle in turns] for place in range(length)], dtype=torch.float64)
    sizes = {**layer.sizes, **dict.fromkeys(("L", "rows", "grid_rows", "grid_columns"), length)}
    mask, tables = Mask(causal, layer.window), (turn.cos(), turn.sin())
    return layer.mixer.written(torch, x, w, Site(sizes, mask, "fused", tables, memory=memory))


def whole_layer(layer: Layer, x: Tensor, w: Weights, causal: bool, memory: Tensor | None = None) -> Tensor:
    """A layer's output [B, L, D]: the mixer alone, or with norms and residuals and perhaps a dense feed-forward.

    Of a shared layer, ``memory`` are the embeddings of the tokens.
    """
    if layer.shared:
        assert memory is not None
        y = _norm(torch.cat([x, memory], 2), w["mixer_norm"])
        y = _norm(_output(layer, y, w, causal, None), w["mlp_norm"])
        return x + _feed_forward(y, w) @ w["own_out"]
    if not layer.norms:
        return _output(layer, x, w, causal, memory)
    mixed = _output(layer, _norm(x, w["mixer_norm"]), w, causal, memory)
    x = x + (_norm(mixed, w["mixer_post_norm"]) if "mixer_post_norm" in w else mixed)
    if layer.mlp is None:
        return x
    fed = _feed_forward(_norm(x, w["mlp_norm"]), w)
    return x + (_norm(fed, w["mlp_post_norm"]) if "mlp_post_norm" in w else fed)


def mixing_matrix(q: Tensor, k: Tensor, mask: Mask, scale: float) -> Tensor:
    """P = softmax(scale q k^T + mask) [B, H, n_q, n_k] of q [B, H, n_q, d] and k [B, H_kv, n_k, d]."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = scale * einsum("bhid,bhjd->bhij", q.double(), k.double())
    return scores.masked_fill(~kept(mask, q.shape[2], k.shape[2]), -torch.inf).softmax(-1)


def mix(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float) -> Tensor:
    """Y = P V [B, H, n_q, e], per head."""
    v = v.double().repeat_interleave(q.shape[1] // v.shape[1], 1)
    return einsum("bhij,bhje->bhie", mixing_matrix(q, k, mask, scale), v)


def _output(layer: Layer, x: Tensor, w: Weights, causal: bool, memory: Tensor | None) -> Tensor:
    output: Tensor = written(layer, x, w, causal, memory).output
    return output


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + EPSILON).sqrt() * weight


def _feed_forward(x: Tensor, w: Weights) -> Tensor:
    inner = {name: x @ w[name] for name in ("gate", "up") if name in w}
    if "own_down" in w:
        inner = {name: y + x @ w["own_down"] @ w[f"own_{name}"] for name, y in inner.items()}
    y = _silu(inner["gate"]) * inner["up"] if "gate" in w else _silu(inner["up"])
    return y @ w["down"]


def _silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))
