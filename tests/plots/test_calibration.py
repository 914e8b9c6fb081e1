"""Pictures of calibrations: drawn from a table of runs and their predictions."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from matplotlib.image import imread

from costmodel.errors import InputError
from plots.calibration import draw
from plots.command import plot
from plots.table import Table

HEADING = "block,kernel,source,measured_s,predicted_s,low_s,high_s\n"
RUNS = HEADING + "gemm,gemm,a,1e-3,1.1e-3,9e-4,1.3e-3\nlink,all_reduce,b,1e-5,9e-6,8e-6,1.2e-5\n"


def test_a_picture_shows_every_block(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text(RUNS, encoding="utf-8")
    done = CliRunner().invoke(plot, [str(tmp_path / "runs.csv"), "--output", str(tmp_path / "runs.png")])
    assert done.exit_code == 0, done.output
    picture = imread(tmp_path / "runs.png")
    colours = {tuple(round(float(c) * 255) for c in pixel[:3]) for row in picture for pixel in row}
    assert {(0, 0x72, 0xB2), (0xD5, 0x5E, 0)} <= colours


def test_more_blocks_than_colours_are_all_drawn(tmp_path: Path) -> None:
    blocks = [f"block{number},gemm,a,1e-3,1.1e-3,9e-4,1.3e-3\n" for number in range(12)]
    (tmp_path / "runs.csv").write_text(HEADING + "".join(blocks), encoding="utf-8")
    draw(Table.read(tmp_path / "runs.csv"), tmp_path / "runs.svg", column=True)
    drawn = (tmp_path / "runs.svg").read_text(encoding="utf-8")
    assert all(f"<!-- block{number} -->" in drawn for number in range(12))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "lacks the columns block"),
        (HEADING, "has no rows; make it with costmodel calibrate"),
        (RUNS + "gemm,gemm,a,fast,1,1,1\n", "line 4: measured_s: 'fast' .* must be a number"),
        (RUNS + "gemm,gemm,a,1,nan,1,1\n", "line 4: predicted_s: 'nan' .* must be a number"),
        (RUNS + "gemm,gemm,a,1,0,1,1\n", "line 4: predicted_s: '0' .* above 0"),
        (RUNS + "gemm,gemm,a,1,1\n", "line 4.* not as many columns"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "runs.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=told):
        draw(Table.read(tmp_path / "runs.csv"), tmp_path / "runs.png")


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text(RUNS, encoding="utf-8")
    with pytest.raises(InputError, match=r"has no known format; formats: .*pdf"):
        draw(Table.read(tmp_path / "runs.csv"), tmp_path / "runs.docx")
