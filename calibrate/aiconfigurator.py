"""From the tables of NVIDIA's aiconfigurator to measurements of kernels and collectives.

The package ``aiconfigurator-core`` (Apache-2.0, github.com/ai-dynamo/aiconfigurator) holds what serving frameworks took
for kernels on many machines, as ``systems/data/SYSTEM/KIND/FRAMEWORK/VERSION/TABLE.parquet``: latencies in
milliseconds. They are read where it is installed, and nothing of them is kept here. Rows in bfloat16 without a window
are taken, of large tables a sample.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from calibrate.measurement import Measurement
from costmodel.errors import InputError, UnknownNameError

#: What begins the name of a system.
PREFIX = "aiconfigurator:"

#: Profiles of systems; a system without one is called as it is there.
DEVICES = {"a100_sxm": "a100", "h100_sxm": "h100", "h200_sxm": "h200", "b200_sxm": "b200", "l40s": "l40s"}

#: Rows taken of one table.
SAMPLE = 300

URL = "https://github.com/ai-dynamo/aiconfigurator"

Row = Mapping[str, Any]
Found = tuple[str, dict[str, float]]


@dataclass(frozen=True)
class Table:
    """A kind of table, and how its rows are read.

    Attributes:
        name: of the file.
        only: what a row must have in some columns.
        read: the kernel of a row and its sizes.
        use: what its runs are for, and ``notes`` why.
        link: whether it times several devices.
    """

    name: str
    only: Mapping[str, object]
    read: Callable[[Row], Found]
    use: str = "fit"
    notes: str = ""
    link: bool = False


def _gemm(row: Row) -> Found:
    return "gemm", {"M": row["m"], "K": row["k"], "N": row["n"]}


def _context(row: Row) -> Found:
    sizes = {"B": row["batch_size"], "H": row["num_heads"], "H_kv": row["num_key_value_heads"]}
    return "attention", sizes | {
        "n_q": row["isl"],
        "n_k": row["isl"] + row["step"],
        "d": row["head_dim"],
        "causal": 1,
    }


def _encoder(row: Row) -> Found:
    sizes = {"B": row["batch_size"], "H": row["num_heads"], "H_kv": row["num_heads"]}
    return "attention", sizes | {"n_q": row["isl"], "n_k": row["isl"], "d": row["head_dim"], "causal": 0}


def _generation(row: Row) -> Found:
    sizes = {"B": row["batch_size"], "H": row["num_heads"], "H_kv": row["num_key_value_heads"]}
    return "decode_attention", sizes | {"n_k": row["isl"] + row["step"], "d": row["head_dim"]}


#: What the tables call collectives; ``message_size`` is in elements of a rank's larger buffer.
COLLECTIVES = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all",
}
BYTES_OF_HALF = 2


def _collective(row: Row) -> Found:
    return COLLECTIVES[row["op_name"]], {"P": row["num_gpus"], "bytes": BYTES_OF_HALF * row["message_size"]}


#: Columns that older tables do not have, in which every row is as if it had the value that is wanted.
LATER = ("window_size",)
PLAIN = {"attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16", "window_size": 0, "beam_width": 1}
TABLES = (
    Table("gemm_perf", {"gemm_dtype": "bfloat16"}, _gemm),
    Table("context_attention_perf", PLAIN, _context, notes="a serving kernel: the cache is written in the same call"),
    Table("generation_attention_perf", PLAIN, _generation, notes="a serving kernel, in CUDA graphs"),
    Table("encoder_attention_perf", {"attn_dtype": "bfloat16"}, _encoder),
    Table("nccl_perf", {"nccl_dtype": "half"}, _collective, link=True),
    Table(
        "custom_allreduce_perf",
        {"allreduce_dtype": "bfloat16"},
        _collective,
        use="check",
        notes="the framework's own all-reduce, not NCCL's",
        link=True,
    ),
)


def aiconfigurator(source: str) -> list[Measurement] | None:
    """The runs of ``aiconfigurator:SYSTEM``; ``None`` for any other source.

    Raises:
        InputError: where the package is not installed, and for a row that no run can be.
        UnknownNameError: for a system that it does not have, or of which it has none of these tables.
    """
    if not source.startswith(PREFIX):
        return None
    system, data = source.removeprefix(PREFIX), _data()
    known = {path.parts[len(data.parts)] for table in TABLES for path in data.rglob(f"{table.name}.parquet")}
    if system not in known:
        raise UnknownNameError("system", system, known)
    return [run for table in TABLES for path in _files(data / system, table) for run in _runs(path, table, system)]


def _data() -> Path:
    """The folder of the package's tables."""
    found = find_spec("aiconfigurator_core")
    if found is None or not found.submodule_search_locations or find_spec("pyarrow") is None:
        rule = "needs the packages aiconfigurator-core and pyarrow"
        raise InputError("--from", PREFIX.rstrip(":"), rule, "pip install 'costmodel[aiconfigurator]'")
    return Path(found.submodule_search_locations[0], "systems", "data")


def _files(folder: Path, table: Table) -> Sequence[Path]:
    """Tables of every framework and version."""
    return sorted(folder.rglob(f"{table.name}.parquet"))


def _runs(path: Path, table: Table, system: str) -> Iterator[Measurement]:
    framework, version = path.parts[-3:-1]
    for row in _sample(_rows(path, table.only)):
        kernel, sizes = table.read(row)
        try:
            yield Measurement(
                device=DEVICES.get(system, system),
                kernel=kernel,
                implementation=f"{framework} {row['kernel_source']}",
                dtype="bf16",
                sizes={name: float(size) for name, size in sizes.items()},
                seconds=1e-3 * row["latency"],
                quantity="time",
                transport=_transport(system) if table.link else "",
                source=f"aiconfigurator {framework} {version}",
                url=URL,
                date="",
                command="",
                use=table.use,
                notes=table.notes,
            )
        except InputError as error:
            where = f"{system}/{framework}/{version}/{table.name}: {error.field}"
            raise InputError(where, error.value, error.rule, error.remedy) from None


def _transport(system: str) -> str:
    """How devices reach each other: SXM modules and superchips over NVLink, cards over PCIe."""
    return "nvlink" if system.endswith("_sxm") or system.startswith("gb") else "pcie"


def _rows(path: Path, only: Mapping[str, object]) -> list[Row]:
    """Rows of a table that have these values."""
    parquet = import_module("pyarrow.parquet")
    columns = parquet.read_schema(path).names
    missing = [name for name in only if name not in columns and name not in LATER]
    if missing:
        raise InputError(
            "--from", str(path), f"has no column {missing[0]}", "use another version of aiconfigurator-core"
        )
    wanted = [(name, "==", value) for name, value in only.items() if name in columns]
    found: list[Row] = parquet.read_table(path, filters=wanted).to_pylist()
    return found


def _sample(rows: Sequence[Row]) -> list[Row]:
    """``SAMPLE`` of the rows, the same at every call, whatever their order and their times."""

    def place(row: Row) -> tuple[int, str]:
        text = " ".join(str(value) for name, value in sorted(row.items()) if name != "latency")
        return zlib.crc32(text.encode()), text

    return sorted(rows, key=place)[:SAMPLE]
