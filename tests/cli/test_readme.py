"""The README's commands print what it says they print; run as a script, this writes what they print now into it.

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

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
BLOCK = re.compile(r"^```console\n\$ (?P<command>[^\n]+)\n(?P<output>.*?)^```$", re.MULTILINE | re.DOTALL)
TOOK = re.compile(r"(plans in) [0-9.]+ (?:us|ms|s)\b")


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


def blocks() -> Iterator[re.Match[str]]:
    return BLOCK.finditer(README.read_text())


@pytest.mark.parametrize("block", list(blocks()), ids=lambda block: block["command"])
def test_a_command_prints_what_the_readme_says(block: re.Match[str]) -> None:
    assert TOOK.sub(r"\1 ...", printed(block["command"])) == TOOK.sub(r"\1 ...", block["output"])


def test_the_questions_of_make_plan_are_answered() -> None:
    asked = [block["command"] for block in blocks()]
    makefile = (ROOT / "Makefile").read_text()
    questions = re.findall(r"^\t\$\(BIN\)/(costmodel plan [^|\n]+?)(?: \|\|.*)?$", makefile, flags=re.MULTILINE)
    assert len(questions) == 3
    assert all(any(command.startswith(question) for command in asked) for question in questions)


def test_the_examples_in_python_hold() -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    found = doctest.testfile(str(README), module_relative=False, optionflags=flags)
    assert found.attempted > 0 and found.failed == 0


def python_block(start: str) -> str:
    """The README's one block of Python that begins so."""
    (shown,) = re.findall(rf"^```python\n({start}.*?)^```$", README.read_text(), flags=re.MULTILINE | re.DOTALL)
    return str(shown)


def test_the_run_shown_is_that_of_the_docstring() -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / "validate" / "__init__.py").read_text()))
    assert textwrap.indent(python_block("import torch"), "    ", lambda line: bool(line.strip())) in f"{docstring}"


def test_the_mixer_shown_is_the_example() -> None:
    shown = python_block("class ")
    example = (ROOT / "examples" / "keys_as_values.py").read_text()
    for line in filter(str.strip, shown.splitlines()):
        assert line in example


if __name__ == "__main__":
    README.write_text(
        BLOCK.sub(lambda m: f"```console\n$ {m['command']}\n{printed(m['command'])}```", README.read_text())
    )
