"""Recurrent cells against the modules of torch that they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from costmodel.subject import from_mixer
from validate.template import whole_layer

LENGTH, WIDTH, HIDDEN = 9, 5, 4


def _pair(name: str) -> tuple[nn.RNNBase, dict[str, Tensor]]:
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


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_one_head_is_the_module_of_torch(name: str) -> None:
    module, weights = _pair(name)
    (layer,) = from_mixer(name, HIDDEN, heads=1, head_dim=HIDDEN).layers
    x = torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)
    expected, _ = module(x)
    torch.testing.assert_close(whole_layer(layer, x, weights, causal=True), expected, rtol=0, atol=1e-12)
