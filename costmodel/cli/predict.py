"""``costmodel predict``: the cost of one plan, or of every plan."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from costmodel.cli.options import CLUSTER, JSON, PASSES, SUBJECT, WORKLOAD, Question, apply, complete_strategy
from costmodel.errors import InputError
from costmodel.units import parse_count, parse_counts

AXES = ("data", "context", "ulysses", "tensor")

#: Options that decide one plan.
CHOICES = (*AXES, "context_inside", "kernel", "recompute", "sharing")
PLAN = apply(
    click.option(
        "--strategy",
        metavar="NAME",
        shell_complete=complete_strategy,
        help="How the sequence is spread: a name (costmodel list strategies) or file.py:NAME. For layers of several "
        "kinds, one for all or one for each, with commas.",
    ),
    click.option("--context", metavar="N", help="Context-parallel ranks."),
    click.option("--ulysses", metavar="N", help="Ulysses ranks."),
    click.option("--tensor", metavar="N", help="Tensor-parallel ranks."),
    click.option("--data", metavar="N", help="Data-parallel ranks."),
    click.option("--context-inside", is_flag=True, help="In a grid, the context ranks are the nearer ones."),
    click.option("--kernel", metavar="NAME", help="Implementation of the mixer.  [default: its first]"),
    click.option("--recompute", is_flag=True, help="Keep a layer's input only; run it again before its backward pass."),
    click.option("--sharing", default="replicated", show_default=True, help="Of state: replicated, zero-1 or zero-3."),
    click.option("--all", "every", is_flag=True, help="Every valid plan instead of one."),
)


@click.command()
@SUBJECT
@click.option("--seq", metavar="N,...", required=True, help="Lengths: 64k, or 1k,4k,16k, or doubling 1Ki:1Mi.")
@CLUSTER
@click.option("--pass", "phase", type=PASSES, default="forward", show_default=True, help="Which pass.")
@PLAN
@WORKLOAD
@JSON
@click.pass_context
def predict(ctx: click.Context, /, **options: Any) -> None:
    """What one plan costs: seconds, memory, bytes sent, FLOPs in every reading, MFU.

    \b
    costmodel predict --mixer attention --seq 1Mi --cluster 4xrtx4090 --strategy zigzag
    costmodel predict --mixer attention --seq 1Ki:1Mi --cluster 8xh100 --strategy ulysses --pass train
    costmodel predict --model config.json --seq 64k --cluster 16xh100 --strategy ulysses-ring --context 8 --ulysses 2
    costmodel predict --model config.json --seq 64k,128k --cluster 8xh100 --all

    Axes of the mesh that are not given have 1 rank, except that an axis which the strategy needs takes the devices
    that are left.
    """
    from costmodel.hardware import parse_cluster
    from costmodel.report.predictions import predictions_as_json, print_predictions

    question, cluster = Question.read(options), parse_cluster(options["cluster"])
    if bool(options["strategy"]) == options["every"]:
        given = options["strategy"] or "neither"
        raise InputError("--strategy or --all", given, "give one of the two", "for example --strategy ring")
    chosen = [name for name in CHOICES if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if options["every"] and chosen:
        said = ", ".join(f"--{name.replace('_', '-')}" for name in chosen)
        raise InputError("--all", said, "these are of one plan", "leave them out, or name its --strategy")
    workloads = [question.workload(length, options["phase"]) for length in parse_counts(options["seq"], "--seq")]
    rankings: list[Any] = []
    for workload in workloads:
        rankings.append(_ranking(question, workload, cluster, options, rankings[0] if rankings else None))
    if options["as_json"]:
        click.echo(predictions_as_json(rankings))
    else:
        print_predictions(rankings, question.model)


def _ranking(question: Question, workload: Any, cluster: Any, options: dict[str, Any], beside: Any) -> Any:
    """The plans of one length."""
    from costmodel.estimate import Chosen, estimate, sharing_named
    from costmodel.plan import rank
    from costmodel.report.answer import no_valid_plan

    if options["every"]:
        ranking = rank(question.subject, workload, cluster, beside=beside)
        if not len(ranking.places):
            raise no_valid_plan(ranking)
        return ranking
    chosen = Chosen(
        tuple(options["strategy"].split(",")),
        {axis: parse_count(options[axis], f"--{axis}") for axis in AXES if options[axis] is not None},
        tuple(options["kernel"].split(",")) if options["kernel"] else (),
        options["recompute"],
        sharing_named(options["sharing"]),
        options["context_inside"],
    )
    return estimate(question.subject, workload, cluster, chosen, beside)
