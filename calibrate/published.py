"""From published tables to measurements of kernels and collectives.

The tables have one number a row: source,url,hardware,num_gpus,topology,kernel_or_collective,dtype,shape_or_bytes,
metric,unit,value,notes (files named hw-*.csv and rtx4090_llmservingsim.csv), or, for attention of a library's
benchmark, method,batch,seq_len,heads,kv_heads,head_dim,causal,pass in place of the shape. What a row does not state and
what follows from the source's benchmark script is said in the notes of the measurement.

    python -m calibrate.published FOLDER    writes calibrate/data/published/DEVICE.csv from the tables in FOLDER
"""

from __future__ import annotations

import csv
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from calibrate.cases import case
from calibrate.measurement import Measurement, write_measurements
from calibrate.table_readers import RATE, READERS, TIME, Row, pairs, timed
from costmodel.errors import InputError, UnknownNameError
from costmodel.hardware.quantity import Plain

DATA = Path(__file__).parent / "data" / "published"

DEVICES = {
    "RTX4090": "rtx4090",
    "A100 SXM": "a100",
    "A100-80GB SXM4": "a100",
    "H100 SXM": "h100",
    "H100-80GB SXM5": "h100",
    "H200 SXM": "h200",
    "B200 SXM": "b200",
    "GB200": "gb200",
    "L40S": "l40s",
    "A100 PCIe": "a100_pcie",
    "H100 PCIe": "h100_pcie",
    "L40": "l40",
    "RTX6000Ada": "rtx6000_ada",
    "MI300X": "mi300x",
    "RTX3090": "rtx3090",
    "RTX5090": "rtx5090",
}
DTYPES = {"fp16_acc32": "fp16", "fp16": "fp16", "bf16": "bf16", "fp32": "fp32", "": "bf16"}
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
    "torch_depthwise_conv1d_k5": "torch's convolution of groups, eight times slower than kernels for this",
}

#: Rows of fewer tokens than this are not fitted, and why.
SHORT = {
    ("A100 SXM", "causal_conv1d_fn"): (
        math.inf,
        "in that time the stated channels cannot be read: twice the bandwidth",
    ),
    ("L40S", "causal_conv1d_fn"): (8192, "operands stay in the last-level cache"),
    ("L40S", "chunk_gated_delta_rule"): (8192, "operands stay in the last-level cache"),
}


#: Wider heads take other tiles, of which a multiprocessor holds one: another kernel (flash_fwd_launch_template.h).
WIDEST_HEAD = 128

#: Cards of a machine that reach each other over PCIe as fast as any two.
PEERS = {"rtx4090": 4, "l40s": 2}

#: Sources and kernels that are timed on the host: what takes less than this many seconds has much of the host's in it.
HOST_TIMED = {
    ("LLMCompass real hardware", ""): (1e-3, "timed on the host, whose 47 us are much of it"),
    ("fla README", ""): (0.8e-3, "timed on the host, whose launches are much of it"),
    **{
        ("fla README", f"{name}_fwdbwd"): (2.1e-3, "timed on the host, whose launches are much of it")
        for name in ("chunk_retention", "chunk_gla", "chunk_gdn", "flash_attn")
    },
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
            seconds, quantity = timed(row, amount)
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
    if "n_k" in sizes and sizes["d"] > WIDEST_HEAD:
        why = why or f"another kernel: heads wider than {WIDEST_HEAD}"
    if transport == "peer to peer" and sizes["P"] > PEERS[device]:
        why = f"more than {PEERS[device]} cards, which are not all as near"
    least, short = SHORT.get((row["hardware"], name), (0.0, ""))
    if sizes.get("n", 0) < least:
        why = short
    why = _host_timed(row["source"], name, timed[0]) or why
    if "outlier" in row["notes"]:
        why = "the source's own outlier"
    notes.append(why or "")
    try:
        found = Measurement(
            device=f"{device}_p2p" if transport == "peer to peer" and device == "rtx4090" else device,
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
    if "SHM" in topology or "stock" in topology:
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
            seconds, quantity = timed(row, pairs(sizes) * (3.5 if train else 1))
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
        raise UnknownNameError("device with published measurements", device, known)
    return DATA / f"{device}.csv"


TABLES = (
    "hw-gemm.csv",
    "hw-attention.csv",
    "hw-memory-elementwise.csv",
    "hw-collectives.csv",
    "hw-pcie-p2p.csv",
    "hw-linear-mixers.csv",
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
