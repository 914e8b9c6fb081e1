"""The core works where there is no torch.

Each test runs in a process of its own that cannot import torch, and so means the same whether or not torch is
installed.
"""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import costmodel

BLOCK_TORCH = """
import sys

class Block:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Block)
"""
RUN_COMMAND = """
from costmodel.cli.main import main
sys.argv[0] = "costmodel"
main()
"""
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(costmodel.__path__, "costmodel.", onerror=lambda name: None)
    if not module.name.endswith("__main__")
)


def run_without_torch(source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-W", "error", "-c", BLOCK_TORCH + source, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_torch_is_blocked() -> None:
    for source in ("import torch", "import torch.distributed", "from torch import nn"):
        assert "ModuleNotFoundError: No module named 'torch" in run_without_torch(source).stderr


def test_every_module_of_the_core_is_imported() -> None:
    assert {"costmodel.units", "costmodel.errors"} <= set(MODULES)
    source = "import importlib\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
    source += "assert 'torch' not in sys.modules\nprint(len(sys.argv) - 1)"
    done = run_without_torch(source, *MODULES)
    assert (done.returncode, done.stdout.strip()) == (0, str(len(MODULES))), done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["list"],
        ["plan", "--mixer", "attention", "--seq", "64Ki", "--cluster", "4xrtx4090"],
        ["predict", "--mixer", "attention", "--seq", "64Ki", "--cluster", "4xrtx4090", "--strategy", "ring"],
        ["formulas", "--mixer", "attention", "--strategy", "ring"],
    ],
)
def test_the_command_line_runs(arguments: list[str]) -> None:
    done = run_without_torch(RUN_COMMAND, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout
