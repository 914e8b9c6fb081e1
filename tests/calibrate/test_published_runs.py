"""End-to-end runs that were published, and what is refused of a file of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibrate.measurement import read_measurements
from calibrate.published import DATA
from calibrate.published_runs import FILE, read_runs, write_runs
from costmodel.errors import InputError
from costmodel.strategy import strategies


def test_every_run_has_a_source_and_a_strategy_of_the_project() -> None:
    for run in read_runs():
        assert run.source and run.url.startswith("https://"), run
        assert run.strategy in strategies.names(), run
        assert run.devices % (run.context * run.ulysses) == 0, run


def test_no_fit_sees_them() -> None:
    fitted = {row.url for path in DATA.glob("*.csv") for row in read_measurements(path)}
    assert not fitted & {run.url for run in read_runs()}


def test_written_runs_are_read_again(tmp_path: Path) -> None:
    runs = read_runs()
    write_runs(runs, tmp_path / "runs.csv")
    assert read_runs(tmp_path / "runs.csv") == runs


def test_a_damaged_row_is_told_by_its_line(tmp_path: Path) -> None:
    text = FILE.read_text(encoding="utf-8").splitlines(keepends=True)
    path = tmp_path / "runs.csv"
    path.write_text("".join([*text[:2], text[2].replace(",8,", ",many,", 1)]), encoding="utf-8")
    with pytest.raises(InputError, match=r"runs\.csv, line 3"):
        read_runs(path)
