"""Files of measurements, and what is read from published tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibrate.cases import CASES, case, program
from calibrate.measurement import COLUMNS, Measurement, read_measurements, write_measurements
from calibrate.published import DATA, read_attention_labels, read_table
from costmodel.errors import InputError, UnknownNameError
from costmodel.ops.primitive import Reading
from costmodel.program import total_flops

DEVICES = sorted(path.stem for path in DATA.glob("*.csv"))


def measurement(**changes: object) -> Measurement:
    row: dict[str, object] = {
        "device": "rtx4090",
        "kernel": "gemm",
        "implementation": 'cuBLAS, "quoted"',
        "dtype": "bf16",
        "sizes": {"M": 128.0, "K": 4096.0, "N": 4096.0},
        "seconds": 4.42e-05,
        "quantity": "time",
        "transport": "",
        "source": "somebody's runs, 2026",
        "url": "https://example.org/a,b",
        "date": "2026-01-02",
        "command": "",
        "use": "fit",
        "notes": "",
    }
    return Measurement(**(row | changes))  # type: ignore[arg-type]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    rows = [measurement(), measurement(kernel="scale", sizes={"n": 1.0}, seconds=2e-6, use="check")]
    write_measurements(tmp_path / "runs.csv", rows)
    assert read_measurements(tmp_path / "runs.csv") == rows


HEADING = ",".join(COLUMNS)
GOOD = "rtx4090,gemm,cuBLAS,bf16,M=1 K=2 N=3,1e-5,time,,me,,,,fit,"


@pytest.mark.parametrize(
    ("damaged", "told"),
    [
        (GOOD.replace("1e-5", "fast"), "line 3: seconds: 'fast' is not valid: must be a number"),
        (GOOD.replace("1e-5", "nan"), "line 3: seconds: nan is not valid"),
        (GOOD.replace("1e-5", "-1"), "line 3: seconds: -1 is not valid"),
        (GOOD.replace("M=1", "M"), "line 3: sizes: 'M K=2 N=3' is not valid: must be name=number"),
        (GOOD.replace("K=2", "M=2"), "line 3: sizes: 'M=1 M=2 N=3' is not valid"),
        (GOOD.replace("M=1", "M=one"), "line 3: sizes M: 'one' is not valid: must be a number"),
        (GOOD.replace("M=1", "M=-1"), "line 3: sizes M: -1 is not valid"),
        (GOOD.replace(",time,", ",guess,"), "line 3: quantity: 'guess' is not valid: must be one of time"),
        (GOOD.replace(",fit,", ",both,"), "line 3: use: 'both' is not valid: must be one of fit, check"),
        (GOOD.replace(",me,", ",,"), "line 3: source: '' is not valid: must not be empty"),
        (GOOD + ",more", "line 3: 15 columns is not valid: must be 14"),
        (GOOD.replace("cuBLAS", '"cuBLAS'), "line 3: the row is not valid: is no CSV"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, damaged: str, told: str) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(f"{HEADING}\n{GOOD}\n{damaged}\n")
    with pytest.raises(InputError) as error:
        read_measurements(path)
    assert told in str(error.value)


def test_a_file_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    for text in ("", "a,b\n1,2\n"):
        path.write_text(text)
        with pytest.raises(InputError, match="line 1: the heading is not valid: must be device,kernel"):
            read_measurements(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_measurements(tmp_path / "none.csv")


@pytest.mark.parametrize("device", DEVICES)
def test_shipped_measurements_are_of_known_kernels(device: str) -> None:
    rows = read_measurements(DATA / f"{device}.csv")
    assert {row.device for row in rows} == {device}
    for row in rows:
        assert row.url.startswith("https://"), row
        assert program(row, 64).forward.nodes, row


def test_an_unknown_kernel_and_wrong_sizes_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'gemm'"):
        case(measurement(kernel="gem"))
    with pytest.raises(InputError, match="gemm has the sizes M, K, N"):
        case(measurement(sizes={"M": 1.0}))
    with pytest.raises(UnknownNameError, match="no dtype named 'int3'"):
        program(measurement(dtype="int3"), 64)


def test_sizes_of_a_case_are_used_by_it() -> None:
    # A product M x K x N has 2 M K N FLOP; a fused attention of 64 queries on 128 keys 4 B H n_q n_k d.
    flops = total_flops(program(measurement(), 64).forward, Reading.EXECUTED)
    assert flops["contraction"] == 2 * 128 * 4096 * 4096
    sizes = {"B": 2.0, "H": 4.0, "H_kv": 2.0, "n_q": 64.0, "n_k": 128.0, "d": 32.0, "causal": 0.0}
    attention = program(measurement(kernel="attention", sizes=sizes), 64)
    assert total_flops(attention.forward, Reading.EXECUTED)["contraction"] == 4 * 2 * 4 * 64 * 128 * 32
    trained = program(measurement(kernel="attention_training", sizes=sizes), 64)
    assert total_flops(trained.backward, Reading.EXECUTED)["contraction"] == 10 * 2 * 4 * 64 * 128 * 32


TABLE = "source,url,hardware,num_gpus,topology,kernel_or_collective,dtype,shape_or_bytes,metric,unit,value,notes\n"


def read(tmp_path: Path, *lines: str, name: str = "hw-gemm.csv") -> list[Measurement]:
    (tmp_path / name).write_text(TABLE + "\n".join(lines) + "\n")
    return list(read_table(tmp_path / name))


def test_rates_become_seconds(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        'a,https://a,RTX4090,1,,gemm,bf16,"M=10,N=20,K=30",achieved,TFLOP/s,2,',
        'a,https://a,RTX4090,1,,flash_attn2,fp16,"S=1000,d=100,causal=True",achieved_fwd,TFLOP/s,1,',
        "a,https://a,A100 SXM,1,,softmax,fp16,1000x500,throughput,Gelem/s,2,",
        "a,https://a,RTX4090,1,,elementwise_mul_scalar,fp32,1000000 elements,bandwidth,GB/s,8,",
        "a,https://a,RTX4090,4,SHM,all_reduce,,large,busbw,GB/s,3,",
        "a,https://a,RTX4090,2,P2P on,alltoall,fp32,64,time,us,12,",
    )
    # 2 M N K / rate; half of 4 B H S^2 d with the benchmark's B = 4 and H = 32; elements; 8 bytes an element;
    # 2 (P - 1) / P bytes over the bus bandwidth; the time itself.
    expected = [12000 / 2e12, 2 * 4 * 32 * 1000**2 * 100 / 1e12, 5e5 / 2e9, 8e6 / 8e9, 1.5 * 2**30 / 3e9, 12e-6]
    assert [row.seconds for row in found] == pytest.approx(expected)
    assert [row.transport for row in found] == ["", "", "", "", "host memory", "peer to peer"]
    assert {row.kernel for row in found} <= set(CASES)


def test_other_rows_are_left_out(tmp_path: Path) -> None:
    assert not read(
        tmp_path,
        "a,https://a,RTX4060,1,,gemm,bf16,1x2x3,achieved,TFLOP/s,2,another card",
        "a,https://a,RTX4090,1,,gemm,int8,1x2x3,achieved,TFLOP/s,2,another dtype",
        "a,https://a,A100 SXM,16,2 node(s) x 8 GPU,all_reduce,fp16,1024,time,us,2,several nodes",
        "nccl issue 1530,https://a,RTX4090,8,,all_reduce,fp32,8,time,us,2,another machine",
        name="hw-collectives.csv",
    )


def test_each_submission_is_a_source(tmp_path: Path) -> None:
    row = "torch-performance-test-data table,https://a,RTX4090,1,,gemm,bf16,best of 1k-10k square,max,TFLOP/s,2,"
    assert len({found.source for found in read(tmp_path, row, row)}) == 2


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("a,https://a,RTX4090,1,,gemm,bf16,1x2x3,achieved,TFLOP/s,quick,", "hw-gemm.csv, line 3: 1x2x3"),
        ('a,https://a,RTX4090,1,,gemm,bf16,"M=1,N=2",achieved,TFLOP/s,1,', "line 3: M=1,N=2 is not valid"),
        ("a,https://a,RTX4090,1", "hw-gemm.csv, line 3: the row is not valid"),
        ("a,https://a,RTX4090,1,,gemm,bf16,1x2x3,achieved,TFLOP/s,1e-30,", "line 3: seconds"),
    ],
)
def test_a_damaged_line_of_a_table_is_named(tmp_path: Path, line: str, told: str) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, "a,https://a,RTX4090,1,,gemm,bf16,1x2x3,achieved,TFLOP/s,1e-6,", line)
    assert told in str(error.value)


LABELS = "source,url,table_or_figure,hardware,num_gpus,topology,method,dtype,batch,seq_len,heads,kv_heads,head_dim,"
LABELS += "hidden,layers,causal,pass,metric,unit,value,notes\n"


def test_labels_of_a_figure(tmp_path: Path) -> None:
    path = tmp_path / "flashattention_labels.csv"
    start = "a,https://a,fig.png,H100-80GB SXM5,1,single GPU"
    path.write_text(
        f"{LABELS}{start},FlashAttention-2,fp16,2,100,3,3,10,30,1,1,fwd+bwd,throughput,TFLOP/s,5,\n"
        f"{start},PyTorch,fp16,2,100,3,3,10,30,1,0,fwd,throughput,TFLOP/s,OOM,\n"
    )
    (found,) = read_attention_labels(path)
    assert found.kernel == "attention_training"
    assert found.seconds == pytest.approx(3.5 * 2 * 2 * 3 * 100 * 100 * 10 / 5e12)
