"""Definitions against torch's own attention, cells, convolutions and linear layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from costmodel.subject import from_mixer
from tests.validate.outside import LENGTH, Weights, against, close, give, heads, joined, layer_of, output
from validate.template import whole_layer

EXACT = 1e-10


def attention(q: Tensor, k: Tensor, v: Tensor, scores: Tensor | None = None) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=scores)


def averaged(scores: Tensor, v: Tensor) -> Tensor:
    """Softmax of scores [..., n, n] times values, by an attention whose queries and keys are zeros."""
    none = torch.zeros_like(v)
    return attention(none, none, v, scores)


@against("torch scaled_dot_product_attention", "linformer")
def test_linformer_is_attention_to_projected_keys() -> None:
    layer, w, x = layer_of("linformer", 8, heads=2, head_dim=4, projected=5)
    q, k, v = heads(x, w)
    close(joined(attention(q, w["w_e"].T @ k, w["w_f"].T @ v), w), output(layer, x, w, causal=False), EXACT)


def dense_scores(x: Tensor, w: Weights) -> Tensor:
    hidden = functional.relu(heads(x, w, ["w_1"])[0] + w["b_1"][:, None])
    return hidden @ w["w_2"] + w["b_2"][:, None]


SCORES = {
    "synthesizer-dense": dense_scores,
    "synthesizer-random": lambda x, w: w["r"],
    "synthesizer-factorised": lambda x, w: w["r_1"] @ w["r_2"].mT,
}


@against("torch scaled_dot_product_attention with scores as its bias", *SCORES)
@pytest.mark.parametrize("name", SCORES)
def test_synthesizers_are_attention_without_queries(name: str) -> None:
    layer, w, x = layer_of(name, 8, heads=2, value_dim=4)
    mixed = averaged(SCORES[name](x, w).expand(len(x), 2, LENGTH, LENGTH), heads(x, w, ["w_v"])[0])
    close(joined(mixed, w), output(layer, x, w, causal=False), EXACT)


def near_biases(w: Weights) -> Tensor:
    """[n, n] of biases [n, 2 reach + 1] of the places around a token; 0 elsewhere."""
    reach = w["biases"].shape[1] // 2
    wide = torch.zeros(LENGTH, LENGTH + 2 * reach, dtype=torch.float64)
    for i, own in enumerate(w["biases"]):
        wide[i, i : i + len(own)] = own
    return wide[:, reach:-reach]


BIASES = {
    "aft-full": lambda w: w["left"] @ w["right"].T,
    "aft-local": near_biases,
    "aft-simple": lambda w: torch.zeros(LENGTH, LENGTH, dtype=torch.float64),
}


@against("torch scaled_dot_product_attention with scores as its bias", *BIASES)
@pytest.mark.parametrize("name", BIASES)
def test_attention_free_transformers_weigh_every_channel(name: str) -> None:
    """Each channel is a head of width 1, whose score of a pair is the key's entry and the bias of the places."""
    layer, w, x = layer_of(name, 8, heads=2, value_dim=3, **({"near": 3} if name == "aft-local" else {}))
    q, k, v = heads(x, w)
    scores = k.mT[..., None, :] + BIASES[name](w)
    mixed = torch.stack([averaged(scores[:, :, c], v[..., c : c + 1])[..., 0] for c in range(3)], -1)
    close(joined(q.sigmoid() * mixed, w), output(layer, x, w, causal=False), EXACT)


@against("torch Conv1d and GELU", "convmixer")
@torch.no_grad()
def test_convmixer_is_a_depthwise_and_a_pointwise_convolution() -> None:
    layer, w, x = layer_of("convmixer", 6, taps=5)
    module = nn.Sequential(
        nn.Conv1d(6, 6, 5, groups=6, padding="same", bias=False), nn.GELU("tanh"), nn.Conv1d(6, 6, 1, bias=False)
    ).double()
    give(module, **{"0__weight": w["taps"], "2__weight": w["w_o"].T})
    close(module(x.mT).mT, output(layer, x, w, causal=False), EXACT)


@against("torch Linear and GELU", "mlp-mixer")
@torch.no_grad()
def test_mlp_mixer_is_an_mlp_along_the_sequence() -> None:
    layer, w, x = layer_of("mlp-mixer", 6, hidden=5)
    inward, outward = nn.Linear(LENGTH, 5, bias=False), nn.Linear(5, LENGTH, bias=False)
    module = nn.Sequential(inward, nn.GELU("tanh"), outward).double()
    give(module, **{"0__weight": w["w_1"].T, "2__weight": w["w_2"]})
    close(module(x.mT).mT, output(layer, x, w, causal=False), EXACT)


@against("torch Linear", "resmlp")
@torch.no_grad()
def test_resmlp_is_a_linear_layer_along_the_sequence() -> None:
    layer, w, x = layer_of("resmlp", 6)
    module = nn.Linear(LENGTH, LENGTH, bias=False).double()
    give(module, weight=w["mixing"])
    close(module(x.mT).mT, output(layer, x, w, causal=False), EXACT)


@against("torch LayerNorm, Linear and GELU", "gmlp")
@torch.no_grad()
def test_the_gate_of_gmlp_is_a_linear_layer_along_the_sequence() -> None:
    layer, w, x = layer_of("gmlp", 6, gate_dim=4)
    norm, mixing = nn.LayerNorm(4).double(), nn.Linear(LENGTH, LENGTH).double()
    give(norm, weight=w["norm"], bias=w["shift"])
    give(mixing, weight=w["w"], bias=w["b"])
    u, v = (functional.gelu(x @ w[name], approximate="tanh") for name in ("w_u", "w_v"))
    close((u * mixing(norm(v).mT).mT) @ w["w_o"], output(layer, x, w, causal=False), EXACT)


# Recurrent cells ------------------------------------------------------------------------------------------------------

WIDTH, HIDDEN = 5, 4


def cell(name: str) -> tuple[nn.RNNBase, Weights]:
    """A module of torch, and the same weights as those of a mixer, whose output projection changes nothing."""
    torch.manual_seed(0)
    module: nn.RNNBase = {"lstm": nn.LSTM, "gru": nn.GRU}[name](WIDTH, HIDDEN, batch_first=True, dtype=torch.float64)
    inward, recurrent, bias, inner = (w.detach().clone() for w in module.all_weights[0])
    weights = {
        "w_x": inward.T.reshape(WIDTH, 1, -1),
        "w_h": recurrent.T.reshape(1, HIDDEN, -1),
        "w_o": torch.eye(HIDDEN, dtype=torch.float64)[None],
    }
    if name == "gru":  # the candidate's inner bias is multiplied with the reset gate
        weights["b_n"] = inner[None, 2 * HIDDEN :].clone()
        inner[2 * HIDDEN :] = 0
    return module, {**weights, "b": (bias + inner)[None]}


@against("torch LSTM", "lstm")
@against("torch GRU", "gru")
@torch.no_grad()
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_one_head_of_a_cell_is_the_module_of_torch(name: str) -> None:
    module, weights = cell(name)
    (layer,) = from_mixer(name, HIDDEN, heads=1, head_dim=HIDDEN).layers
    x = torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(whole_layer(layer, x, weights, causal=True), module(x)[0], rtol=0, atol=1e-12)
