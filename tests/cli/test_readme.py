"""Commands in the README and in docs/ print what they are said to print; run as a script, this writes what they print.

Only the time that a search took is not compared.
"""

from __future__ import annotations

import ast
import doctest
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from costmodel.strategy import strategies

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
#: All that is written by hand for users; docs/mixers.md is made by ``costmodel formulas``.
PAGES = [README, *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name != "mixers.md")]
BLOCK = re.compile(r"^```console\n\$ (?P<command>[^\n]+)\n(?P<output>.*?)^```$", re.MULTILINE | re.DOTALL)
TOOK = re.compile(r"(plans in) [0-9.]+ (?:us|ms|s)\b")
LINK = re.compile(r"\[[^]]*\]\((?!https?:)(?P<file>[^)#]*)#?(?P<heading>[^)]*)\)")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def printed(command: str) -> str:
    """What a command prints, or its first lines where it ends in ``| head -n N``."""
    command, _, head = command.partition(" | head -n ")
    program, *arguments = shlex.split(command)
    assert program == "costmodel"
    done = subprocess.run(
        [sys.executable, "-m", "costmodel", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "80"},
    )
    lines = (done.stdout + done.stderr).splitlines(keepends=True)
    return "".join(lines[: int(head)] if head else lines)


def blocks(page: Path) -> Iterator[re.Match[str]]:
    return BLOCK.finditer(page.read_text())


@pytest.mark.parametrize(
    "block", [block for page in PAGES for block in blocks(page)], ids=lambda block: block["command"]
)
def test_a_command_prints_what_its_page_says(block: re.Match[str]) -> None:
    assert TOOK.sub(r"\1 ...", printed(block["command"])) == TOOK.sub(r"\1 ...", block["output"])


def test_the_questions_of_make_plan_are_answered() -> None:
    asked = [block["command"] for block in blocks(README)]
    makefile = (ROOT / "Makefile").read_text()
    questions = re.findall(r"^\t\$\(BIN\)/(costmodel plan [^|\n]+?)(?: \|\|.*)?$", makefile, flags=re.MULTILINE)
    assert len(questions) == 3
    assert all(any(command.startswith(question) for command in asked) for question in questions)


@pytest.mark.parametrize("page", [page for page in PAGES if "\n>>> " in page.read_text()], ids=lambda page: page.name)
def test_the_examples_in_python_hold(page: Path) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    found = doctest.testfile(str(page), module_relative=False, optionflags=flags)
    assert found.attempted > 0 and found.failed == 0


def headings(page: Path) -> set[str]:
    """What a link to a part of a page ends in."""
    titles = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.finditer(FENCED.sub("", page.read_text())):
        target = (page.parent / link["file"]) if link["file"] else page
        assert target.exists(), link[0]
        assert not link["heading"] or link["heading"] in headings(target), link[0]


def test_every_strategy_is_said_to_be_for_something() -> None:
    text = (ROOT / "docs" / "planning.md").read_text()
    assert all(f"`{name}`" in text for name in strategies.names())


def python_block(page: str, start: str) -> str:
    """A page's one block of Python that begins so."""
    text = (ROOT / "docs" / page).read_text()
    (shown,) = re.findall(rf"^```python\n({start}.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return str(shown)


def test_the_run_shown_is_that_of_the_docstring() -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / "validate" / "__init__.py").read_text()))
    shown = python_block("running.md", "import torch\\n")
    assert textwrap.indent(shown, "    ", lambda line: bool(line.strip())) in f"{docstring}"


def test_the_mixer_shown_is_the_example() -> None:
    shown = python_block("your-own.md", "class ")
    example = (ROOT / "examples" / "keys_as_values.py").read_text()
    for line in filter(str.strip, shown.splitlines()):
        assert line in example


if __name__ == "__main__":
    for written in PAGES:
        text = written.read_text()
        written.write_text(
            BLOCK.sub(lambda block: f"```console\n$ {block['command']}\n{printed(block['command'])}```", text)
        )
