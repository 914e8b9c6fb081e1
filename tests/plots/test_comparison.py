"""Pictures of comparisons: drawn from a table that ``costmodel compare`` saved."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.image import imread

from costmodel.comparison import Setting, compare
from costmodel.errors import InputError
from costmodel.hardware import parse_cluster
from costmodel.report.comparison_page import as_csv
from plots.comparison import NEEDED, draw
from plots.table import Table


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    setting = Setting(parse_cluster("1xrtx4090"), 2048)
    found = compare(["attention", "retnet"], "attention", setting, [2**10, 2**14, 2**22], lambda name: None)
    path = tmp_path_factory.mktemp("comparison") / "mixers.csv"
    path.write_text(as_csv(found), encoding="utf-8")
    return path


def test_a_picture_shows_every_line(table: Path, tmp_path: Path) -> None:
    draw(Table.read(table), tmp_path / "mixers.png")
    picture = imread(tmp_path / "mixers.png")
    colours = {tuple(round(float(c) * 255) for c in pixel[:3]) for row in picture for pixel in row}
    assert {(0, 0x72, 0xB2), (0xD5, 0x5E, 0)} <= colours


def test_many_lines_are_told_apart_by_structure(table: Path, tmp_path: Path) -> None:
    header, *lines = table.read_text(encoding="utf-8").splitlines()
    many = [
        line.replace("retnet", f"retnet{n}").replace("semiseparable", f"semiseparable {n % 12}")
        for n in range(20)
        for line in lines
        if line.startswith("retnet")
    ]
    (tmp_path / "many.csv").write_text("\n".join([header, *lines, *many]), encoding="utf-8")
    draw(Table.read(tmp_path / "many.csv"), tmp_path / "many.svg", column=True)
    assert "semiseparable" in (tmp_path / "many.svg").read_text(encoding="utf-8").replace("<!-- ", "")


def test_a_table_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("mixer,tokens\nattention,1\n", encoding="utf-8")
    with pytest.raises(InputError, match="lacks the columns structure"):
        draw(Table.read(tmp_path / "other.csv"), tmp_path / "other.png")
    with pytest.raises(InputError, match="cannot be read: No such file"):
        Table.read(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match="cannot be read"):
        Table.read(tmp_path / "binary.csv")


@pytest.mark.parametrize("column", NEEDED)
def test_each_column_is_needed(table: Path, tmp_path: Path, column: str) -> None:
    text = table.read_text(encoding="utf-8")
    (tmp_path / "cut.csv").write_text(text.replace(column, "other", 1), encoding="utf-8")
    with pytest.raises(InputError, match="lacks the columns"):
        draw(Table.read(tmp_path / "cut.csv"), tmp_path / "cut.png")


def test_an_unknown_format_is_refused(table: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no known format; formats: .*pdf"):
        draw(Table.read(table), tmp_path / "mixers.docx")
    assert not (tmp_path / "mixers.docx").exists()


def test_a_picture_in_no_directory_is_refused(table: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no directory"):
        draw(Table.read(table), tmp_path / "none" / "mixers.png")
