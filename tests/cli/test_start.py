"""The command as a process: quick to start, open to other packages' commands, orderly when it is cut short."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from costmodel import __version__
from costmodel.cli.main import BUILT_IN

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "costmodel"]
HEAVY = ("numpy", "sympy", "rich", "msgspec", "torch", "costmodel.plan")


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "80", **environment}
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=120, check=False, env=environment
    )


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], *([name, "-h"] for name in BUILT_IN)])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    source = "import sys; from costmodel.cli.main import main\ntry: main(sys.argv[1:])\n"
    source += "finally: print(*sys.modules, sep='\\n', file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", source, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    loaded = set(done.stderr.split())
    assert "click" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_help_names_every_command_and_its_examples() -> None:
    page = process("--help").stdout
    assert all(f"  {name} " in page for name in BUILT_IN)
    assert "Exit status" in page and "_COSTMODEL_COMPLETE" in page
    for name in BUILT_IN:
        assert f"costmodel {name}" in process(name, "--help").stdout
    assert process("--version").stdout.strip() == f"costmodel, version {__version__}"


def test_a_command_of_another_package(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(
        "import click\n\n@click.command()\ndef hello():\n    click.echo('hello there')\n"
    )
    info = tmp_path / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[costmodel.commands]\nhello = other:hello\nbroken = nowhere:command\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    assert process("hello", PYTHONPATH=path).stdout == "hello there\n"
    page = process("--help", PYTHONPATH=path).stdout
    assert re.search(r"hello +From the package other\.", page)
    assert re.search(r"broken +From the package nowhere\.", page)  # listed without being imported
    broken = process("broken", PYTHONPATH=path)
    assert broken.returncode == 2
    assert "nowhere" in broken.stderr and "Traceback" not in broken.stderr


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("costmodel pl", "plan"),
        ("costmodel plan --mixer att", "attention"),
        ("costmodel predict --strategy ulysses-r", "ulysses-ring"),
        ("costmodel plan --cluster 8xrt", "8xrtx4090"),
        ("costmodel plan --cluster h1", "h100"),
        ("costmodel plan --pass pre", "prefill"),
        ("costmodel list prof", "profiles"),
        ("costmodel list profiles rtx", "rtx4090"),
    ],
)
def test_shell_completion(line: str, found: str) -> None:
    words = line.split()
    environment = {"_COSTMODEL_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    source = "from costmodel.cli.main import main; main(prog_name='costmodel')"
    done = subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | environment,
    )
    assert found in [entry.partition(",")[2] for entry in done.stdout.split()]


def test_a_closed_pipe_is_quiet() -> None:
    shown = subprocess.run(
        ["bash", "-c", f"'{sys.executable}' -m costmodel list profiles --verbose | head -1; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"COLUMNS": "80"},
    )
    assert shown.stderr == ""


def test_ctrl_c_is_130_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\n\nprint('here', flush=True)\ntime.sleep(60)\n")
    arguments = ["plan", "--mixer", f"{tmp_path / 'slow.py'}:x", "--seq", "1k", "--cluster", "h100"]
    with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None and running.stdout.readline() == "here\n"
        time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "Traceback" not in errors


def test_a_terminal_without_the_characters_gets_its_answer() -> None:
    done = process("formulas", "--mixer", "attention", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "FLOP" in done.stdout


def test_piped_output_has_no_colours() -> None:
    assert "\x1b" not in process("list", "mixers").stdout
