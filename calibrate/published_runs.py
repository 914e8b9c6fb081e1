"""Published end-to-end runs: attention over several devices, and training steps of whole models.

No fit ever sees them: they say how well predictions hold for what a user would run. Each is kept with its source in
``calibrate/data/published_runs.csv``.

    python -m calibrate.published_runs FOLDER    writes that file from the tables in FOLDER
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from costmodel.errors import InputError
from costmodel.hardware.quantity import Plain

FILE = Path(__file__).parent / "data" / "published_runs.csv"

#: Fewer tokens than this in all are bound by how fast a host launches kernels (what the tables say of these sources).
LEAST_TOKENS = 32768


@dataclass(frozen=True)
class PublishedRun:
    """One run.

    Attributes:
        hardware: as the source calls it, a key of ``costmodel`` profiles only by way of ``benchmarks``.
        model: a config in ``examples``; empty for attention alone, without projections.
        strategy: of this project, the nearest to what ran.
        context, ulysses: ranks along these axes; what is left of the devices holds replicas.
        phase: ``"forward"`` or ``"train"``; a step with its optimizer for a model, forward and backward for attention.
        sharing: of a model's state over replicas, as ``costmodel predict --sharing`` says it.
        seconds: of one call or step.
        notes: what differs from what is predicted, and what was inferred.
    """

    source: str
    url: str
    hardware: str
    devices: int
    model: str
    strategy: str
    context: int
    ulysses: int
    phase: str
    batch: int
    length: int
    heads: int
    kv_heads: int
    head_dim: int
    recompute: int
    sharing: str
    seconds: float
    notes: str

    @property
    def what(self) -> str:
        """Whose run of what on which machine."""
        return f"{self.source}, {self.hardware} x {self.devices}"


def read_runs(path: Path = FILE) -> list[PublishedRun]:
    """The runs in a file.

    Raises:
        InputError: for a damaged row, by the number of its line.
    """
    kinds = {"int": int, "float": float, "str": str}
    found = []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        for row in reader:
            try:
                values = {field.name: kinds[str(field.type)](row[field.name]) for field in fields(PublishedRun)}
            except (KeyError, TypeError, ValueError) as error:
                where = f"{path.name}, line {reader.line_num}"
                raise InputError(where, Plain("the row"), f"cannot be read: {error}") from None
            found.append(PublishedRun(**values))  # type: ignore[arg-type]
    return found


def write_runs(runs: list[PublishedRun], path: Path = FILE) -> None:
    """One row each."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(PublishedRun)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(run) | {"seconds": f"{run.seconds:.6g}"} for run in runs)


# Tables -------------------------------------------------------------------------------------------------------------

Row = dict[str, str]

#: Methods of the tables by the strategy that is the same, or nearest.
METHODS = {
    "flash_attn_single_gpu": "whole",
    "ring": "ring",
    "zigzag_ring": "zigzag",
    "ring basic": "ring",
    "ring zigzag": "zigzag",
    "stripe": "striped",
    "ring stripe": "striped",
}


def attention_runs(path: Path) -> Iterator[PublishedRun]:
    """Attention alone over several devices: ring_flash_attention.csv, usp_yunchang.csv, usp_yunchang_gqa.csv."""
    for row in _rows(path):
        grid = re.search(r"ulysses=(\d+) ring=(\d+)", row["method"])
        told = row["value"] not in ("OOM", "fail") and int(row["seq_len"]) >= LEAST_TOKENS
        whole = row["num_gpus"] == "1"
        usable = "PCIe" not in row["topology"] and "varlen" not in row["notes"] and "qkvpacked" not in row["method"]
        strategy = _grid(row["method"], *map(int, grid.groups())) if grid else METHODS.get(row["method"])
        if not ((told or whole) and usable) or strategy is None:
            continue
        ulysses, context = map(int, grid.groups()) if grid else (1, int(row["num_gpus"]))
        hardware = "A100-SXM4-80GB" if row["hardware"].startswith("unstated") else row["hardware"]
        yield _run(row, hardware, strategy, context, ulysses, "train" if row["pass"] == "fwd+bwd" else "forward")


def _grid(method: str, ulysses: int, ring: int) -> str | None:
    """The strategy of a grid; striped rings within Ulysses are not among the project's."""
    inner = "zigzag" if "zigzag" in method else "striped" if "stripe" in method else "ring"
    if ring == 1:
        return "ulysses"
    if ulysses == 1:
        return inner
    return None if inner == "striped" else f"ulysses-{inner}"


def _run(row: Row, hardware: str, strategy: str, context: int, ulysses: int, phase: str) -> PublishedRun:
    head_dim, inferred = _head_dim(row)
    return PublishedRun(
        source=row["source"],
        url=row["url"],
        hardware=hardware,
        devices=int(row["num_gpus"]),
        model="",
        strategy=strategy,
        context=context,
        ulysses=ulysses,
        phase=phase,
        batch=int(row["batch"]),
        length=int(row["seq_len"]),
        heads=int(row["heads"]),
        kv_heads=int(row["kv_heads"]),
        head_dim=head_dim,
        recompute=0,
        sharing="replicated",
        seconds=1 / float(row["value"]),
        notes="; ".join(filter(None, (inferred, row["notes"]))),
    )


#: Heads are printed as of 32 in this table for 32 heads and 32768 tokens.
_OF_128 = (
    "head_dim printed as 32, taken as 128: ulysses=8 takes half of what the same source prints for twice the heads of "
    "128 at this length; with 32 it would run at a third of its rate at 131072 tokens"
)


def _head_dim(row: Row) -> tuple[int, str]:
    """Of a row, and what was inferred of it."""
    printed = int(row["head_dim"])
    doubtful = row["source"].startswith("yunchang") and (row["seq_len"], row["heads"], printed) == ("32768", "32", 32)
    return (128, _OF_128) if doubtful else (printed, "")


@dataclass(frozen=True)
class Kept:
    """A row of a table of training steps that is predicted: which, and what it is in the project's words."""

    file: str
    hardware: str
    devices: str
    method: str
    length: str
    model: str
    strategy: str
    context: int = 1
    ulysses: int = 1
    notes: str = ""


_TITAN = "H100 96GB HBM2e 2.4TB/s"
_FLOAT8 = "linear layers in float8, predicted in bf16: these are the smaller part of the time at this length"
_ON_HOST = "+ Ulysses SP8 + activation ckpt CPU offload"
_OFFLOAD = "the optimizer runs on the host, which is not predicted"

STEPS = (
    Kept("torchtitan_cp.csv", _TITAN, "8", "FSDP8 CP1", "32768", "llama-3-8b", "whole", notes=_FLOAT8),
    Kept("torchtitan_cp.csv", _TITAN, "8", "FSDP4 CP2", "65536", "llama-3-8b", "zigzag", 2, notes=_FLOAT8),
    Kept("torchtitan_cp.csv", _TITAN, "8", "FSDP2 CP4", "131072", "llama-3-8b", "zigzag", 4, notes=_FLOAT8),
    Kept("torchtitan_cp.csv", _TITAN, "8", "FSDP1 CP8", "262144", "llama-3-8b", "zigzag", 8, notes=_FLOAT8),
    Kept("alst.csv", "H100-80GB", "8", "+ tiled logits/loss", "160000", "llama-3-8b", "whole", notes=_OFFLOAD),
    Kept("alst.csv", "H100-80GB", "8", "+ Ulysses SP8", "1100000", "llama-3-8b", "ulysses", 1, 8, _OFFLOAD),
    Kept("alst.csv", "H100-80GB", "8", "+ Ulysses SP8 + TiledMLP", "1200000", "llama-3-8b", "ulysses", 1, 8, _OFFLOAD),
    Kept("alst.csv", "H100-80GB", "8", _ON_HOST, "2400000", "llama-3-8b", "ulysses", 1, 8, _OFFLOAD),
    Kept("alst.csv", "H100-80GB", "8", "ALST all features", "3700000", "llama-3-8b", "ulysses", 1, 8, _OFFLOAD),
    Kept("alst.csv", "H100-80GB", "1", "ALST", "500000", "llama-3-8b", "whole", notes=_OFFLOAD),
    Kept("easycontext.csv", "A100-80GB", "8", "data parallel", "65536", "llama-2-7b", "whole"),
    Kept("easycontext.csv", "A100-80GB", "8", "ring attention (zigzag)", "65536", "llama-2-7b", "zigzag", 8),
    Kept("easycontext.csv", "A100-80GB", "8", "ring attention (zigzag)", "131072", "llama-2-7b", "zigzag", 8),
    Kept("easycontext.csv", "A100-80GB", "8", "ring attention (zigzag)", "524288", "llama-2-7b", "zigzag", 8),
    Kept("easycontext.csv", "A100-80GB", "8", "ring attention (zigzag)", "700000", "llama-2-7b", "zigzag", 8),
)


def step_runs(folder: Path) -> Iterator[PublishedRun]:
    """Training steps of whole models that the project's plans can say, with full recomputation."""
    for kept in STEPS:
        for row in _rows(folder / kept.file):
            same = (row["num_gpus"], row["seq_len"]) == (kept.devices, kept.length) and row["layers"] == "32"
            named = row["method"] == kept.method or row["method"].startswith(f"{kept.method} (")
            if not (same and named and row["hardware"].startswith(kept.hardware)):
                continue
            batch = 8 // kept.context // kept.ulysses if kept.devices == "8" else 1
            seconds = _step_seconds(row, kept.context, batch)
            if seconds is None:
                continue
            yield PublishedRun(
                source=row["source"],
                url=row["url"],
                hardware=kept.hardware,
                devices=int(kept.devices),
                model=kept.model,
                strategy=kept.strategy,
                context=kept.context,
                ulysses=kept.ulysses,
                phase="train",
                batch=batch,
                length=int(kept.length),
                heads=int(row["heads"]),
                kv_heads=int(row["kv_heads"]),
                head_dim=int(row["head_dim"]),
                recompute=1,
                sharing="zero-3",
                seconds=seconds,
                notes="; ".join(filter(None, (kept.notes, row["notes"]))),
            )


def _step_seconds(row: Row, context: int, batch: int) -> float | None:
    """Of one step in which every device, or group of them that holds a sequence, takes one sequence."""
    value, tokens = row["value"], int(row["seq_len"])
    match row["metric"]:
        case "iteration time":
            return float(value)
        case "tokens_per_second_per_gpu":
            return tokens / context / float(value)
        case "tokens per second (8 GPUs)":
            return tokens * batch / float(value)
    return None


def _rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file, strict=True)


ATTENTION = ("ring_flash_attention.csv", "usp_yunchang.csv", "usp_yunchang_gqa.csv")


if __name__ == "__main__":
    FOLDER = Path(sys.argv[1])
    RUNS = [run for name in ATTENTION for run in attention_runs(FOLDER / name)] + list(step_runs(FOLDER))
    write_runs(RUNS)
    sys.stdout.write(f"{len(RUNS)} runs\n")
