"""Files that answers are written to: checked before the work begins, and never left half-written."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from costmodel.errors import InputError

#: Formats of pictures, by the ends of their names.
PICTURES = ("pdf", "svg", "png", "eps")


def writable(name: str | Path, field: str) -> Path:
    """A file that can be written; it need not exist, and is not made.

    Args:
        field: the option that names it, for messages.

    Raises:
        InputError: for a directory, a file in none, or one that may not be written.
    """
    path = Path(name)
    refusal = _refusal(path)
    if refusal:
        raise InputError(field, str(name), refusal, "name another file")
    return path


def _refusal(path: Path) -> str | None:
    """Why a file cannot be written."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if not path.parent.is_dir():
            return f"there is no directory {path.parent}"
        return None if os.access(path.parent, os.W_OK) else f"nothing can be written to {path.parent}"
    except OSError as error:
        return f"it cannot be written: {error.strerror}"
    if stat.S_ISDIR(mode):
        return "it is a directory"
    return None if os.access(path, os.W_OK) else "it cannot be written: permission denied"


def picture(name: str | Path, field: str) -> Path:
    """A file that a picture can be written to.

    Raises:
        InputError: for a format that is not known, and as ``writable`` does.
    """
    path = writable(name, field)
    if path.suffix[1:].lower() not in PICTURES:
        raise InputError(field, str(name), "has no known format", f"formats: {', '.join(PICTURES)}")
    return path


@contextmanager
def replacing(path: Path, field: str) -> Iterator[Path]:
    """A file to write that takes the place of ``path`` when the block ends without an error.

    Raises:
        InputError: when it cannot be written after all, as on a full disk.
    """
    real = path.resolve()
    beside = real.with_name(f".{os.getpid()}-{real.name}")
    part = beside if real.is_file() or not real.exists() else real  # a pipe or a device is written to as it is
    try:
        yield part
        if part is beside:
            beside.replace(real)
    except OSError as error:
        raise InputError(field, str(path), f"it cannot be written: {error.strerror or error}") from None
    finally:
        if part is beside:
            beside.unlink(missing_ok=True)


def write(path: Path, field: str, text: str) -> None:
    """The whole text, or nothing.

    Raises:
        InputError: when it cannot be written.
    """
    with replacing(path, field) as part:
        part.write_text(text, encoding="utf-8")
