"""``costmodel formulas``: the formulas behind the numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from costmodel.cli.options import CAUSAL, JSON, PASSES, complete_mixer, complete_strategy, parse_sizes
from costmodel.errors import InputError
from costmodel.units import parse_count


@click.command()
@click.option("--mixer", metavar="NAME", shell_complete=complete_mixer, help="A name or file.py:NAME.")
@click.option("--all", "every", is_flag=True, help="Every mixer, where it is whole and where it is spread.")
@click.option(
    "--strategy",
    metavar="NAME",
    shell_complete=complete_strategy,
    help="How the sequence is spread.  [default: whole]",
)
@click.option("--pass", "phase", type=PASSES, help="Which pass.  [default: forward]")
@click.option("--kernel", metavar="NAME", help="Implementation of the mixer.  [default: its first]")
@click.option("--tensor", is_flag=True, help="With tensor parallelism.")
@click.option("--cached", metavar="N", help="Tokens that a prefill follows on: a number, or T for the symbol.")
@CAUSAL
@click.option(
    "--set",
    "sizes",
    metavar="KEY=N",
    multiple=True,
    help="A hyperparameter as a number, not a symbol; repeat for more.",
)
@click.option("--latex", "style", flag_value="latex", help="Print LaTeX.")
@click.option("--markdown", "style", flag_value="markdown", help="Print Markdown.")
@JSON
def formulas(**options: Any) -> None:
    """The exact formulas of one layer on one rank: FLOPs, traffic, bytes sent, memory; and what the symbols mean.

    \b
    costmodel formulas --mixer attention --strategy ring
    costmodel formulas --mixer attention --strategy ulysses --pass train --tensor
    costmodel formulas --mixer attention --strategy all-gather --set kv_heads=1 --latex
    costmodel formulas --mixer attention --strategy ring --pass prefill --cached T
    costmodel formulas --all --markdown

    The layer is the token mixer with its projections, without norms, residuals and feed-forward. Evaluated at numbers
    these are the numbers of "costmodel predict".
    """
    if bool(options["mixer"]) == options["every"]:
        given = f"--mixer {options['mixer']} --all" if options["every"] else "neither"
        raise InputError("--mixer or --all", given, "give one of the two", "for example --mixer attention")
    if options["as_json"] and options["style"]:
        raise InputError("--json", f"--json --{options['style']}", "give one of the two")
    if options["every"]:
        _survey(options)
    else:
        _layer(options)


def _layer(options: Mapping[str, Any]) -> None:
    from costmodel.arrangement import Way
    from costmodel.formulas import layer_formulas
    from costmodel.mixer import mixers
    from costmodel.report import formula_page
    from costmodel.strategy import strategies
    from costmodel.subject import from_mixer
    from costmodel.workload import Workload

    mixer, sizes = options["mixer"], parse_sizes(options["sizes"])
    kernel = options["kernel"] or mixers.get(mixer).kernels[0]
    way = Way(strategies.get(options["strategy"] or "whole"), kernel, options["tensor"])
    causal = from_mixer(mixer).causal if options["causal"] is None else options["causal"]
    asked = options["cached"]
    if asked and options["phase"] != "prefill":
        raise InputError("--cached", asked, "only a prefill follows on cached tokens", "add --pass prefill")
    cached = 1 if asked == "T" else parse_count(asked, "--cached") if asked else 0
    workload = Workload(1, 1, options["phase"] or "forward", causal, cached=cached)
    found = layer_formulas(mixer, way, workload, sizes)
    if asked not in (None, "T"):
        found = found.after(cached)
    _show(formula_page, formula_page.print_formulas, found, options)


def _survey(options: Mapping[str, Any]) -> None:
    from costmodel.report import survey_page
    from costmodel.survey import survey

    names = ("strategy", "phase", "kernel", "tensor", "cached", "causal", "sizes")
    given = [name for name in names if options[name] or (name == "causal" and options[name] is not None)]
    if given:
        said = {"phase": "--pass", "sizes": "--set", "causal": "--causal/--full"}
        told = ", ".join(said.get(name, f"--{name}") for name in given)
        raise InputError("--all", told, "these are for --mixer", "leave them out")
    _show(survey_page, survey_page.print_survey, survey(), options)


def _show(page: Any, print_page: Callable[[Any], None], found: Any, options: Mapping[str, Any]) -> None:
    """In the notation that was asked for."""
    if options["as_json"]:
        click.echo(page.as_json(found))
    elif options["style"]:
        click.echo({"latex": page.as_latex, "markdown": page.as_markdown}[options["style"]](found))
    else:
        print_page(found)
