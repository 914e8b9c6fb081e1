"""``costmodel compare``: tables, files and pictures."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

QUESTION = ("compare", "--seq", "4Ki:64Ki", "--cluster", "1xh100", "--mixer", "attention,retnet")


def test_the_answer_as_data(ask) -> None:
    found = ask(*QUESTION)
    assert [(row["mixer"], row["tokens"]) for row in found["mixers"][:2]] == [("attention", 4096), ("attention", 8192)]
    first = found["mixers"][0]
    length, width = 4096, 4096
    assert first["state_bytes"] == 2 * 2 * length * width
    classes = {name: count for name, count in first.items() if name.endswith("_flop")}
    assert classes["contraction_flop"] == 8 * length * width**2 + 2 * length * (length + 1) * width
    assert first["flop"] == sum(classes.values())
    assert first["flop"] > 8 * length * width**2 + 2 * length * (length + 1) * width
    (crossing,) = found["crossings"]["retnet"]["time"][1:]
    assert crossing["cheaper"]
    assert found["crossings"].keys() == {"retnet"}


def test_the_answer_as_text(run) -> None:
    wide, narrow = run(*QUESTION, width=120), run(*QUESTION)
    assert "Less than attention: 4Ki to 64Ki tokens" in narrow.output
    assert "plan" in wide.output
    assert all(len(line) <= 80 for line in narrow.output.splitlines())


def test_files(run, tmp_path: Path) -> None:
    result = run(*QUESTION, "--csv", str(tmp_path / "all.csv"), "--plot", str(tmp_path / "mixers.pdf"))
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((tmp_path / "all.csv").read_text().splitlines()))
    assert len(rows) == 10
    assert (tmp_path / "mixers.csv").read_text() == (tmp_path / "all.csv").read_text()
    assert (tmp_path / "mixers.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mixer", "attention,retnot"], "Did you mean 'retnet'?"),
        (["--against", "atention"], "Did you mean 'attention'?"),
        (["--width", "4100"], "multiples of 128; nearest: 4096"),
        (["--pass", "decode"], "compares whole sequences"),
        (["--seq", "0"], "--seq"),
    ],
)
def test_bad_input(run, tmp_path: Path, options: list[str], message: str) -> None:
    result = run(*QUESTION, *options, "--csv", str(tmp_path / "all.csv"))
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "all.csv").exists()
