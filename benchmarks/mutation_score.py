"""How many small changes to mixers and recurrences their definitions find out: ``make mutations``.

Every number, arithmetic operator and elementwise function in ``costmodel/mixers`` and ``costmodel/recurrences`` is
changed, one at a time (definitions, usual sizes and texts apart), and the mixers concerned are compared with their
definitions on one process: output, gradients and decoding, with each kernel. A change that no comparison finds is
printed: some change nothing that can be seen, such as the epsilon of a norm by a factor. ``--each 4`` takes four
changes of every mixer at random.
"""

from __future__ import annotations

import ast
import importlib
import importlib.abc
import importlib.util
import signal
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import click

from costmodel.mixer import Mixer, mixers
from costmodel.model import MlpSpec
from costmodel.strategies.whole import Whole
from costmodel.subject import Layer, from_mixer
from tests.validate.cases import Case, check_values, run_case
from tests.validate.drawing import OPTIONS
from validate.launch import Rank

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("costmodel.mixers", "costmodel.recurrences")

#: Seconds that the comparisons may take of one change, which may be one that never ends.
LONGEST_S = 60

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
    causal = mixer.causality != "full"
    for layer in layers(mixer):
        yield from _of(layer, causal)


def layers(mixer: Any) -> Iterator[Layer]:
    """Small ones of a mixer, with and without what it has only where a size or a model says so."""
    sizes = {key: 2 if size.cut else 4 if key.endswith("dim") else 3 for key, size in mixer.sizes.items() if size.usual}
    sizes |= {"kv_heads": 1} if "kv_heads" in sizes else {}
    sizes |= {key: value for key, value in SIZES.get(mixer.name, {}).items() if key in mixer.sizes}
    without = {key: 0 for key in sizes if mixer.sizes[key].optional}
    for given in (sizes, sizes | without) if without else (sizes,):
        (layer,) = from_mixer(mixer.name, 5, **given).layers
        yield replace(layer, mixer=mixer, sizes={**layer.sizes, **OPTIONS.get(mixer.name, {})})
    if mixer.name == "attention":
        shared = {**layer.sizes, "doubled": 1, "adapter": 2}
        yield replace(layer, mixer=mixer, sizes=shared, mlp=MlpSpec(3, adapter=2), norms=2, shared=1)


def _of(layer: Layer, causal: bool) -> Iterator[Case]:
    mixer: Any = layer.mixer
    for kernel in mixer.kernels:
        for mask in (True, False) if mixer.causality == "either" else (causal,):
            grain = mixer.grain(layer.sizes)
            pieces = 6 if grain < 3 else 5 if grain < LONG else 2
            length = grain * max(pieces, -(-mixer.shortest(layer.sizes) // grain))
            case = Case(layer, Handed(), {}, length, 2, mask, kernel)
            yield case
            if mask and not mixer.undecoded:
                yield replace(case, phase="decode")


#: Tokens of a chunk of which two are enough.
LONG = 32

#: Sizes that a mixer needs besides; of decays by channel, chunks of two pieces.
SIZES: dict[str, dict[str, int]] = {
    **{name: {"chunk": LONG} for name in ("gla", "hgrn2", "kda", "rwkv5", "rwkv6", "rwkv7")},
    "cosformer": {"longest": 1000},
    "hyena": {"longest": 1000},
    "longformer": {"side": 1},
    "longnet": {"head_dim": 6, "kept": 2, "dilation": 2, "growth": 2},
    "moba": {"block": 2, "chosen": 2},
    "nsa": {"heads": 4, "kv_heads": 1, "block": 2, "chosen": 4, "near": 3},
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
    """Mixers that a module has a part in, itself or through others: the module of each, and its name."""
    named = [(type(mixers.get(name)).__module__, name) for name in mixers.names()]
    return [(where, name) for where, name in named if module in imports(where)]


@cache
def imports(module: str) -> frozenset[str]:
    """A module, and those of ``PACKAGES`` that it needs."""
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    needed = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return frozenset((module,)).union(*(imports(name) for name in needed if name.startswith(PACKAGES)))


def instance(module: str, name: str) -> Any:
    """The mixer of that name, of a module as it is imported now."""
    things = vars(importlib.import_module(module)).values()
    return next(x for x in things if isinstance(x, Mixer) and x.name == name)


@dataclass(frozen=True)
class Change:
    """One place of a module that is changed, and the mixers that may find it out, by module and name."""

    module: str
    number: int
    concerned: tuple[tuple[str, str], ...]

    def tried(self) -> str:
        """Where and what, if no comparison finds it out; else nothing."""
        path = ROOT / f"{self.module.replace('.', '/')}.py"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        node, what = list(places(tree))[self.number]
        apply(node)
        signal.alarm(LONGEST_S)
        try:
            with imported(self.module, ast.fix_missing_locations(tree)):
                killed = any(found_out(instance(*mixer)) for mixer in self.concerned)
        except Exception:  # of the import itself, or the alarm
            killed = True
        finally:
            signal.alarm(0)
        return "" if killed else f"{path.relative_to(ROOT)}:{node.lineno}: {what}"  # type: ignore[attr-defined]


def every_change(paths: Iterable[Path]) -> dict[str, list[Change]]:
    """All changes to some files, by module; of files that no mixer has a part of, none."""
    found = {}
    for path in paths:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        concerned = tuple(users(module))
        count = len(list(places(ast.parse(path.read_text(encoding="utf-8"))))) if concerned else 0
        found[module] = [Change(module, number, concerned) for number in range(count)]
    return {module: changes for module, changes in found.items() if changes}


def some_of_each(changes: Iterable[Change], each: int, seed: int) -> dict[str, list[Change]]:
    """So many changes that concern each mixer, at random; none of them twice. That mixer is tried first."""
    by_mixer, taken = defaultdict(list), set[tuple[str, int]]()
    for change in changes:
        for mixer in change.concerned:
            others = (other for other in change.concerned if other != mixer)
            by_mixer[mixer].append(replace(change, concerned=(mixer, *others)))
    found = {}
    for mixer in sorted(by_mixer, key=lambda mixer: mixer[1]):
        left = [change for change in by_mixer[mixer] if (change.module, change.number) not in taken]
        found[mixer[1]] = Random(f"{seed} {mixer[1]}").sample(left, min(each, len(left)))
        taken |= {(change.module, change.number) for change in found[mixer[1]]}
    return found


def _too_long(*_: object) -> NoReturn:
    raise TimeoutError


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False))
@click.option("--each", type=click.IntRange(1), help="So many changes that concern each mixer, at random; else all.")
@click.option("--seed", default=0, show_default=True, help="Of what is chosen at random.")
def main(files: tuple[str, ...], each: int | None, seed: int) -> None:
    """The score of some files, or of all; a table as Markdown."""
    given = [Path(file).resolve() for file in files]
    paths = given or sorted(p for name in ("mixers", "recurrences") for p in (ROOT / "costmodel" / name).glob("*.py"))
    groups = every_change(paths)
    if each:
        groups = some_of_each([change for changes in groups.values() for change in changes], each, seed)
    for mixer in {mixer for changes in groups.values() for change in changes for mixer in change.concerned}:
        if found_out(instance(*mixer)):
            raise click.ClickException(f"{mixer[1]} differs from its definition without any change")
    signal.signal(signal.SIGALRM, _too_long)
    survived = list[str]()
    click.echo(f"| {'mixer' if each else 'module'} | changes | found out |\n|---|---|---|")
    for name, changes in groups.items():
        left = [text for change in changes if (text := change.tried())]
        survived += left
        click.echo(f"| {name} | {len(changes)} | {len(changes) - len(left)} |")
    count = sum(map(len, groups.values()))
    found = count - len(survived)
    click.echo(f"| all | {count} | {found} ({found / max(1, count):.1%}) |\n\nNot found out:\n")
    for line in survived:
        click.echo(f"- `{line}`")


if __name__ == "__main__":
    main()
