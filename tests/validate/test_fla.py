"""Definitions against those of flash-linear-attention: its ``naive.py`` files, plain torch in float32.

The package itself cannot be imported without Triton, so that the files are run by themselves.
"""

from __future__ import annotations

from importlib.metadata import distribution
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

import pytest
import torch
from torch import Tensor

from costmodel.written import decayed, delta_matrix, low_rank_matrix
from tests.validate.test_outside import BATCH, LENGTH, close, layer_of

H, D, E = 3, 5, 4


def naive(name: str) -> ModuleType:
    """A file of the package fla.ops, such as ``gla/naive``."""
    path = distribution("fla-core").locate_file(f"fla/ops/{name}.py")
    spec = spec_from_file_location(f"fla_{name.replace('/', '_')}", str(path))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawn(*sizes: int) -> list[Tensor]:
    """Random tensors [B, H, n, size]."""
    random = torch.Generator().manual_seed(len(sizes))
    return [torch.randn(BATCH, H, LENGTH, size, generator=random, dtype=torch.float64) for size in sizes]


def units(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=-1)


def swapped(*tensors: Tensor) -> list[Tensor]:
    """[B, n, H, ...] of [B, H, n, ...], or back."""
    return [x.transpose(1, 2) for x in tensors]


SCALE = D**-0.5


@pytest.mark.parametrize("per_channel", [True, False])
def test_linear_attention_with_decay(per_channel: bool) -> None:
    """GLA, which HGRN2 is with keys 1 - f; one decay a head is Mamba-2's, RetNet's and Lightning attention's."""
    q, k, v, raw = drawn(D, D, E, D if per_channel else 1)
    decay = torch.nn.functional.logsigmoid(raw)
    expected = decayed(torch, SCALE * q, k, decay) @ v
    if per_channel:
        found = naive("gla/naive").naive_recurrent_gla(*swapped(q, k, v, decay))[0]
    else:
        found = naive("simple_gla/naive").naive_recurrent_simple_gla(*swapped(q, k, v, decay[..., 0]))[0]
    close(found.transpose(1, 2), expected)


def test_retention() -> None:
    q, k, v = drawn(D, D, E)
    gamma = 1 - 2.0 ** (-5 - torch.arange(H, dtype=torch.float64))
    decay = gamma.log().view(H, 1, 1).expand(BATCH, H, LENGTH, 1)
    close(naive("retention/naive").naive_retention(q, k, v), decayed(torch, SCALE * q, k, decay) @ v)


@pytest.mark.parametrize("kind", ["none", "one a head", "one a channel"])
def test_the_delta_rule(kind: str) -> None:
    """DeltaNet, Gated DeltaNet and Kimi delta attention."""
    q, k, v, raw, raw_decay = drawn(D, D, E, 1, D if kind == "one a channel" else 1)
    k, beta = units(k), raw.sigmoid()
    decay = torch.zeros_like(raw) if kind == "none" else torch.nn.functional.logsigmoid(raw_decay)
    expected = delta_matrix(torch, SCALE * q, k, beta, decay) @ v
    if kind == "none":
        found = naive("delta_rule/naive").delta_rule_recurrence(q, k, v, beta)[0]
    elif kind == "one a head":
        given = swapped(q, k, v, beta[..., 0], decay[..., 0])
        found = naive("gated_delta_rule/naive").naive_recurrent_gated_delta_rule(*given)[0].transpose(1, 2)
    else:
        found = naive("kda/naive").naive_recurrent_kda(*swapped(q, k, v, decay, beta[..., 0]))[0].transpose(1, 2)
    close(found, expected)


def test_a_transition_diagonal_plus_low_rank() -> None:
    """That of RWKV-7; what is taken away is added with the opposite sign."""
    q, k, v, z, raw, raw_decay = drawn(D, D, E, D, D, D)
    z, decay = units(z), torch.nn.functional.logsigmoid(raw_decay)
    b = z * raw.sigmoid()
    expected = low_rank_matrix(torch, SCALE * q, k, z, b, decay) @ v
    given = (x.float() for x in (q, k, v, -z, b, decay))
    close(naive("generalized_delta_rule/dplr/naive").dplr_recurrence(*given)[0], expected)


def test_rwkv6_reads_the_state_before_and_has_a_bonus() -> None:
    """The recurrence within our layer: its decay and bonus, no token shift, gate, norm or output projection."""
    r, k, v, raw = drawn(D, D, E, D)
    bonus, decay = torch.randn(H, D, dtype=torch.float64), -raw.exp()
    before = decayed(torch, torch.cat((r[:, :, 1:], r[:, :, :1]), 2), k, decay)
    matrix = torch.cat((torch.zeros_like(before[:, :, :1]), before[:, :, :-1]), 2)
    expected = matrix @ v + (r * k * bonus[:, None]).sum(-1, True) * v
    found = naive("rwkv6/recurrent_naive").naive_recurrent_rwkv6(r, k, v, decay, bonus, scale=1.0)[0]
    close(found, expected)


def test_log_linear_attention() -> None:
    """With levels for all lengths of the past, the last of which stands for what is older than the others."""
    layer, w, x = layer_of("log-linear-mamba2", 8, heads=H, kv_heads=H, chunk_levels=2, state_levels=2)
    q, k, v, raw = drawn(D, D, E, 1)
    decay = torch.nn.functional.logsigmoid(raw)
    expected = (decayed(torch, q, k, decay) * layer.mixer.written_weights(torch, x, w, None)) @ v
    scales = torch.nn.functional.softplus(torch.einsum("bld,dhe->bhle", x, w["w_l"]) * w["level"][:, None])
    found = naive("log_linear_attn/naive").naive_log_linear_attn(*swapped(q, k, v, decay[..., 0], scales))
    close(found.transpose(1, 2), expected)
