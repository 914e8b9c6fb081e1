"""Layers with the token-mixing matrix written out: slow, in float64, differentiable; what runs are compared with.

Written from each mixer's paper in plain torch, apart from the op vocabulary: nothing here is shared with what it
checks but the names of weights and sizes. A mixer's template is registered under its name by ``@template``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, einsum

from costmodel.errors import UnknownNameError
from costmodel.masks import Mask
from costmodel.mixer import Sizes
from costmodel.subject import Layer
from validate.attention import kept

Weights = Mapping[str, Tensor]

#: Of root-mean-square norms, as in Llama 3.
EPSILON = 1e-5
#: Base of the angles of rotary positions (Su et al., arXiv 2104.09864, section 3.2.2).
ROPE_BASE = 10000.0


@dataclass(frozen=True)
class Written:
    """A mixer on one input: Y = P V per head, and what decoding keeps of all tokens.

    Attributes:
        matrix: P [B, H, L, L].
        values: V [B, H, L, e].
        cache: tensors of the shapes of ``Mixer.cache``, with the batch before them.
    """

    matrix: Tensor
    values: Tensor
    cache: tuple[Tensor, ...]


Template = Callable[[Tensor, Weights, Sizes, Mask], Written]
_templates: dict[str, Template] = {}


def template(name: str) -> Callable[[Template], Template]:
    """Register the template of a mixer: ``(x [B, L, D], weights, sizes, mask) -> Written``.

    Raises:
        ValueError: when the mixer has one already.
    """

    def register(function: Template) -> Template:
        if name in _templates:
            raise ValueError(f"two templates of the mixer '{name}'")
        _templates[name] = function
        return function

    return register


def written(layer: Layer, x: Tensor, w: Weights, causal: bool) -> Written:
    """The mixer of a layer on an input [B, L, D].

    Raises:
        UnknownNameError: for a mixer without a template.
    """
    if layer.mixer.name not in _templates:
        raise UnknownNameError("template", layer.mixer.name, _templates)
    return _templates[layer.mixer.name](x, w, layer.sizes, Mask(causal, layer.window))


def whole_layer(layer: Layer, x: Tensor, w: Weights, causal: bool) -> Tensor:
    """A layer's output [B, L, D]: the mixer alone, or with norms, residuals and dense feed-forward around it."""

    def mixed(x: Tensor) -> Tensor:
        parts = written(layer, x, w, causal)
        return einsum("bhij,bhje,hed->bid", parts.matrix, parts.values, w["w_o"])

    if layer.mlp is None:
        return mixed(x)
    x = x + mixed(_norm(x, w["mixer_norm"]))
    return x + _feed_forward(_norm(x, w["mlp_norm"]), w)


def cached(layer: Layer, x: Tensor, w: Weights) -> tuple[Tensor, ...]:
    """What decoding keeps of the tokens of a layer's input [B, L, D]: tensors of the shapes of ``Mixer.cache``."""
    read = x if layer.mlp is None else _norm(x, w["mixer_norm"])
    return written(layer, read, w, causal=True).cache


def mixing_matrix(q: Tensor, k: Tensor, mask: Mask, scale: float) -> Tensor:
    """P = softmax(scale q k^T + mask) [B, H, n_q, n_k] of q [B, H, n_q, d] and k [B, H_kv, n_k, d]."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = scale * einsum("bhid,bhjd->bhij", q.double(), k.double())
    return scores.masked_fill(~kept(mask, q.shape[2], k.shape[2]), -torch.inf).softmax(-1)


def mix(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float) -> Tensor:
    """Y = P V [B, H, n_q, e], per head."""
    v = v.double().repeat_interleave(q.shape[1] // v.shape[1], 1)
    return einsum("bhij,bhje->bhie", mixing_matrix(q, k, mask, scale), v)


@template("attention")
def _attention(x: Tensor, w: Weights, m: Sizes, mask: Mask) -> Written:
    q, k, v = (einsum("bld,dhe->bhle", x, w[name]) for name in ("w_q", "w_k", "w_v"))
    if m.get("qk_norm"):
        q, k = _norm(q, w["q_norm"]), _norm(k, w["k_norm"])
    q, k = _turned(q), _turned(k)
    times = q.shape[1] // k.shape[1]
    return Written(mixing_matrix(q, k, mask, m["d"] ** -0.5), v.repeat_interleave(times, 1), (k, v))


@template("mla")
def _mla(x: Tensor, w: Weights, m: Sizes, mask: Mask) -> Written:
    """DeepSeek-V2, arXiv 2405.04434, equations (9) to (19); one rotary key for all heads."""
    if m.get("r_q"):
        q = einsum("blr,rhe->bhle", _norm(x @ w["w_qc"], w["q_norm"]), w["w_uq"])
    else:
        q = einsum("bld,dhe->bhle", x, w["w_q"])
    q_n, q_r = q[..., : m["d_n"]], _turned(q[..., m["d_n"] :])
    c, k_r = _norm(x @ w["w_c"], w["c_norm"]), _turned((x @ w["w_kr"])[:, None])
    k_n, values = (einsum("blr,rhe->bhle", c, w[name]) for name in ("w_uk", "w_uv"))
    k = torch.cat([k_n, k_r.expand(-1, k_n.shape[1], -1, -1)], -1)
    matrix = mixing_matrix(torch.cat([q_n, q_r], -1), k, mask, (m["d_n"] + m["d_r"]) ** -0.5)
    return Written(matrix, values, (torch.cat([c[:, None], k_r], -1),))


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + EPSILON).sqrt() * weight


def _turned(x: Tensor) -> Tensor:
    """Rotary positions of x [B, H, L, d]: pairs (i, i + d/2) as complex numbers, times exp(i angle)."""
    real, imaginary = x.chunk(2, -1)
    length, dim = x.shape[2:]
    rows = [[place * ROPE_BASE ** (-2 * i / dim) for i in range(dim // 2)] for place in range(length)]
    turn = torch.tensor(rows, dtype=torch.float64)
    turned = torch.complex(real, imaginary) * torch.polar(torch.ones_like(turn), turn)
    return torch.cat([turned.real, turned.imag], -1)


def _feed_forward(x: Tensor, w: Weights) -> Tensor:
    y = _silu(x @ w["gate"]) * (x @ w["up"]) if "gate" in w else _silu(x @ w["up"])
    return y @ w["down"]


def _silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))
