"""How many small changes to mixers and recurrences their definitions find out: ``make mutations``.

Every number, arithmetic operator and elementwise function in ``costmodel/mixers`` and ``costmodel/recurrences`` is
changed, one at a time (definitions, usual sizes and texts apart), and the mixers concerned are compared with their
definitions on one process: output, gradients and decoding, with each kernel. A change that no comparison finds is
printed: some change nothing that can be seen, such as the epsilon of a norm by a factor.
"""

from __future__ import annotations

import ast
import importlib
import importlib.abc
import importlib.util
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from costmodel.mixer import Mixer, mixers
from costmodel.strategies.whole import Whole
from costmodel.subject import from_mixer
from tests.validate.cases import Case, check_values, run_case
from tests.validate.drawing import OPTIONS
from validate.launch import Rank

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("costmodel.mixers", "costmodel.recurrences")

#: What takes the place of an elementwise function.
SWAPPED = {
    "add": "sub", "sub": "add", "mul": "add", "div": "mul", "neg": "square", "exp": "square", "square": "abs",
    "sigmoid": "tanh", "tanh": "sigmoid", "silu": "sigmoid", "gelu": "silu", "softplus": "exp", "log_sigmoid": "neg",
    "relu": "abs", "abs": "relu", "complement": "neg", "reciprocal": "neg", "sqrt": "square", "rsqrt_eps": "square",
    "sin": "cos", "cos": "sin", "maximum": "minimum", "minimum": "maximum", "log": "neg",
}  # fmt: skip
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult}

#: Functions whose numbers are no coefficients.
LEFT_OUT = ("written", "_written", "usual_width", "query_heads", "delta_sizes", "cell_sizes")


def places(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Nodes that may be changed, and how: those of function bodies."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            if not node.name.startswith(LEFT_OUT):
                yield from _within(node)
        elif isinstance(node, ast.ClassDef):
            yield from places(node)


def _within(function: ast.FunctionDef) -> Iterator[tuple[ast.AST, str]]:
    for statement in function.body:
        for node in ast.walk(statement):
            if what := _change(node):
                yield node, what


def _change(node: ast.AST) -> str:
    match node:
        case ast.Constant(value=bool()) | ast.Expr():
            return ""
        case ast.Constant(value=int() | float() as number):
            return f"{number} -> {number + 1}"
        case ast.Constant(value=str(name)) if name in SWAPPED:
            return f"{name} -> {SWAPPED[name]}"
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            return f"{type(op).__name__} -> {OPERATORS[type(op)].__name__}"
    return ""


def apply(node: Any) -> None:
    """Change a node in place."""
    if isinstance(node, ast.BinOp):
        node.op = OPERATORS[type(node.op)]()
    elif isinstance(node.value, str):
        node.value = SWAPPED[node.value]
    else:
        node.value += 1


class _Source(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a changed tree."""

    def __init__(self, name: str, tree: ast.Module) -> None:
        self.name, self.tree = name, tree

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        return importlib.util.spec_from_loader(name, self) if name == self.name else None

    def exec_module(self, module: Any) -> None:
        exec(compile(self.tree, self.name, "exec"), module.__dict__)


@contextmanager
def imported(name: str, tree: ast.Module) -> Iterator[None]:
    """Mixers and recurrences imported anew, one of them from a changed tree."""
    kept = {key: sys.modules.pop(key) for key in list(sys.modules) if key.startswith(PACKAGES)}
    finder = _Source(name, tree)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for key in [key for key in sys.modules if key.startswith(PACKAGES)]:
            del sys.modules[key]
        sys.modules.update(kept)


def cases(mixer: Any) -> Iterator[Case]:
    """Small layers of a mixer: training and decoding, each kernel."""
    sizes = {key: 2 if size.cut else 4 if key.endswith("dim") else 3 for key, size in mixer.sizes.items() if size.usual}
    sizes |= {key: value for key, value in SIZES.get(mixer.name, {}).items() if key in mixer.sizes}
    (layer,) = from_mixer(mixer.name, 5, **sizes).layers
    layer = replace(layer, mixer=mixer, sizes={**layer.sizes, **OPTIONS.get(mixer.name, {})})
    causal = mixer.causality != "full"
    for kernel in mixer.kernels:
        for mask in (True, False) if mixer.causality == "either" else (causal,):
            grain = mixer.grain(layer.sizes)
            length = grain * max(2 if grain > 2 else 6, -(-mixer.shortest(layer.sizes) // grain))
            case = Case(layer, Handed(), {}, length, 2, mask, kernel)
            yield case
            if mask and not mixer.undecoded:
                yield replace(case, phase="decode")


#: Sizes that a mixer needs besides.
SIZES: dict[str, dict[str, int]] = {
    "cosformer": {"longest": 1000},
    "hyena": {"longest": 1000},
    "longformer": {"side": 1},
    "longnet": {"head_dim": 6, "kept": 2, "dilation": 2, "growth": 2},
    "moba": {"block": 2, "chosen": 2},
    "nsa": {"heads": 4, "kv_heads": 1, "block": 2, "chosen": 4},
}


class Handed(Whole):
    """The whole sequence on one rank, with every stream and parameter handed on, as those do that exchange them."""

    def apply(self, ops: Any, axes: Any, carry: Any) -> Any:
        return carry.on(carry.streams(), carry.parameters()).whole(ops)


def found_out(mixer: Any) -> bool:
    """Whether some comparison of a mixer fails."""
    try:
        for case in cases(mixer):
            check_values(case, [run_case(Rank(0, 1, 20.0), case, counts=False)])
    except Exception:
        return True
    return False


def users(module: str) -> list[tuple[str, str]]:
    """Mixers that a module has a part in: the module of each, and its name."""
    short, found = module.rpartition(".")[2], []
    for name in mixers.names():
        where = type(mixers.get(name)).__module__
        text = (ROOT / f"{where.replace('.', '/')}.py").read_text(encoding="utf-8")
        if where == module or f".{short} import" in text:
            found.append((where, name))
    return found


def instance(module: str, name: str) -> Any:
    """The mixer of that name, of a module as it is imported now."""
    things = vars(importlib.import_module(module)).values()
    return next(x for x in things if isinstance(x, Mixer) and x.name == name)


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False))
def main(files: tuple[str, ...]) -> None:
    """The score of some files, or of all."""
    given = [Path(file).resolve() for file in files]
    paths = given or sorted(p for name in ("mixers", "recurrences") for p in (ROOT / "costmodel" / name).glob("*.py"))
    total, survived = Counter[str](), list[str]()
    for path in paths:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        concerned = users(module)
        if not concerned:
            continue
        source = path.read_text(encoding="utf-8")
        unchanged = [name for where, name in concerned if found_out(instance(where, name))]
        if unchanged:
            click.echo(f"{module}: left out, as {', '.join(unchanged)} does not take these sizes without a change")
            continue
        for number in range(len(list(places(ast.parse(source))))):
            tree = ast.parse(source)
            node, what = list(places(tree))[number]
            apply(node)
            total[module] += 1
            signal.alarm(60)
            with imported(module, ast.fix_missing_locations(tree)):
                killed = any(_tried(where, name) for where, name in concerned)
            signal.alarm(0)
            if not killed:
                survived.append(f"{path.relative_to(ROOT)}:{node.lineno}: {what}")  # type: ignore[attr-defined]
        click.echo(f"{module}: {total[module]} changes, {len(survived)} survivors so far", err=True)
    for line in survived:
        click.echo(line)
    count = sum(total.values())
    click.echo(f"{count - len(survived)} of {count} changes found out: {1 - len(survived) / max(1, count):.1%}")


def _tried(module: str, name: str) -> bool:
    try:
        return found_out(instance(module, name))
    except Exception:
        return True


if __name__ == "__main__":
    main()
