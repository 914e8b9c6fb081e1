"""From published tables to measurements of kernels and collectives.

The tables have one number a row: source,url,hardware,num_gpus,topology,kernel_or_collective,dtype,shape_or_bytes,
metric,unit,value,notes (files named hw-*.csv and rtx4090_llmservingsim.csv), or, for attention of a library's
benchmark, method,batch,seq_len,heads,kv_heads,head_dim,causal,pass in place of the shape. What a row does not state and
what follows from the source's benchmark script is said in the notes of the measurement.

    python -m calibrate.published FOLDER    writes calibrate/data/published/DEVICE.csv from the tables in FOLDER
"""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from calibrate.cases import case
from calibrate.measurement import Measurement, write_measurements
from costmodel.errors import InputError, UnknownNameError
from costmodel.hardware.quantity import Plain

DATA = Path(__file__).parent / "data" / "published"

Row = Mapping[str, str]
#: What a reader finds in a row: the kernel, its sizes, and seconds of one unit of the row's metric.
Found = tuple[str, dict[str, float], float]

DEVICES = {
    "RTX4090": "rtx4090",
    "A100 SXM": "a100",
    "A100-80GB SXM4": "a100",
    "H100 SXM": "h100",
    "H100-80GB SXM5": "h100",
    "H200 SXM": "h200",
    "B200 SXM": "b200",
}
DTYPES = {"fp16_acc32": "fp16", "fp16": "fp16", "bf16": "bf16", "fp32": "fp32", "": "bf16"}
TIME = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
RATE = {"TFLOP/s": 1e12, "GB/s": 1e9, "Gelem/s": 1e9}

#: "large" in a table of bus bandwidths, with the size not stated.
LARGE = 2**30

#: What stands for a number; a name alone is true.
WORDS = {"": 1.0, "True": 1.0, "False": 0.0}

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


def _timed(row: Row, amount: float) -> tuple[float, str]:
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


def _pairs(s: Mapping[str, float]) -> float:
    """FLOP of a forward pass as benchmarks of attention count them: half of all pairs under a causal mask."""
    return 4 * s["B"] * s["H"] * s["n_q"] * s["n_k"] * s["d"] * (0.5 if s["causal"] else 1)


def _attention(kernel: str) -> Callable[[Row], Found]:
    def read(row: Row) -> Found:
        given = {"B": 4.0, "H": 32.0, "causal": 0.0} | sizes_in(row["shape_or_bytes"])
        sizes = {"B": given["B"], "H": given["H"], "H_kv": given.get("Hkv", given["H"])}
        sizes |= {"n_q": given["S"], "n_k": given["S"], "d": given["d"], "causal": given["causal"]}
        return kernel, sizes, _pairs(sizes)

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
}

#: Rows that are left out, by file or source, and why.
LEFT_OUT: dict[str, str] = {
    "FlashAttention repo figure": "the same labels are in flashattention_labels.csv, with batch and heads",
    "gpu-mode/ring-attention #10": "another card",
    "nccl issue 1530": "8 cards over 4 NUMA nodes: another machine",
    "nccl-tests issue 307": "no runs",
    "tinygrad issue 44": "a machine that reaches a quarter of the others' PCIe rate",
    "tinygrad PR 11390": "the shape is not stated",
}

#: Notes on what a row's source does not state and its benchmark script does.
INFERRED = {
    "SageAttention repo figure": "batch 4 and 32 heads: the defaults of the repository's benchmark",
    "LLMServingSim": "sizes of Llama-3.1-8B; device time, averages of runs",
}

#: Implementations that are other kernels than those of a profile, kept for checking, and why.
CHECKED = {
    "xformers": "another kernel than FlashAttention-2",
    "torch_math_attention": "several kernels, with a mask in memory where causal",
    "PyTorch": "several kernels, with a mask in memory where causal",
    "Standard attention": "several kernels, with a mask in memory where causal",
    "FlashAttention-3": "a newer kernel than FlashAttention-2",
    "fa_prefill": "a serving kernel: reads keys through pages, and the cache is written in the same call",
    "attention_prefill": "a serving kernel: the cache is written in the same call",
}


#: Wider heads take other tiles, of which a multiprocessor holds one: another kernel (flash_fwd_launch_template.h).
WIDEST_HEAD = 128

#: Cards of a machine that lets them reach each other over PCIe.
PEERS = 4

#: Sources and kernels that are timed on the host: what takes less than this many seconds has much of the host's in it.
HOST_TIMED = {
    ("LLMCompass real hardware", ""): (1e-3, "timed on the host, whose 47 us are much of it"),
    ("vidur network profile", "all_reduce"): (1e-4, "timed on the host: 32 to 64 us whatever the size, up to 1 MiB"),
}


def _host_timed(source: str, name: str, seconds: float) -> str | None:
    """Why a time is mostly the host's, if it is."""
    least, why = HOST_TIMED.get((source, name)) or HOST_TIMED.get((source, ""), (0.0, ""))
    return why if seconds < least else None


def read_table(path: Path) -> Iterator[Measurement]:
    """Measurements in one table of hw-*.csv or of rtx4090_llmservingsim.csv, of the devices and kernels known here.

    Raises:
        InputError: for a damaged row, by the number of its line.
    """
    seen: Counter[str] = Counter()
    for where, row in _read(path):
        name = row["kernel_or_collective"]
        skipped = any(row["source"].startswith(source) for source in LEFT_OUT)
        if row["hardware"] not in DEVICES or name not in READERS or skipped or _unusable(row, path.name):
            continue
        try:
            kernel, sizes, amount = READERS[name](row)
            seconds, quantity = _timed(row, amount)
        except (KeyError, ValueError) as error:
            raise InputError(where, Plain(row["shape_or_bytes"]), f"cannot be read as {name}: {error}") from None
        yield _measurement(row, kernel, sizes, (seconds, quantity), _source(row, seen), where)


def _read(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                where = f"{path.name}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise InputError(where, Plain("the row"), "has not as many columns as the heading")
                yield where, row
    except OSError as error:
        raise InputError("table", str(path), f"cannot be read: {error.strerror}") from None
    except csv.Error as error:
        raise InputError(path.name, Plain("the file"), f"is no CSV: {error}") from None


def _unusable(row: Row, file: str) -> bool:
    """Rates beside a time of the same run, other dtypes, several nodes, and a norm whose kernel is not told."""
    several = bool(re.match(r"[2-9]\d* node", row["topology"]))
    twice = row["unit"] == "GB/s" and file == "hw-collectives.csv" and row["shape_or_bytes"].isdigit()
    told = row["unit"] in TIME or row["unit"] in RATE
    norm = row["kernel_or_collective"] == "layernorm" and file == "rtx4090_llmservingsim.csv"
    return several or twice or norm or not told or row["dtype"] not in DTYPES


def _source(row: Row, seen: Counter[str]) -> str:
    """The source; each submission to a collection of users' runs is a source of its own."""
    source = row["source"].partition(" profile, Llama")[0]
    if not source.startswith("torch-performance-test-data table"):
        return source
    seen[row["hardware"] + row["dtype"]] += 1
    return f"torch-performance-test-data, submission {seen[row['hardware'] + row['dtype']]}"


def _measurement(
    row: Row, kernel: str, sizes: dict[str, float], timed: tuple[float, str], source: str, where: str
) -> Measurement:
    notes = [row["notes"], *(note for start, note in INFERRED.items() if row["source"].startswith(start))]
    name = row["kernel_or_collective"]
    if not row["shape_or_bytes"][:1].isdigit() and "=" not in row["shape_or_bytes"]:
        notes.append(f"size as printed: {row['shape_or_bytes'] or 'none'}")
    why = CHECKED.get(name)
    device, transport = DEVICES[row["hardware"]], _transport(row)
    if sizes.get("d", 0) > WIDEST_HEAD:
        why = why or f"another kernel: heads wider than {WIDEST_HEAD}"
    if transport == "peer to peer" and sizes["P"] > PEERS:
        why = f"more than the {PEERS} cards of the profile's machine"
    why = _host_timed(row["source"], name, timed[0]) or why
    notes.append(why or "")
    try:
        found = Measurement(
            device=f"{device}_p2p" if transport == "peer to peer" else device,
            kernel=kernel,
            implementation=name,
            dtype=DTYPES[row["dtype"]],
            sizes=sizes,
            seconds=timed[0],
            quantity=timed[1],
            transport=transport,
            source=source,
            url=row["url"],
            date="",
            command="",
            use="check" if why else "fit",
            notes="; ".join(filter(None, notes)),
        )
        case(found)
    except InputError as error:
        raise InputError(f"{where}: {error.field}", error.value, error.rule, error.remedy) from None
    return found


def _transport(row: Row) -> str:
    if int(row["num_gpus"]) < 2:
        return ""
    topology = row["topology"]
    if "SHM" in topology:
        return "host memory"
    return "peer to peer" if "P2P" in topology else "nvlink"


#: Implementations of the attention benchmark that stand for a profile's kernels.
METHODS = {
    "FlashAttention-2": "attention",
    "FlashAttention-3": "attention",
    "PyTorch": "vanilla_attention",
    "Standard attention": "vanilla_attention",
}


def read_attention_labels(path: Path) -> Iterator[Measurement]:
    """Measurements in flashattention_labels.csv.

    Raises:
        InputError: for a damaged row, by the number of its line.
    """
    for where, row in _read(path):
        if row["hardware"] not in DEVICES or row["method"] not in METHODS or row["value"] in ("OOM", "fail"):
            continue
        train = row["pass"] == "fwd+bwd"
        kernel = METHODS[row["method"]] + ("_training" if train else "")
        try:
            sizes = {"B": float(row["batch"]), "H": float(row["heads"]), "H_kv": float(row["kv_heads"])}
            length = float(row["seq_len"])
            sizes |= {"n_q": length, "n_k": length, "d": float(row["head_dim"]), "causal": float(row["causal"])}
            seconds, quantity = _timed(row, _pairs(sizes) * (3.5 if train else 1))
        except (KeyError, ValueError) as error:
            raise InputError(where, Plain("the row"), f"cannot be read: {error}") from None
        told = row | {"kernel_or_collective": row["method"], "shape_or_bytes": f"S={length:.0f}"}
        yield _measurement(told, kernel, sizes, (seconds, quantity), _figure(row), where)


def _figure(row: Row) -> str:
    """Each figure was made at another time."""
    return f"FlashAttention repository, {row['table_or_figure']}"


def published(name: str) -> Path | None:
    """The shipped measurements called ``published/DEVICE``; ``None`` for another name.

    Raises:
        UnknownNameError: for a device of which there are none.
    """
    folder, _, device = name.partition("/")
    if folder != "published" or "." in device:
        return None
    known = [path.stem for path in DATA.glob("*.csv")]
    if device not in known:
        raise UnknownNameError("published measurements of", device, known)
    return DATA / f"{device}.csv"


TABLES = (
    "hw-gemm.csv",
    "hw-attention.csv",
    "hw-memory-elementwise.csv",
    "hw-collectives.csv",
    "hw-pcie-p2p.csv",
    "rtx4090_llmservingsim.csv",
)


def import_tables(folder: Path, into: Path = DATA) -> dict[str, int]:
    """Write one file of measurements for each device; how many rows each has.

    Raises:
        InputError: for a table that cannot be read.
    """
    found = [row for name in TABLES for row in read_table(folder / name)]
    found += read_attention_labels(folder / "flashattention_labels.csv")
    counted: dict[str, int] = {}
    for device in sorted({row.device for row in found}):
        rows = [row for row in found if row.device == device]
        write_measurements(into / f"{device}.csv", rows)
        counted[device] = len(rows)
    return counted


if __name__ == "__main__":
    for device, count in import_tables(Path(sys.argv[1])).items():
        sys.stdout.write(f"{device}: {count} measurements\n")
