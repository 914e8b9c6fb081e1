"""Kernels of linear mixers: their traffic by hand, rows of tables, and a fit of one device judged on another."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from calibrate.block import Block, blocks
from calibrate.cases import program
from calibrate.fit import fit
from calibrate.measurement import Measurement, read_measurements
from calibrate.predictor import Predictor
from calibrate.published import DATA, read_table
from costmodel.hardware.profile import load_profile, look_up, placed
from costmodel.program import operations

COLUMNS = "source,url,hardware,num_gpus,topology,kernel_or_collective,dtype,shape_or_bytes,metric,unit,value,notes"


def measured(device: str, *kernels: str) -> list[Measurement]:
    return [row for row in read_measurements(DATA / f"{device}.csv") if row.kernel in kernels and row.use == "fit"]


def run_of(kernel: str, **sizes: int) -> Measurement:
    numbers = {name: float(size) for name, size in sizes.items()}
    return Measurement("h100", kernel, "", "bf16", numbers, 1.0, "time", "", "here", "", "", "", "fit", "")


def _recurrences() -> Block:
    (found,) = blocks(["chunked recurrences"])
    return found


def test_traffic_of_retention() -> None:
    """A scan reads keys and values and writes states; the outputs' kernel reads all of them and writes values.

    B = 2 H = 3 n = 128 d = 16 in bf16: 24576 bytes for each of q, k, v and the values; two chunks of 64, whose states
    before them are 2 2 3 16 16 2 = 6144 bytes; 2 3 128 4 = 3072 bytes of sums of decay; states before and after all
    in fp32, 6144 bytes each.
    """
    run = program(run_of("chunk_retention", B=2, H=3, n=128, d=16), tile=1)
    scan, outputs = (one for one, _ in operations(run.forward) if one.family == "scan")
    assert scan.traffic() == (2 * 24576 + 3072 + 6144, 6144 + 6144)
    assert outputs.traffic() == (3 * 24576 + 3072 + 6144, 24576)


@pytest.mark.parametrize(
    ("name", "shape", "kernel", "sizes"),
    [
        ("chunk_gla_fwdbwd", "B=4,T=4096,H=64,D=128", "chunk_gla_training", {"B": 4, "H": 64, "n": 4096, "d": 128}),
        # 2 x 16 heads of keys and queries and 32 of values, of 128 channels each
        ("causal_conv1d_fn", "B=1,T=512,Hk=16,Hv=32,dk=dv=128,d_conv=4", "short_convolution", {"C": 8192, "K": 4}),
        # 64 x 64 channels of x, 8 groups of 128 of B and of C
        ("causal_conv1d_fn", "B=1,T=512,H=64,P=64,N=128,G=8,chunk=256,d_conv=4", "short_convolution", {"C": 6144}),
        ("flashfftconv_gated_conv", "B=64,H=768,L=32768", "monarch_convolution", {"C": 768, "n": 32768}),
        ("flashfftconv_gated_conv", "B=64,H=768,L=65536", "monarch_outer_convolution", {"n": 65536}),
    ],
)
def test_rows_of_tables(tmp_path: Path, name: str, shape: str, kernel: str, sizes: dict[str, float]) -> None:
    row = ["someone", "x", "H100 SXM", "1", "", name, "bf16", shape, "time", "ms", "5", ""]
    with (tmp_path / "hw-linear-mixers.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS.split(","), row])
    (found,) = read_table(tmp_path / "hw-linear-mixers.csv")
    assert (found.kernel, found.seconds, found.use) == (kernel, 0.005, "fit")
    assert sizes.items() <= found.sizes.items()


def test_what_is_timed_on_the_host_is_not_fitted() -> None:
    """Small recurrences take as long as their launches, whatever their sizes."""
    rows = [row for row in read_measurements(DATA / "gb200.csv") if row.kernel == "chunk_gated_delta"]
    small = [row for row in rows if row.sizes["n"] * row.sizes["H"] * row.sizes["B"] < 2**18]
    assert small and all(row.use == "check" and "host" in row.notes for row in small)


def test_one_mixer_on_h100_tells_others_on_gb200() -> None:
    """Gated delta rule, forward, of a serving library on H100 gives a share of the bandwidth; on GB200, three
    recurrences of another library, forward and backward, are judged by that share of its bandwidth.
    """
    found = fit(_recurrences(), measured("h100", "chunk_gated_delta"), load_profile("h100"))
    assert found is not None and found.keys == ("device.kernels.scan.memory",)
    gb200 = load_profile("gb200")
    h100 = found.profile
    taken = {key: look_up(h100, f"device.kernels.scan.{key}") for key in ("compute", "memory")}
    blind = placed(gb200, {f"device.kernels.scan.{key}": number for key, number in taken.items()})
    rows = measured("gb200", *_recurrences().kernels)
    errors = np.abs(np.log(Predictor(rows, blind)(blind) / np.array([row.seconds for row in rows])))
    assert len(rows) > 15
    assert np.median(errors) < np.log(1.25)
    assert np.max(errors) < np.log(2)
