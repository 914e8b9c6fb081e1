"""Files of answers: whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from costmodel.errors import InputError
from costmodel.outputs import picture, replacing, writable, write


def test_a_file_that_can_be_written_is_not_made_by_asking(tmp_path: Path) -> None:
    assert writable(tmp_path / "new.csv", "--csv") == tmp_path / "new.csv"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "told"), [(".", "it is a directory"), ("none/a.csv", "there is no directory"), ("a" * 300, "too long")]
)
def test_a_file_that_cannot_is_refused(tmp_path: Path, name: str, told: str) -> None:
    with pytest.raises(InputError, match=f"--csv: .*{told}"):
        writable(tmp_path / name, "--csv")


def test_a_picture_has_a_known_format(tmp_path: Path) -> None:
    assert picture(tmp_path / "a.PDF", "--plot").suffix == ".PDF"
    for name in ("a", "a.txt"):
        with pytest.raises(InputError, match=r"--plot: .* has no known format; formats: pdf, svg, png, eps"):
            picture(tmp_path / name, "--plot")


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write(path, "--csv", "old")
    with pytest.raises(UnicodeEncodeError):
        write(path, "--csv", "half" * 10_000 + "\ud800")
    with pytest.raises(InputError, match=r"--csv: .* No space left"), replacing(path, "--csv"):
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write(path, "--csv", "new")
    assert path.read_text() == "new"


def test_a_link_stays_a_link_and_a_device_a_device(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link", "--csv", "text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "text"
    write(Path("/dev/null"), "--csv", "text")
    assert Path("/dev/null").is_char_device()
