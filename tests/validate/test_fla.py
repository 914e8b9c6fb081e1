"""Definitions against those of flash-linear-attention: its ``naive.py`` files, plain torch in float32."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from costmodel.written import decayed, delta_matrix, low_rank_matrix
from tests.validate.outside import (
    BATCH,
    LENGTH,
    against,
    close,
    fla,
    heads,
    joined,
    layer_of,
    module_of,
    output,
    rotated,
)

H, D, E = 3, 5, 4


def drawn(*sizes: int) -> list[Tensor]:
    """Random tensors [B, H, n, size]."""
    random = torch.Generator().manual_seed(len(sizes))
    return [torch.randn(BATCH, H, LENGTH, size, generator=random, dtype=torch.float64) for size in sizes]


def units(x: Tensor) -> Tensor:
    return functional.normalize(x, dim=-1)


def swapped(*tensors: Tensor) -> list[Tensor]:
    """[B, n, H, ...] of [B, H, n, ...], or back."""
    return [x.transpose(1, 2) for x in tensors]


SCALE = D**-0.5


@against("fla naive_recurrent_gla (recurrence)", "gla", "hgrn2")
@against("fla naive_recurrent_simple_gla (recurrence)", "mamba2")
@pytest.mark.parametrize("per_channel", [True, False])
def test_linear_attention_with_decay(per_channel: bool) -> None:
    """GLA, which HGRN2 is with keys 1 - f; one decay a head is Mamba-2's, RetNet's and Lightning attention's."""
    q, k, v, raw = drawn(D, D, E, D if per_channel else 1)
    decay = functional.logsigmoid(raw)
    expected = decayed(torch, SCALE * q, k, decay) @ v
    if per_channel:
        found = fla("ops/gla/naive").naive_recurrent_gla(*swapped(q, k, v, decay))[0]
    else:
        found = fla("ops/simple_gla/naive").naive_recurrent_simple_gla(*swapped(q, k, v, decay[..., 0]))[0]
    close(found.transpose(1, 2), expected)


@against("fla naive_retention (recurrence)", "retnet")
def test_retention() -> None:
    q, k, v = drawn(D, D, E)
    gamma = 1 - 2.0 ** (-5 - torch.arange(H, dtype=torch.float64))
    decay = gamma.log().view(H, 1, 1).expand(BATCH, H, LENGTH, 1)
    close(fla("ops/retention/naive").naive_retention(q, k, v), decayed(torch, SCALE * q, k, decay) @ v)


@against("fla delta_rule_recurrence (recurrence)", "deltanet")
@against("fla naive_recurrent_gated_delta_rule (recurrence)", "gated-deltanet")
@against("fla naive_recurrent_kda (recurrence)", "kda")
@pytest.mark.parametrize("kind", ["none", "one a head", "one a channel"])
def test_the_delta_rule(kind: str) -> None:
    """DeltaNet, Gated DeltaNet and Kimi delta attention."""
    q, k, v, raw, raw_decay = drawn(D, D, E, 1, D if kind == "one a channel" else 1)
    k, beta = units(k), raw.sigmoid()
    decay = torch.zeros_like(raw) if kind == "none" else functional.logsigmoid(raw_decay)
    expected = delta_matrix(torch, SCALE * q, k, beta, decay) @ v
    if kind == "none":
        found = fla("ops/delta_rule/naive").delta_rule_recurrence(q, k, v, beta)[0]
    elif kind == "one a head":
        given = swapped(q, k, v, beta[..., 0], decay[..., 0])
        found = fla("ops/gated_delta_rule/naive").naive_recurrent_gated_delta_rule(*given)[0].transpose(1, 2)
    else:
        found = fla("ops/kda/naive").naive_recurrent_kda(*swapped(q, k, v, decay, beta[..., 0]))[0].transpose(1, 2)
    close(found, expected)


@against("fla dplr_recurrence (recurrence)", "rwkv7")
def test_a_transition_diagonal_plus_low_rank() -> None:
    """That of RWKV-7; what is taken away is added with the opposite sign."""
    q, k, v, z, raw, raw_decay = drawn(D, D, E, D, D, D)
    z, decay = units(z), functional.logsigmoid(raw_decay)
    b = z * raw.sigmoid()
    expected = low_rank_matrix(torch, SCALE * q, k, z, b, decay) @ v
    given = (x.float() for x in (q, k, v, -z, b, decay))
    close(fla("ops/generalized_delta_rule/dplr/naive").dplr_recurrence(*given)[0], expected)


@against("fla naive_recurrent_rwkv6 (recurrence)", "rwkv6")
def test_rwkv6_reads_the_state_before_and_has_a_bonus() -> None:
    """The recurrence within our layer: its decay and bonus, no token shift, gate, norm or output projection."""
    r, k, v, raw = drawn(D, D, E, D)
    bonus, decay = torch.randn(H, D, dtype=torch.float64), -raw.exp()
    before = decayed(torch, torch.cat((r[:, :, 1:], r[:, :, :1]), 2), k, decay)
    matrix = torch.cat((torch.zeros_like(before[:, :, :1]), before[:, :, :-1]), 2)
    expected = matrix @ v + (r * k * bonus[:, None]).sum(-1, True) * v
    found = fla("ops/rwkv6/recurrent_naive").naive_recurrent_rwkv6(r, k, v, decay, bonus, scale=1.0)[0]
    close(found, expected)


@against("fla naive_log_linear_attn (recurrence)", "log-linear-mamba2")
def test_log_linear_attention() -> None:
    """With levels for all lengths of the past, the last of which stands for what is older than the others."""
    layer, w, x = layer_of("log-linear-mamba2", 8, heads=H, kv_heads=H, chunk_levels=2, state_levels=2)
    q, k, v, raw = drawn(D, D, E, 1)
    decay = functional.logsigmoid(raw)
    expected = (decayed(torch, q, k, decay) * layer.mixer.written_weights(torch, x, w, None)) @ v
    scales = functional.softplus(torch.einsum("bld,dhe->bhle", x, w["w_l"]) * w["level"][:, None])
    found = fla("ops/log_linear_attn/naive").naive_log_linear_attn(*swapped(q, k, v, decay[..., 0], scales))
    close(found.transpose(1, 2), expected)


@against("fla naive_recurrent_rwkv6, with one decay for all tokens", "rwkv5")
def test_rwkv5() -> None:
    layer, w, x = layer_of("rwkv5", H * D, heads=H, head_dim=D)
    before = functional.pad(x, (0, 0, 1, -1))
    r, k, v, gate = (heads(torch.lerp(x, before, w[f"mix_{name}"]), w, [f"w_{name}"])[0] for name in "rkvg")
    decay = -w["decay"].exp()[:, None].expand_as(k)
    mixed = fla("ops/rwkv6/recurrent_naive").naive_recurrent_rwkv6(r, k, v, decay, w["bonus"], scale=1.0)[0]
    normed = functional.layer_norm(mixed, (D,), eps=1e-5) * w["norm"][:, None] + w["norm_b"][:, None]
    close(joined(normed * functional.silu(gate), w), output(layer, x, w))


@against("fla naive_parallel_based", "based")
def test_taylor_features() -> None:
    layer, w, x = layer_of("based", 8, heads=H, head_dim=D, value_dim=E)
    close(joined(fla("ops/based/naive").naive_parallel_based(*heads(x, w)), w), output(layer, x, w))


@against("fla naive_recurrent_linear_attn", "linear-attention")
def test_linear_attention() -> None:
    layer, w, x = layer_of("linear-attention", 8, heads=H, head_dim=D, value_dim=E)
    q, k, v = heads(x, w)
    given = swapped(functional.elu(q) + 1, functional.elu(k) + 1, v)
    mixed = fla("ops/linear_attn/naive").naive_recurrent_linear_attn(*given, scale=1.0, normalize=True)[0]
    close(joined(mixed.transpose(1, 2), w), output(layer, x, w))


@against("fla ttt_linear, with q + LN(q W) for what is read", "ttt-linear")
def test_a_linear_model_trained_at_test_time() -> None:
    """Theirs reads q W + LN(q W), the paper's code q + LN(q W); rates of theirs are those of the row alone."""
    layer, w, x = layer_of("ttt-linear", 8, heads=H, head_dim=D, chunk=4)
    w["w_r"] = torch.zeros_like(w["w_r"])
    places = (1 / torch.arange(1, 5) + w["places"]).clamp(min=0).repeat(LENGTH // 4)
    rate = (w["b_r"].sigmoid() / D)[:, None, None] * places[:, None]
    given = *heads(x, w), w["norm"], w["norm_b"], rate.expand(BATCH, -1, -1, -1)
    start = w["start_0"].expand(BATCH, -1, -1, -1), w["start_b_0"][:, None].expand(BATCH, -1, -1, -1)
    found = fla("ops/ttt/naive", mended={"o_i + (o_i - mean)": "q_i + (o_i - mean)"}).ttt_linear(
        *(y.float() for y in given), 1.0, 1e-5, 4, *(y.float() for y in start), False
    )[0]
    normed = functional.layer_norm(found, (D,), eps=1e-5) * w["post"][:, None] + w["post_b"][:, None]
    close(joined(normed, w), output(layer, x, w))


@against("fla titans_linear, with the gradient's brackets, and q + LN(q M) for what is read", "titans")
def test_a_memory_trained_with_momentum() -> None:
    layer, w, x = layer_of("titans", 8, heads=H, head_dim=D, taps=3, chunk=4)
    q, k, v = (convolved(y, w[f"taps_{name}"]) for y, name in zip(heads(x, w), "qkv", strict=True))
    q, k = (y * (y.square().sum(-1, True) + 1e-5).rsqrt() for y in (q, k))
    raw = heads(x, w, ("w_theta", "w_alpha", "w_eta"))
    biases = (w[f"b_{name}"][:, None, None] for name in ("theta", "alpha", "eta"))
    theta, alpha, eta = ((y + bias).sigmoid() for y, bias in zip(raw, biases, strict=True))
    mended = {
        "D * grad - grad.sum(-1, keepdim=True) / (rstd * D)": "(D * grad - grad.sum(-1, keepdim=True)) / (rstd * D)",
        "output_t + (output_t - mean)": "q_t + (output_t - mean)",
    }
    needs = {"fla.ops.titans.log_impl": fla("ops/titans/log_impl")}
    given = q, k, v, w["inner"], w["inner_b"], theta / D, alpha, eta
    start = w["start"].expand(BATCH, -1, -1, -1)
    found = fla("ops/titans/naive", needs, mended).titans_linear(
        *(y.float() for y in given), 1e-5, 4, start.float(), False
    )[0]
    (gate,) = heads(x, w, ["w_g"])
    close(
        joined(functional.rms_norm(found.double(), (D,), w["norm"], 1e-5) * functional.silu(gate), w),
        output(layer, x, w),
    )


def convolved(x: Tensor, taps: Tensor) -> Tensor:
    """silu of the causal convolution of x [B, H, n, d] with taps [H, d, K]."""
    channels = functional.pad(x.mT.flatten(1, 2), (taps.shape[2] - 1, 0))
    y = functional.conv1d(channels, taps.flatten(0, 1)[:, None], groups=channels.shape[1])
    return functional.silu(y).unflatten(1, taps.shape[:2]).mT


# Attention to chosen blocks, which calls kernels of flash-attn --------------------------------------------------------


def flash(q: Tensor, k: Tensor, v: Tensor, causal: bool, window_size: tuple[int, int]) -> Tensor:
    """As flash-attn's ``flash_attn_func``: [B, n, H, d]; a query sees so many keys before itself, and no later ones."""
    assert causal and window_size[1] == 0
    apart = torch.arange(q.shape[1])[:, None] - torch.arange(k.shape[1])
    seen = (apart >= 0) & (apart <= window_size[0])
    mixed = functional.scaled_dot_product_attention(*swapped(q, k, v), attn_mask=seen, enable_gqa=True)
    return mixed.transpose(1, 2)


@against("fla naive_nsa", "nsa")
def test_native_sparse_attention() -> None:
    """Of six blocks a query sees its own, the one before, the first, and one more."""
    sizes = {"heads": 32, "kv_heads": 2, "head_dim": 4, "block": 2, "chosen": 4, "near": 3}
    layer, w, x = layer_of("nsa", 8, **sizes)
    q, k, v = heads(x, w)
    gates = torch.einsum("bld,dhi->iblh", x, w["w_g"]).sigmoid()
    needs = {
        "fla.ops.utils": module_of(prepare_chunk_offsets=None),
        "fla.ops.utils.pooling": module_of(mean_pooling=lambda x, size, _: x.unflatten(1, (-1, size)).mean(2)),
        "flash_attn": module_of(flash_attn_func=flash, flash_attn_varlen_func=None),
    }
    given = swapped(*rotated(q, k), v)
    mixed = fla("ops/nsa/naive", needs).naive_nsa(*given, *gates, block_counts=4, block_size=2, window_size=3)
    close(joined(mixed.transpose(1, 2), w), output(layer, x, w))


def flash_of_parts(q: Tensor, k: Tensor, v: Tensor, causal: bool, softmax_scale: float, **parts: Any) -> Any:
    """As flash-attn's forward kernel for sequences one after the other: [tokens, H, d], and [H, tokens] of sums."""
    found = []
    for rows, columns in zip(*(parts[f"cu_seqlens_{name}"].diff().tolist() for name in "qk"), strict=True):
        (own, q), (keys, k), (values, v) = (y.tensor_split([n]) for y, n in ((q, rows), (k, columns), (v, columns)))
        scores = torch.einsum("ihd,jhd->hij", own, keys) * softmax_scale
        scores = scores + torch.full_like(scores, -torch.inf).triu(1) if causal else scores
        found.append((torch.einsum("hij,jhd->ihd", scores.softmax(-1), values), scores.logsumexp(-1)))
    outs, sums = zip(*found, strict=True)
    return torch.cat(outs), torch.cat(sums, 1), None, None


@against("fla parallel_moba", "moba")
@pytest.mark.filterwarnings("ignore:index_reduce")
def test_mixture_of_block_attention() -> None:
    """Whose sequences stand one after the other."""
    layer, w, x = layer_of("moba", 8, heads=4, kv_heads=2, head_dim=4, block=3, chosen=3)
    q, k, v = heads(x, w)
    q, k, v = (y.repeat_interleave(4 // y.shape[1], 1) for y in (*rotated(q, k), v))
    triton = MagicMock(cdiv=lambda x, size: -(-x // size))
    index = fla(
        "ops/utils/index",
        {
            "triton": triton,
            "triton.language": triton.language,
            "fla.utils": module_of(tensor_cache=lambda function: function, autotune_cache_kwargs={}),
        },
    )
    needs = {
        "fla.ops.utils.index": index,
        "flash_attn": module_of(flash_attn_varlen_func=flash_of_parts),
        "flash_attn.flash_attn_interface": module_of(
            _flash_attn_varlen_forward=flash_of_parts, _flash_attn_varlen_backward=None
        ),
    }
    starts = torch.arange(0, BATCH * LENGTH + 1, LENGTH, dtype=torch.int32)
    given = (y.flatten(0, 1)[None].float() for y in swapped(q, k, v))
    mixed = fla("ops/moba/parallel", needs).parallel_moba(*given, starts, LENGTH, chunk_size=3, topk=3)
    close(joined(mixed[0].unflatten(0, (BATCH, LENGTH)).transpose(1, 2), w), output(layer, x, w))


@against("fla PositionalEmbedding and fft_conv, with time that ends before 1", "hyena")
def test_implicit_long_convolution() -> None:
    """The filter's network, of sines, is torch's here. Their time is l / (n - 1); their convolution adds its input."""
    layer, w, x = layer_of("hyena", 8, channels=6, taps=3, filter_width=5, bands=1, longest=LENGTH)
    q, k, v = (
        shifted_sums(y, w[f"taps_{name}"]) for y, name in zip(heads(x, w, ("w_q", "w_k", "w_v")), "qkv", strict=True)
    )
    long = fla("modules/long_conv")
    features = long.PositionalEmbedding(3, LENGTH)(LENGTH)[0].double()
    features[:, 0] *= (LENGTH - 1) / LENGTH
    hidden = features @ w["filter_in"] + w["filter_bias"]
    for inner, bias in zip(w["filter_mid"], w["filter_mid_bias"], strict=True):
        hidden = torch.sin(hidden * w["filter_frequency"]) @ inner + bias
    made = torch.sin(hidden * w["filter_frequency"]) @ w["filter_out"].T
    taps = made.T * torch.exp(-w["decay"].abs()[:, None] * features[:, 0])
    values = (k * v)[..., 0]
    mixed = long.fft_conv(values, taps, None, gelu=False) - values
    close(joined(q * (mixed + w["skip"][:, None] * values)[..., None], w), output(layer, x, w))


def shifted_sums(x: Tensor, taps: Tensor) -> Tensor:
    """The causal convolution of x [B, H, n, 1] with taps [H, 1, K]."""
    return functional.conv1d(functional.pad(x[..., 0], (taps.shape[2] - 1, 0)), taps, groups=taps.shape[0])[..., None]
