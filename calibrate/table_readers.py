"""What a row of a published table says was run: readers by the name of the kernel there."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from costmodel.carries.monarch import LONGEST

Row = Mapping[str, str]
#: What a reader finds in a row: the kernel, its sizes, and how much of the row's unit a second would do it.
Found = tuple[str, dict[str, float], float]

TIME = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
RATE = {"TFLOP/s": 1e12, "GB/s": 1e9, "Gelem/s": 1e9}

#: "large" in a table of bus bandwidths, with the size not stated.
LARGE = 2**30

#: What stands for a number; a name alone is true.
WORDS = {"": 1.0, "True": 1.0, "False": 0.0}

#: Recurrences of flash-linear-attention by their names there, and the cases that they are.
RECURRENCES = {"retention": "retention", "gla": "gla", "gdn": "gated_delta"}

LLAMA = {"H": 32, "H_kv": 8, "d": 128}
VOCABULARY = 128256


def sizes_in(text: str) -> dict[str, float]:
    """Sizes as tables write them: ``B=1,S=512,causal=False`` or ``2048x2048x13312``.

    >>> sizes_in("B=1,S=512,H=32,d=128,causal")
    {'B': 1.0, 'S': 512.0, 'H': 32.0, 'd': 128.0, 'causal': 1.0}
    """
    if re.fullmatch(r"\d+x\d+x\d+", text):
        return dict(zip("MNK", map(float, text.split("x")), strict=True))
    sizes: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, number = part.partition("=")
        sizes[name.strip()] = WORDS[number] if number in WORDS else float(number)
    return sizes


def timed(row: Row, amount: float) -> tuple[float, str]:
    """Seconds, and how they are known, of a row that says them or how much of ``amount`` a second is done."""
    value, unit = float(row["value"]), row["unit"]
    if unit in TIME:
        return value * TIME[unit], "time"
    return amount / (value * RATE[unit]), "rate of arithmetic" if unit == "TFLOP/s" else "rate of bytes"


def _gemm(row: Row) -> Found:
    """A best of square products of 1k to 10k is taken for the largest power of two among them."""
    shape = row["shape_or_bytes"]
    sizes = dict.fromkeys("MKN", 8192.0) if shape.startswith("best of") else sizes_in(shape)
    return "gemm", {name: sizes[name] for name in "MKN"}, 2 * sizes["M"] * sizes["K"] * sizes["N"]


def pairs(s: Mapping[str, float]) -> float:
    """FLOP of a forward pass as benchmarks of attention count them: half of all pairs under a causal mask."""
    return 4 * s["B"] * s["H"] * s["n_q"] * s["n_k"] * s["d"] * (0.5 if s["causal"] else 1)


def _attention(kernel: str) -> Callable[[Row], Found]:
    def read(row: Row) -> Found:
        given = {"B": 4.0, "H": 32.0, "causal": 0.0} | sizes_in(row["shape_or_bytes"])
        sizes = {"B": given["B"], "H": given["H"], "H_kv": given.get("Hkv", given["H"])}
        sizes |= {"n_q": given["S"], "n_k": given["S"], "d": given["d"], "causal": given["causal"]}
        return kernel, sizes, pairs(sizes)

    return read


def _chunk(row: Row) -> Found:
    given = sizes_in(row["shape_or_bytes"])
    sizes = {"B": 1.0, **LLAMA, "n_q": given["q"], "n_k": given["q"] + given["kv_prefix"], "causal": 1.0}
    return "attention", sizes, 0.0


def _decode(row: Row) -> Found:
    given = sizes_in(row["shape_or_bytes"])
    return "decode_attention", {"B": given["B"], **LLAMA, "n_k": given["kv"]}, 0.0


def _tokens(kernel: str, **more: float) -> Callable[[Row], Found]:
    def read(row: Row) -> Found:
        given = sizes_in(row["shape_or_bytes"])
        width = {"F": given["hidden"]} if kernel == "swiglu" else {"D": given["hidden"]} if kernel != "rope" else {}
        return kernel, {"n": given["tokens"], **width, **more}, 0.0

    return read


def _rows(kernel: str) -> Callable[[Row], Found]:
    """Throughput in elements."""

    def read(row: Row) -> Found:
        rows, _, columns = row["shape_or_bytes"].partition("x")
        sizes = {"n": float(rows), "D": float(columns)}
        return kernel, sizes, sizes["n"] * sizes["D"]

    return read


def _elements(kernel: str, bytes_each: float) -> Callable[[Row], Found]:
    def read(row: Row) -> Found:
        n = float(row["shape_or_bytes"].removesuffix(" elements"))
        return kernel, {"n": n}, n * bytes_each

    return read


def _large_copy(row: Row) -> Found:
    """Bytes read and written of a copy far larger than any cache."""
    return "copy", {"n": LARGE / 2}, 2.0 * LARGE


def _collective(kernel: str, bus_factor: Callable[[float], float]) -> Callable[[Row], Found]:
    """A size that is not stated is large."""

    def read(row: Row) -> Found:
        text = row["shape_or_bytes"]
        size = float(text) if text.isdigit() else float(LARGE)
        ranks = float(row["num_gpus"])
        return kernel, {"P": ranks, "bytes": size}, size * bus_factor(ranks)

    return read


def _part(ranks: float) -> float:
    return (ranks - 1) / ranks


def _fla(kernel: str) -> Callable[[Row], Found]:
    """A kernel of flash-linear-attention: ``B=1,T=8192,H=96,D=128``."""

    def read(row: Row) -> Found:
        given = sizes_in(row["shape_or_bytes"])
        return kernel, {"B": given["B"], "H": given["H"], "n": given["T"], "d": given["D"]}, 0.0

    return read


def _fla_attention(kernel: str) -> Callable[[Row], Found]:
    """FlashAttention as that is compared with it: causal."""

    def read(row: Row) -> Found:
        given = sizes_in(row["shape_or_bytes"])
        sizes = {"B": given["B"], "H": given["H"], "H_kv": given["H"], "n_q": given["T"], "n_k": given["T"]}
        return kernel, {**sizes, "d": given["D"], "causal": 1.0}, 0.0

    return read


def _served(row: Row) -> dict[str, float]:
    """Sizes of a layer in service, ``Hk=16,Hv=32,dk=dv=128``: of two names for one size, the last."""
    return {name: float(size) for name, size in re.findall(r"(\w+)=(\d+)", row["shape_or_bytes"])}


def _served_delta(row: Row) -> Found:
    """Each head of keys serves several of values."""
    given = _served(row)
    return "chunk_gated_delta", {"B": given["B"], "H": given["Hv"], "n": given["T"], "d": given["dv"]}, 0.0


def _served_convolution(row: Row) -> Found:
    """Over channels of queries, keys and values of a gated delta net, or of x, B and C of Mamba-2."""
    given = _served(row)
    if "P" in given:
        channels = given["H"] * given["P"] + 2 * given["G"] * given["N"]
    else:
        channels = (2 * given["Hk"] + given["Hv"]) * given["dv"]
    return "short_convolution", {"B": given["B"], "C": channels, "n": given["T"], "K": given["d_conv"]}, 0.0


def _depthwise(row: Row) -> Found:
    given = sizes_in(row["shape_or_bytes"])
    return "depthwise", {"B": given["B"], "C": given["D"], "n": given["L"], "K": 5.0}, 0.0


def _long_convolution(monarch: bool) -> Callable[[Row], Found]:
    """As FlashFFTConv's benchmark has it, where H is channels; its own kernels are of one kind up to 32Ki tokens."""

    def read(row: Row) -> Found:
        given = sizes_in(row["shape_or_bytes"])
        kernel = "fft_convolution"
        if monarch:
            kernel = "monarch_convolution" if given["L"] <= LONGEST["monarch"] else "monarch_outer_convolution"
        return kernel, {"B": given["B"], "C": given["H"], "n": given["L"]}, 0.0

    return read


#: Readers by the name of a kernel in a table.
READERS: dict[str, Callable[[Row], Found]] = {
    "gemm": _gemm,
    "flash_attn2": _attention("attention"),
    "xformers": _attention("attention"),
    "torch_math_attention": _attention("vanilla_attention"),
    "attention_prefill": _attention("attention"),
    "fa_prefill": _chunk,
    "fa_decode": _decode,
    "act_fn": _tokens("swiglu"),
    "final_layernorm": _tokens("add_rms_norm"),
    "rotary_emb": _tokens("rope", **LLAMA),
    "embedding": _tokens("embedding", V=VOCABULARY),
    "softmax": _rows("softmax"),
    "layernorm": _rows("layer_norm"),
    "gelu": _elements("gelu", 1),
    "elementwise_mul_scalar": _elements("scale", 8),
    "memcpy_local": _large_copy,
    "all_reduce": _collective("all_reduce", lambda ranks: 2 * _part(ranks)),
    "all_gather": _collective("all_gather", _part),
    "reduce_scatter": _collective("reduce_scatter", _part),
    "alltoall": _collective("all_to_all", _part),
    "send_recv": _collective("ring_shift", lambda ranks: 1.0),
    **{f"chunk_{name}_fwd": _fla(f"chunk_{kernel}") for name, kernel in RECURRENCES.items()},
    **{f"chunk_{name}_fwdbwd": _fla(f"chunk_{kernel}_training") for name, kernel in RECURRENCES.items()},
    "flash_attn_fwd": _fla_attention("attention"),
    "flash_attn_fwdbwd": _fla_attention("attention_training"),
    "chunk_gated_delta_rule": _served_delta,
    "causal_conv1d_fn": _served_convolution,
    "flash_depthwise_conv1d_k5": _depthwise,
    "torch_depthwise_conv1d_k5": _depthwise,
    "pytorch_cufft_gated_conv": _long_convolution(monarch=False),
    "flashfftconv_gated_conv": _long_convolution(monarch=True),
}
