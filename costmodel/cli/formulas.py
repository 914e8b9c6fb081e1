"""``costmodel formulas``: the formulas behind the numbers."""

from __future__ import annotations

from typing import Any

import click

from costmodel.cli.options import JSON, PASSES, complete_mixer, complete_strategy, parse_sizes


@click.command()
@click.option("--mixer", metavar="NAME", required=True, shell_complete=complete_mixer, help="A name or file.py:NAME.")
@click.option(
    "--strategy",
    metavar="NAME",
    default="whole",
    show_default=True,
    shell_complete=complete_strategy,
    help="How the sequence is spread.",
)
@click.option("--pass", "phase", type=PASSES, default="forward", show_default=True, help="Which pass.")
@click.option("--kernel", metavar="NAME", help="Implementation of the mixer.  [default: its first]")
@click.option("--tensor", is_flag=True, help="With tensor parallelism.")
@click.option("--causal/--full", default=True, help="Whether a token sees only earlier ones.  [default: causal]")
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

    The layer is the token mixer with its projections, without norms, residuals and feed-forward. Evaluated at numbers
    these are the numbers of "costmodel predict".
    """
    from costmodel.arrangement import Way
    from costmodel.formulas import layer_formulas
    from costmodel.mixer import mixers
    from costmodel.report import formula_page
    from costmodel.strategy import strategies
    from costmodel.workload import Workload

    kernel = options["kernel"] or mixers.get(options["mixer"]).kernels[0]
    way = Way(strategies.get(options["strategy"]), kernel, options["tensor"])
    workload = Workload(1, 1, options["phase"], options["causal"])
    found = layer_formulas(options["mixer"], way, workload, parse_sizes(options["sizes"]))
    if options["as_json"]:
        click.echo(formula_page.as_json(found))
    elif options["style"]:
        click.echo({"latex": formula_page.as_latex, "markdown": formula_page.as_markdown}[options["style"]](found))
    else:
        formula_page.print_formulas(found)
