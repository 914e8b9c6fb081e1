"""Who may import whom, read from the source of every module of the tree.

plots ──────┐
calibrate ──┼──▶ costmodel
validate ───┘
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("costmodel", "calibrate", "validate", "plots")

# What no module of a package may import, not even inside a function.
FORBIDDEN = {
    "costmodel": {"calibrate", "validate", "plots", "torch", "matplotlib", "scipy", "pandas"},
    "calibrate": {"validate", "plots"},
    "validate": {"plots"},
    "plots": {"torch"},
}
# What is measured are the kernels that the executor runs: these modules of calibrate, imported by nothing that validate
# imports, run them.
MEASURING = {f"calibrate.{name}": "validate" for name in ("kernels", "collectives", "session", "whole")}
# Only the command line, and what starts it, knows the command line.
CLI = "costmodel.cli"
STARTS_CLI = {"costmodel.__main__"}
# `costmodel --help` is quick because starting the command line loads nothing else from outside.
CLI_LOADS = {"click"}


@dataclass(frozen=True)
class Import:
    """One imported module; ``at_start`` when it is imported as soon as the importing module is."""

    name: str
    line: int
    at_start: bool


@dataclass(frozen=True)
class Module:
    name: str
    imports: tuple[Import, ...]


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imported_names(node: ast.AST, package: Sequence[str]) -> list[str]:
    """The modules a statement may import; of ``from a import b``, both a and a.b, as b may be a module."""
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=module, names=names, level=level):
            start = [*package[: len(package) - level + 1]] if level else []
            base = ".".join([*start, *([module] if module else [])])
            return [base, *(f"{base}.{alias.name}" for alias in names)]
        case ast.Call(func=func, args=[ast.Constant(value=str(name)), *_]):
            loaders = ("__import__", "import_module", "importlib.import_module")
            return [name] if ast.unparse(func) in loaders else []
    return []


def find_imports(tree: ast.AST, package: Sequence[str], at_start: bool = True) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        for name in imported_names(node, package):
            yield Import(name, getattr(node, "lineno", 0), at_start)
        later = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or is_type_checking(node)
        yield from find_imports(node, package, at_start and not later)


def read_modules(root: Path) -> dict[str, Module]:
    modules = {}
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        package = parts[:-1]
        name = ".".join(package if parts[-1] == "__init__" else parts)
        modules[name] = Module(name, tuple(find_imports(ast.parse(path.read_text()), package)))
    return modules


def forbidden_imports(modules: dict[str, Module]) -> Iterator[str]:
    for module in modules.values():
        forbidden = FORBIDDEN[module.name.split(".")[0]]
        for imported in module.imports:
            package = imported.name.split(".")[0]
            if package in forbidden and MEASURING.get(module.name) != package:
                yield f"{module.name}:{imported.line} imports {imported.name}"


def imports_of_measuring(modules: dict[str, Module]) -> Iterator[str]:
    for module in modules.values():
        if module.name not in MEASURING:
            for imported in module.imports:
                if imported.at_start and imported.name in MEASURING:
                    yield f"{module.name}:{imported.line} imports {imported.name} as soon as it is imported"


def imports_of_cli(modules: dict[str, Module]) -> Iterator[str]:
    for module in modules.values():
        if within(module.name, "costmodel") and not within(module.name, CLI) and module.name not in STARTS_CLI:
            for imported in module.imports:
                if within(imported.name, CLI):
                    yield f"{module.name}:{imported.line} imports {imported.name}"


def with_parents(name: str) -> list[str]:
    """``a.b.c`` imports a and a.b as well."""
    parts = name.split(".")
    return [".".join(parts[: length + 1]) for length in range(len(parts))]


def loaded_by_cli(modules: dict[str, Module]) -> Iterator[str]:
    """What starting the command line loads from outside, directly or by way of our own modules."""
    waiting = [name for name in modules if within(name, CLI)]
    waiting += [known for name in waiting for known in with_parents(name) if known in modules]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for imported in modules[name].imports:
            top = imported.name.split(".")[0]
            if not imported.at_start:
                continue
            if top in PACKAGES:
                waiting += [known for known in with_parents(imported.name) if known in modules]
            elif top not in CLI_LOADS and top not in sys.stdlib_module_names:
                yield f"{name}:{imported.line} imports {top} when the command line starts"


RULES = (forbidden_imports, imports_of_measuring, imports_of_cli, loaded_by_cli)


@pytest.fixture(scope="module")
def modules() -> dict[str, Module]:
    found = read_modules(ROOT)
    assert {"costmodel", "costmodel.units", "costmodel.errors"} <= found.keys()
    return found


@pytest.mark.parametrize("rule", RULES)
def test_layers_hold(rule, modules: dict[str, Module]) -> None:
    assert sorted(set(rule(modules))) == []


def plant(root: Path, files: dict[str, str]) -> dict[str, Module]:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return read_modules(root)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("costmodel/plan.py", "import torch"),
        ("costmodel/plan.py", "import torch.distributed as dist"),
        ("costmodel/plan.py", "def f():\n    from matplotlib import pyplot"),
        ("costmodel/plan.py", "if True:\n    import validate.run"),
        ("costmodel/plan.py", "try:\n    import scipy\nexcept ImportError:\n    pass"),
        ("costmodel/plan.py", "import importlib\nimportlib.import_module('pandas')"),
        ("costmodel/plan.py", "__import__('torch')"),
        ("costmodel/hardware/deep/fit.py", "from calibrate import store"),
        ("plots/figure.py", "class A:\n    import torch"),
        ("calibrate/timer.py", "from validate import run"),
    ],
)
def test_a_planted_forbidden_import_is_found(tmp_path: Path, file: str, source: str) -> None:
    assert len(set(forbidden_imports(plant(tmp_path, {file: source})))) >= 1


def test_measuring_runs_the_executor_and_is_imported_late(tmp_path: Path) -> None:
    found = plant(
        tmp_path,
        {
            "calibrate/kernels.py": "from validate.executor import Executor\nimport plots",
            "calibrate/command.py": "def run():\n    from calibrate.kernels import Bench",
            "validate/timing.py": "from calibrate.method import measure\nfrom calibrate.kernels import Bench",
        },
    )
    assert [text.split()[-1] for text in forbidden_imports(found)] == ["plots"]
    assert {text.split(":")[0] for text in imports_of_measuring(found)} == {"validate.timing"}


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("costmodel/plan.py", "from costmodel.cli import main"),
        ("costmodel/plan.py", "from costmodel import cli"),
        ("costmodel/plan.py", "from . import cli"),
        ("costmodel/__init__.py", "from .cli.main import main"),
        ("costmodel/mixers/attention.py", "def f():\n    from ..cli import main"),
    ],
)
def test_a_planted_import_of_the_command_line_is_found(tmp_path: Path, file: str, source: str) -> None:
    assert len(set(imports_of_cli(plant(tmp_path, {file: source})))) >= 1


@pytest.mark.parametrize(
    "files",
    [
        {"costmodel/cli/main.py": "import numpy as np"},
        {"costmodel/cli/main.py": "import click\nfrom rich.table import Table"},
        {"costmodel/cli/main.py": "from costmodel.plan import plan", "costmodel/plan.py": "import sympy"},
        {"costmodel/cli/main.py": "from costmodel import plan", "costmodel/plan.py": "import sympy"},
        {"costmodel/cli/main.py": "from costmodel.a.b import c", "costmodel/a/__init__.py": "import msgspec"},
        {"costmodel/cli/main.py": "", "costmodel/__init__.py": "import numpy"},
        {"costmodel/cli/__init__.py": "", "costmodel/cli/plan.py": "import numpy"},
    ],
)
def test_a_planted_slow_start_is_found(tmp_path: Path, files: dict[str, str]) -> None:
    assert len(set(loaded_by_cli(plant(tmp_path, files)))) == 1


def test_imports_that_are_allowed_are_not_reported(tmp_path: Path) -> None:
    late = "import click\ndef plan():\n    import numpy\n    from costmodel.plan import plan\n"
    typing = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from costmodel.plan import Plan\n"
    modules = plant(
        tmp_path,
        {
            "costmodel/__init__.py": "__version__ = '1'",
            "costmodel/__main__.py": "from costmodel.cli.main import main",
            "costmodel/cli/main.py": late + typing,
            "costmodel/cli/table.py": "from . import main",
            "costmodel/plan.py": "import numpy, sympy, torchlike\nfrom .units import format_count",
            "validate/run.py": "import torch\nfrom calibrate import timer\nfrom costmodel.cli import main",
        },
    )
    assert [found for rule in RULES for found in rule(modules)] == []
