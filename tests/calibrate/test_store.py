"""The store survives what can happen to a file."""

from __future__ import annotations

import lzma
import os
import signal
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from calibrate.measurement import Measurement
from calibrate.method import Timing
from calibrate.store import Beside, Checked, Contents, Copied, Environment, Launched, Run, Store, read, written
from calibrate.thin import thinned
from costmodel.errors import InputError

ENVIRONMENT = Environment(
    "a1", "a CPU", "cpu", 1, 2**34, 2**25, 2.4e9, "", "2.13.0", "3.12", "Linux", "monotonic", "2026-11-24", "costmodel"
)
TIMING = Timing(1e-3, 0.01, (1e-3, 1e-3, 5e-3), (2,), (2,), 4)


def run(n: int, seconds: float = 1e-3) -> Run:
    sizes = {"n": float(n)}
    row = Measurement("cpu", "copy", "", "fp32", sizes, seconds, "time", "", "a CPU", "", "2026", "", "fit", "")
    return Run("a1", float(n), row, replace(TIMING, seconds=seconds, samples=(2 * seconds, seconds, seconds)))


def test_what_is_added_is_read(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    drift, beside = Checked("a1", 3.5, 1.02, TIMING), Beside("a1", 4.5, "ring_shift", 1024, 1.0, 2.0, 2.5)
    with Store(path, ENVIRONMENT) as store:
        for record in (run(1), drift, beside, run(2)):
            store.add(record)
    assert read(path) == Contents({"a1": ENVIRONMENT}, (run(1), run(2)), (drift,), (beside,))
    assert beside.hidden == 0.5
    assert read(path).spent_s == 4.5


@pytest.mark.parametrize(("kind", "seconds"), [("cpu", 1e-3), ("cuda", 1.2e-3)])
def test_of_several_runs_of_a_shape_the_fastest_sample_counts_or_on_a_gpu_the_last_median(
    kind: str, seconds: float, tmp_path: Path
) -> None:
    path = tmp_path / "runs.jsonl"
    with Store(path, msgspec.structs.replace(ENVIRONMENT, kind=kind)) as store:
        for each in (1.5e-3, 1e-3, 1.2e-3):
            store.add(run(1, each))
    found = read(path)
    assert [row.seconds for row in found.measurements] == [seconds]
    assert found.agreement == pytest.approx((0.2,))


def test_a_thinned_file_fits_the_same(tmp_path: Path) -> None:
    path, small = tmp_path / "runs.jsonl", tmp_path / "runs.jsonl.xz"
    drift, beside = Checked("a1", 3.5, 1.02, TIMING), Beside("a1", 4.5, "ring_shift", 1024, 1.0, 2.0, 2.5)
    copied, launched = Copied("a1", 5.5, "to the device", True, 1024, TIMING), Launched("a1", 6.5, TIMING)
    with Store(
        path, msgspec.structs.replace(ENVIRONMENT, command="costmodel --into /some/where/a.jsonl --budget 8m")
    ) as store:
        for record in (run(1, 2e-3), run(2), run(1, 1e-3), drift, run(1, 1.5e-3), beside, copied, launched):
            store.add(record)
    small.write_bytes(lzma.compress(b"".join(map(written, thinned(read(path))))))
    whole, thin = read(path), read(small)
    assert thin.measurements == whole.measurements
    assert (thin.overlaps, thin.copies, thin.launches) == ((beside,), (copied,), (launched,))
    assert thin.environments == {
        "a1": msgspec.structs.replace(ENVIRONMENT, command="costmodel --into a.jsonl --budget 8m")
    }
    assert [check.ratio for check in thin.drift] == [1.02]
    assert [len(one.timing.samples) for one in thin.runs] == [1, 1]
    with pytest.raises(InputError, match="only read"):
        Store(small, ENVIRONMENT)
    small.write_bytes(b"no compressed file")
    with pytest.raises(InputError, match="cannot be read"):
        read(small)


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    with Store(path, ENVIRONMENT) as store:
        store.add(run(1))
    whole = path.read_bytes()
    for cut in (1, 40, len(written(run(2))) - 1):
        path.write_bytes(whole + written(run(2))[:cut])
        assert read(path).torn == cut
        with Store(path, ENVIRONMENT) as store:
            assert store.found.torn == cut
            store.add(run(3))
        found = read(path)
        assert (found.torn, found.damaged) == (0, {})
        assert [r.measurement.sizes["n"] for r in found.runs] == [1, 3]
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b'"seconds":0.001', b'"seconds":0.002', "checksum"),
        (b'"crc"', b'"cro"', "unknown field"),
        (b"{", b"[", "array"),
        (b'"schema":1', b'"schema":2', "checksum"),
    ],
)
def test_a_damaged_line_is_told_by_number_and_passed_over(tmp_path: Path, old: bytes, new: bytes, reason: str) -> None:
    path = tmp_path / "runs.jsonl"
    with Store(path, ENVIRONMENT) as store:
        for n in (1, 2, 3):
            store.add(run(n))
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(old, new, 1)
    path.write_bytes(b"".join(lines))
    found = read(path)
    assert list(found.damaged) == [3]
    assert reason in found.damaged[3].lower()
    assert [r.measurement.sizes["n"] for r in found.runs] == [1, 3]


def test_records_of_another_schema_or_environment_or_that_no_run_can_be_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    newer = written(ENVIRONMENT).replace(b'"schema":1', b'"schema":2')
    body = newer[newer.index(b'"record":') + 9 : -2]
    newer = b'{"crc":"%08x","record":%s}\n' % (zlib.crc32(body), body)
    stray = written(Run("b2", 0.0, run(1).measurement, TIMING))
    path.write_bytes(written(ENVIRONMENT) + newer + stray)
    damaged = read(path).damaged
    assert list(damaged) == [2, 3]
    assert "b2" in damaged[3]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary\n")
    with pytest.raises(InputError, match="line 1"):
        read(path)
    with pytest.raises(InputError, match="line 1"):
        Store(path, ENVIRONMENT)
    assert path.read_text() == "dear diary\n"


def test_another_machine_and_a_second_writer_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    with Store(path, ENVIRONMENT), pytest.raises(InputError, match="another process"):
        Store(path, ENVIRONMENT)
    with pytest.raises(InputError, match="another file"):
        Store(
            path, Environment(**{**{f: getattr(ENVIRONMENT, f) for f in ENVIRONMENT.__struct_fields__}, "threads": 2})
        )
    with pytest.raises(InputError, match="cannot be"):
        Store(tmp_path / "no folder" / "runs.jsonl", ENVIRONMENT)


WRITER = """
import sys
from itertools import count
from pathlib import Path
from tests.calibrate.test_store import ENVIRONMENT, run
from calibrate.store import Store
with Store(Path(sys.argv[1]), ENVIRONMENT) as store:
    for n in count(len(store.found.runs) + 1):
        store.add(run(n))
"""


def test_killed_at_any_moment_and_gone_on(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    seen = 0
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], env={**os.environ, "PYTHONPATH": "."})
        deadline = time.monotonic() + 60
        while len(read(path).runs) < seen + 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = read(path)
        assert found.damaged == {}
        assert len(found.runs) >= seen + 20
        assert [r.measurement.sizes["n"] for r in found.runs] == list(range(1, len(found.runs) + 1))
        seen = len(found.runs)


def test_a_measurement_that_no_run_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="seconds"):
        replace(run(1).measurement, seconds=0.0)
