"""State spaces against scipy.signal, which discretises and simulates them as real systems.

A complex entry z of a state and its conjugate are the two real entries Re z, Im z; what is read is twice a real part.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import signal
from torch import Tensor
from torch.nn import functional

from tests.validate.outside import LENGTH, Weights, against, close, heads, joined, layer_of, output

Array = NDArray[np.float64]


def transition(w: Weights, channel: int) -> Array:
    """dt A [2 N, 2 N] of a channel; with a part of low rank, -2 p p^T as p^* z of both halves is 2 Re(p^* z)."""
    real, turn = -w["log_decay"][channel].exp(), w["frequency"][channel]
    a = torch.cat([torch.cat([real.diag(), -turn.diag()], 1), torch.cat([turn.diag(), real.diag()], 1)])
    if "low_rank" in w:
        p = w["low_rank"][channel].T.flatten()
        a = a - 2 * torch.outer(p, p)
    return (w["log_step"][channel].exp() * a).numpy()


def response(a: Array, b: Array, c: Array) -> Tensor:
    """c a^l b of a discrete system, for all lags."""
    _, (y,) = signal.dimpulse((a, b[:, None], c[None], 0, 1.0), n=LENGTH + 1)
    return torch.from_numpy(y[1:, 0])


def held_taps(w: Weights) -> Tensor:
    """Impulse responses [channels, n] of diagonal systems under zero-order hold, ones as their input matrix."""
    taps = []
    for channel, read in enumerate(w["read"]):
        step, pairs = float(w["log_step"][channel].exp()), len(read)
        b, c = np.repeat([step, 0.0], pairs), torch.cat([2 * read[:, 0], -2 * read[:, 1]]).numpy()
        a, b, *_ = signal.cont2discrete((transition(w, channel), b[:, None], c[None], 0), 1.0, "zoh")
        taps.append(response(a, b[:, 0], c))
    return torch.stack(taps)


def bilinear_taps(w: Weights) -> Tensor:
    """Of systems with a part of low rank, whose read weights are C (1 - A'^n)."""
    taps = []
    for channel, read in enumerate(w["read"]):
        b = (w["log_step"][channel].exp() * w["write"][channel].T.flatten()).numpy()
        trained = torch.cat([2 * read[:, 0], -2 * read[:, 1]]).numpy()
        a, b, *_ = signal.cont2discrete((transition(w, channel), b[:, None], trained[None], 0), 1.0, "bilinear")
        c = trained @ np.linalg.inv(np.eye(len(a)) - np.linalg.matrix_power(a, LENGTH))
        taps.append(response(a, b[:, 0], c))
    return torch.stack(taps)


def convolved(taps: Tensor, x: Tensor) -> Tensor:
    """Each channel of x [B, channels, n] with its taps [channels, n]."""
    return torch.stack(
        [torch.from_numpy(signal.lfilter(own, [1.0], x[:, i], axis=1)) for i, own in enumerate(taps.numpy())], 1
    )


@against("scipy.signal cont2discrete and dimpulse", "s4", "s4d")
@pytest.mark.parametrize(("name", "made"), [("s4d", held_taps), ("s4", bilinear_taps)])
def test_filters_are_impulse_responses(name: str, made: Any) -> None:
    layer, w, x = layer_of(name, 4, pairs=3)
    y = convolved(made(w), x.mT).mT + w["skip"] * x
    y = functional.gelu(y, approximate="tanh")
    expected = functional.glu(torch.cat([y @ w["w_o"][:, 0], y @ w["w_g"][:, 0]], -1))
    close(expected, output(layer, x, w), 1e-9)


@against("scipy.signal cont2discrete and dimpulse", "h3")
def test_h3_has_a_filter_of_a_diagonal_system() -> None:
    layer, w, x = layer_of("h3", 4, channels=5, taps=3, pairs=2)
    q, k, v = (y[..., 0] for y in heads(x, w))
    shifted = functional.conv1d(functional.pad(k, (2, 0)), w["taps"], groups=5)
    values = shifted * v
    mixed = q * (convolved(held_taps(w), values) + w["skip"][:, None] * values)
    close(joined(mixed[..., None], w), output(layer, x, w), 1e-9)


@against("scipy.signal cont2discrete and dlsim", "s5")
def test_s5_is_one_system_of_many_inputs() -> None:
    """A state's own step makes its time run faster."""
    layer, w, x = layer_of("s5", 4, pairs=3, chunk=4)
    steps = w["log_step"].exp()
    real, turn = -w["log_decay"][:, 0].exp() * steps, w["frequency"][:, 0] * steps
    a = torch.cat([torch.cat([real.diag(), -turn.diag()], 1), torch.cat([turn.diag(), real.diag()], 1)])
    b = torch.cat([w["w_b"][..., part] * steps for part in (0, 1)], 1).T
    c = torch.cat([w["w_c"][:, part] for part in (0, 1)]).T
    none = np.zeros((4, 4))
    a, b, *_ = signal.cont2discrete((a.numpy(), b.numpy(), c.numpy(), none), 1.0, "zoh")
    late = functional.pad(x, (0, 0, 0, 1)).numpy()  # a state holds its token, dlsim's holds those before
    mixed = torch.stack([torch.from_numpy(signal.dlsim((a, b, c.numpy(), none, 1.0), u)[1][1:]) for u in late])
    y = functional.gelu(mixed + w["skip"] * x, approximate="tanh")
    close(y * (y @ w["w_g"]).sigmoid(), output(layer, x, w), 1e-9)
