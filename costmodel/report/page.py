"""A page of text as wide as the terminal (80 columns where there is none): the few things that answers are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import click
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

#: Wider lines are hard to read.
WIDEST = 140

#: Columns for the labels of facts.
LABEL = 10


class Page:
    """Headings, facts, tables and notes in one style; printed when the ``with`` block ends without an error."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.console.width = min(self.console.width, WIDEST)

    def __enter__(self) -> Page:
        self.console.begin_capture()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        text = self.console.end_capture()
        if error is None:
            click.echo("".join(f"{line.rstrip()}\n" for line in text.splitlines()), nl=False)

    @property
    def width(self) -> int:
        return self.console.width

    def title(self, left: str, right: str = "") -> None:
        """What was asked."""
        if len(left) + len(right) + 2 > self.width:
            self.console.print(Text(left, "bold"))
            left = ""
        row = Table.grid(expand=True)
        row.add_column(ratio=1)
        row.add_column(justify="right")
        row.add_row(Text(left, "bold"), Text(right, "bold"))
        self.console.print(row)

    def line(self, text: str, style: str = "") -> None:
        """A paragraph."""
        self.console.print(Text(text, style))

    def heading(self, text: str) -> None:
        """The beginning of a part."""
        self.console.print()
        self.console.print(Rule(Text(text, "bold"), align="left", style="dim"))

    def facts(self, facts: Iterable[tuple[str, str | Text]]) -> None:
        """Labels and what they say."""
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="cyan", no_wrap=True, min_width=LABEL)
        grid.add_column()
        for label, text in facts:
            grid.add_row(label, text)
        self.console.print(grid)

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[str | Text]],
        right: Sequence[str] = (),
        whole: Sequence[str] = (),
    ) -> None:
        """Rows under headings; the columns named in ``right`` hold numbers, those in ``whole`` are not broken."""
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), header_style="cyan", border_style="dim", show_edge=False)
        for column in columns:
            number = column in right
            justify: Literal["left", "right"] = "right" if number else "left"
            # what is wider than a narrow terminal goes on in the next line: nothing is cut off
            table.add_column(column, justify=justify, no_wrap=number or column in whole, overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.console.print()
        self.console.print(table)

    def indented(self, text: str, columns: int) -> None:
        """A paragraph set in from the left."""
        self.console.print(Padding(Text(text), (0, 0, 0, columns)))

    def note(self, text: str) -> None:
        """A remark below an answer."""
        self.console.print(Text(text, "dim"))

    def gap(self) -> None:
        """An empty line."""
        self.console.print()
