"""Running the command line inside the test's process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from costmodel.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


def invoke(*arguments: str, width: int = 80) -> Result:
    """What ``costmodel ARGUMENTS`` prints, and its exit status; anything but an orderly end is raised."""
    result = CliRunner(env={"COLUMNS": str(width)}).invoke(main, arguments, prog_name="costmodel")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="session")
def run() -> Callable[..., Result]:
    return invoke


@pytest.fixture(scope="session")
def ask() -> Callable[..., dict[str, Any]]:
    """The JSON document of a command, which must end with one of the given exit statuses."""

    def asked(*arguments: str, status: int = 0) -> dict[str, Any]:
        result = invoke(*arguments, "--json")
        assert result.exit_code == status, result.output
        document: dict[str, Any] = json.loads(result.stdout, parse_constant=pytest.fail)
        return document

    return asked


@pytest.fixture(scope="session")
def llama() -> str:
    return str(ROOT / "examples" / "llama-3-8b.json")
