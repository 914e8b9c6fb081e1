"""``costmodel trace``: the formulas of a torch module."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from typing import Any

import click

from costmodel.cli.options import JSON
from costmodel.errors import InputError, UnknownNameError


@click.command()
@click.argument("module", metavar="FILE.py:NAME")
@click.option("--init", "arguments", metavar="KEY=VALUE", multiple=True, help="An argument of the constructor.")
@click.option("--input", "inputs", metavar="SIZE,...", multiple=True, help="Shape of a tensor that it is called with.")
@click.option(
    "--input-dtype",
    "dtypes",
    metavar="NAME",
    multiple=True,
    help="Its dtype, such as int64 for token indices: one for all, or one for each.  [default: float32]",
)
@click.option("--backward", is_flag=True, help="The backward pass too.")
@click.option("--latex", "style", flag_value="latex", help="Print LaTeX.")
@click.option("--markdown", "style", flag_value="markdown", help="Print Markdown.")
@JSON
def trace(**options: Any) -> None:
    """Exact formulas of a torch.nn.Module of your own: FLOPs by class, parameters, bytes saved for the backward pass.

    \b
    costmodel trace my_module.py:Block --init dim=H*d --init heads=H --input B,L,H*d --backward
    costmodel trace my_module.py:Embedder --init tokens=V --init dim=D --input B,L --input-dtype int64

    A size is a number, a symbol, or a product such as H*16: write D as H*d where H must divide D. Other arguments are
    Python values (True, 0.1, "'gelu'"). The module is run without values at many sizes, in training mode; formulas
    are the polynomials through its counts, and are refused where held-out sizes disagree. Masks are not seen:
    causal attention counts every pair. What counts as one FLOP: docstring of validate.op_counts.
    """
    if find_spec("torch") is None:
        raise InputError("trace", options["module"], "torch is not installed", "pip install 'costmodel[validate]'")
    from validate import trace_page
    from validate.module_trace import Question, load_module, trace_module

    make = load_module(options["module"])
    asked = Question(options["module"], make, _arguments(options["arguments"]), _inputs(options), options["backward"])
    found = trace_module(asked)
    if options["as_json"]:
        click.echo(trace_page.as_json(found))
    elif options["style"]:
        click.echo({"latex": trace_page.as_latex, "markdown": trace_page.as_markdown}[options["style"]](found))
    else:
        trace_page.print_trace(found)


def _arguments(given: tuple[str, ...]) -> dict[str, Any]:
    """Arguments by name from ``("dim=H*d", "bias=False")``."""
    from validate.module_trace import parse_size

    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not key.isidentifier():
            raise InputError("--init", text, "must be a name and a value", "for example --init dim=D")
        if key in found:
            raise InputError("--init", text, f"{key} is given twice")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = parse_size(value, f"--init {key}")
    return found


def _inputs(options: dict[str, Any]) -> tuple[Any, ...]:
    """Inputs from their shapes and dtypes."""
    import torch

    from validate.module_trace import Input, parse_size

    shapes, dtypes = options["inputs"], options["dtypes"] or ("float32",)
    if not shapes:
        raise InputError("--input", "none", "the shape of every tensor is needed", "for example --input B,L,D")
    if len(dtypes) not in (1, len(shapes)):
        rule = f"must be one for all or one for each of the {len(shapes)} inputs"
        raise InputError("--input-dtype", ", ".join(dtypes), rule)
    known = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
    for name in dtypes:
        if name not in known:
            raise UnknownNameError("dtype", name, known)
    each = dtypes * (len(shapes) if len(dtypes) == 1 else 1)
    parsed = [tuple(parse_size(size, "--input") for size in shape.split(",")) for shape in shapes]
    return tuple(Input(shape, known[name]) for shape, name in zip(parsed, each, strict=True))
