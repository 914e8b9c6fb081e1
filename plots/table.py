"""The CSV files that figures are drawn from."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from costmodel.errors import InputError


@dataclass(frozen=True)
class Table:
    """The rows of a file by the names of its columns.

    Attributes:
        lines: where each row stands in the file.
    """

    path: Path
    columns: Sequence[str]
    rows: Sequence[Mapping[str, str]]
    lines: Sequence[int]

    @classmethod
    def read(cls, path: Path) -> Table:
        """Everything in a file.

        Raises:
            InputError: for a file that cannot be read, or a row that has not as many columns as the heading.
        """
        try:
            with path.open(encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file, strict=True)
                columns = tuple(reader.fieldnames or ())
                found = [(reader.line_num, row) for row in reader]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError("the table", str(path), f"cannot be read: {_reason(error)}") from None
        for line, row in found:
            if None in row or None in row.values():
                raise InputError("the table", f"{path}, line {line}", "has not as many columns as the heading")
        return cls(path, columns, [row for _, row in found], [line for line, _ in found])

    def needs(self, columns: Sequence[str], made_by: str) -> None:
        """Refuse a table that lacks any of these columns, or has no rows.

        Raises:
            InputError: saying which, and the command that makes such a table.
        """
        missing = [column for column in columns if column not in self.columns]
        if missing:
            rule = f"lacks the columns {', '.join(missing)}"
        elif not self.rows:
            rule = "has no rows"
        else:
            return
        raise InputError("the table", str(self.path), rule, f"make it with {made_by}")

    def number(self, row: int, column: str) -> float | None:
        """The number in a cell; ``None`` for an empty one.

        Raises:
            InputError: for what is no number, negative or infinite.
        """
        text = self.rows[row][column]
        if not text:
            return None
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not 0 <= number < math.inf:
            raise InputError(f"{self.path}, line {self.lines[row]}: {column}", text, "must be a number, at least 0")
        return number

    def positive(self, row: int, column: str) -> float:
        """The number in a cell.

        Raises:
            InputError: for what is no number above 0.
        """
        number = self.number(row, column)
        if not number:
            where = f"{self.path}, line {self.lines[row]}: {column}"
            raise InputError(where, self.rows[row][column], "must be a number above 0")
        return number


def _reason(error: Exception) -> str:
    """What the system says."""
    return getattr(error, "strerror", None) or str(error)
