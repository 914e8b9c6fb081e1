"""``costmodel plan``: the best way to run a workload."""

from __future__ import annotations

from typing import Any

import click

from costmodel.cli.options import CLUSTER, JSON, PASSES, SUBJECT, VERBOSE, WORKLOAD, Question
from costmodel.units import parse_count


@click.command()
@SUBJECT
@click.option("--seq", metavar="N", required=True, help="Tokens of a sequence: 128k, 1Mi. When decoding, of the cache.")
@CLUSTER
@click.option(
    "--pass",
    "passes",
    type=PASSES,
    multiple=True,
    default=("forward", "train"),
    show_default="forward and train",
    help="Which pass; repeat for more.",
)
@WORKLOAD
@click.option("--top", metavar="N", default="8", show_default=True, help="How many other plans to show.")
@VERBOSE
@JSON
@click.pass_context
def plan(ctx: click.Context, /, **options: Any) -> None:
    """The best way to run a workload on a cluster: what it costs, why it wins, how sure that is.

    \b
    costmodel plan --mixer attention --seq 1Mi --cluster 4xrtx4090
    costmodel plan --mixer attention --set heads=32 --set kv_heads=8 --seq 256Ki --cluster 8xh100
    costmodel plan --model config.json --seq 1Mi --cluster 8xh100 --pass prefill
    costmodel plan --model config.json --seq 128Ki --cluster 8xh100 --pass decode --cache-bytes 1

    Every mesh of all devices, strategy, kernel and way of saving memory is timed in closed form. When no plan fits,
    the answer is by how much, and what would fit; the exit status is then 1.
    """
    from costmodel.hardware import parse_cluster
    from costmodel.report.answer import Answer
    from costmodel.report.data import answers_as_json
    from costmodel.report.document import print_answers

    question, cluster = Question.read(options), parse_cluster(options["cluster"])
    length, top = parse_count(options["seq"], "--seq"), parse_count(options["top"], "--top")
    workloads = [question.workload(length, phase) for phase in dict.fromkeys(options["passes"])]
    answers: list[Answer] = []
    for workload in workloads:
        answers.append(Answer.find(question.subject, workload, cluster, top, answers[0] if answers else None))
    if options["as_json"]:
        click.echo(answers_as_json(answers))
    else:
        print_answers(answers, question.model, options["verbose"])
    if any(answer.best is None for answer in answers):
        ctx.exit(1)
