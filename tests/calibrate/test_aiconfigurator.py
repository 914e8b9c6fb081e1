"""Tables of aiconfigurator, by a package of its form with a few rows of our own."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from calibrate import aiconfigurator as module
from calibrate.aiconfigurator import SAMPLE, aiconfigurator
from costmodel.cli.main import main
from costmodel.errors import InputError, UnknownNameError

Row = dict[str, Any]

#: A reader of tables that are kept as JSON, with the call that pyarrow has.
PARQUET = """
import json

class Table:
    def __init__(self, rows):
        self.rows, self.names = rows, list(rows[0])

    def to_pylist(self):
        return self.rows

def read_schema(path):
    return Table(json.loads(path.read_text()))

def read_table(path, filters):
    rows = json.loads(path.read_text())
    return Table([row for row in rows if all(row[name] == value for name, operator, value in filters)])
"""
KERNEL: Row = {"kernel_source": "torch_flow", "latency": 0.25}
HEADS: Row = {"batch_size": 2, "num_heads": 8, "num_key_value_heads": 4, "head_dim": 64}
PLAIN: Row = {"attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16", "window_size": 0, "beam_width": 1}


def gemm(m: int, dtype: str = "bfloat16", latency: float = 0.25) -> Row:
    return KERNEL | {"gemm_dtype": dtype, "m": m, "n": 512, "k": 256, "latency": latency}


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of one system's tables."""
    for name, files in {"aiconfigurator_core": {}, "pyarrow": {"parquet.py": PARQUET}}.items():
        (tmp_path / name).mkdir()
        for file, text in {"__init__.py": "", **files}.items():
            (tmp_path / name / file).write_text(text)
    names = ("aiconfigurator_core", "pyarrow", "pyarrow.parquet")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "aiconfigurator_core" / "systems" / "data" / "h100_sxm"
    for name in names:
        sys.modules.pop(name, None)


def write(folder: Path, kind: str, framework: str, name: str, rows: list[Row]) -> None:
    path = folder / kind / framework / "1.2" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))


def test_kernels_and_sizes(tables: Path) -> None:
    write(tables, "gemm", "trtllm", "gemm_perf", [gemm(16), gemm(16, "fp8")])
    context = KERNEL | HEADS | PLAIN | {"isl": 128, "step": 32}
    write(tables, "attention", "vllm", "context_attention_perf", [context, context | {"window_size": 128}])
    write(tables, "attention", "vllm", "generation_attention_perf", [KERNEL | HEADS | PLAIN | {"isl": 1, "step": 1023}])
    write(tables, "vit", "vllm", "encoder_attention_perf", [KERNEL | HEADS | {"attn_dtype": "bfloat16", "isl": 77}])
    found = aiconfigurator("aiconfigurator:h100_sxm")
    assert found is not None
    assert [(run.kernel, run.sizes) for run in found] == [
        ("gemm", {"M": 16, "K": 256, "N": 512}),
        ("attention", {"B": 2, "H": 8, "H_kv": 4, "n_q": 128, "n_k": 160, "d": 64, "causal": 1}),
        ("decode_attention", {"B": 2, "H": 8, "H_kv": 4, "n_k": 1024, "d": 64}),
        ("attention", {"B": 2, "H": 8, "H_kv": 8, "n_q": 77, "n_k": 77, "d": 64, "causal": 0}),
    ]
    assert {(run.device, run.dtype, run.seconds) for run in found} == {("h100", "bf16", 0.25e-3)}
    assert [run.source for run in found[:2]] == ["aiconfigurator trtllm 1.2", "aiconfigurator vllm 1.2"]


def test_collectives_are_counted_in_elements(tables: Path) -> None:
    """2**20 elements of 2 bytes; the framework's own all-reduce is not fitted."""
    row = KERNEL | {"num_gpus": 8, "message_size": 2**20}
    nccl = [row | {"op_name": name, "nccl_dtype": "half"} for name in ("all_reduce", "alltoall")]
    write(tables, "comm", "nccl", "nccl_perf", [*nccl, nccl[0] | {"nccl_dtype": "int8"}])
    custom = row | {"op_name": "all_reduce", "allreduce_dtype": "bfloat16"}
    write(tables, "comm", "trtllm", "custom_allreduce_perf", [custom])
    found = aiconfigurator("aiconfigurator:h100_sxm")
    assert found is not None
    assert {run.transport for run in found} == {"nvlink"}
    assert sorted((run.kernel, run.use, run.sizes["bytes"]) for run in found) == [
        ("all_reduce", "check", 2**21),
        ("all_reduce", "fit", 2**21),
        ("all_to_all", "fit", 2**21),
    ]


def test_the_sample_depends_on_shapes_alone(tables: Path) -> None:
    rows = [gemm(m) for m in range(1, 2 * SAMPLE)]
    write(tables, "gemm", "trtllm", "gemm_perf", rows)
    once = aiconfigurator("aiconfigurator:h100_sxm")
    write(tables, "gemm", "trtllm", "gemm_perf", [row | {"latency": 0.5} for row in reversed(rows)])
    again = aiconfigurator("aiconfigurator:h100_sxm")
    assert once is not None and again is not None
    assert len(once) == SAMPLE
    assert [run.sizes for run in once] == [run.sizes for run in again]


def test_systems_by_name(tables: Path) -> None:
    write(tables, "gemm", "trtllm", "gemm_perf", [gemm(1)])
    (tables.parent / "l4").mkdir()
    with pytest.raises(UnknownNameError, match=r"no system named 'h100'. Did you mean 'h100_sxm'\? Known: h100_sxm$"):
        aiconfigurator("aiconfigurator:h100")
    with pytest.raises(UnknownNameError):
        aiconfigurator("aiconfigurator:l4")  # has none of the tables
    assert aiconfigurator("published/h100") is None


def test_columns_that_older_tables_do_not_have(tables: Path) -> None:
    context = KERNEL | HEADS | PLAIN | {"isl": 128, "step": 0}
    write(tables, "attention", "vllm", "context_attention_perf", [_without(context, "window_size")])
    assert len(aiconfigurator("aiconfigurator:h100_sxm") or []) == 1
    write(tables, "attention", "vllm", "context_attention_perf", [_without(context, "attn_dtype")])
    with pytest.raises(InputError, match="has no column attn_dtype"):
        aiconfigurator("aiconfigurator:h100_sxm")


def _without(row: Row, name: str) -> Row:
    return {key: value for key, value in row.items() if key != name}


def test_a_time_that_is_none(tables: Path) -> None:
    write(tables, "gemm", "trtllm", "gemm_perf", [gemm(1, latency=0.0)])
    with pytest.raises(InputError, match=r"h100_sxm/trtllm/1\.2/gemm_perf: seconds: 0 is not valid"):
        aiconfigurator("aiconfigurator:h100_sxm")


def test_without_the_package_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    done = CliRunner().invoke(main, ["calibrate", "--from", "aiconfigurator:h100_sxm"])
    assert done.exit_code == 2
    assert "pip install 'costmodel[aiconfigurator]'" in " ".join(done.output.split())


def test_a_profile_is_fitted_to_them(tables: Path, tmp_path: Path) -> None:
    """Products of 2 M 4096^2 FLOP at 600 TFLOP/s and 3 us besides."""
    rows = [
        gemm(m) | {"n": 4096, "k": 4096, "latency": 1e3 * (3e-6 + 2 * m * 4096**2 / 600e12)}
        for m in range(1024, 16385, 512)
    ]
    write(tables, "gemm", "trtllm", "gemm_perf", rows)
    arguments = ["calibrate", "--from", "aiconfigurator:h100_sxm", "--block", "gemm"]
    done = CliRunner().invoke(main, [*arguments, "--output", str(tmp_path / "fitted.toml")])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "fitted.toml").read_text()
    assert "costmodel calibrate --from aiconfigurator:h100_sxm --block 'gemm'" in text
