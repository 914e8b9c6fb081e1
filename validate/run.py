"""``costmodel run``: a layer on real ranks, checked, timed and counted, beside the prediction made before it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from costmodel.cli.options import (
    CACHED,
    CAUSAL,
    DOCUMENTS,
    GRADIENT,
    JSON,
    PASSES,
    apply,
    complete_mixer,
    complete_strategy,
    parse_cached,
    parse_documents,
    parse_sizes,
)
from costmodel.errors import InputError
from costmodel.outputs import writable
from costmodel.units import parse_count

if TYPE_CHECKING:
    from validate.job import Job
    from validate.measured import Measured

AXES = ("data", "context", "ulysses", "tensor")

#: More processes than this for each core are taken for a slip.
RANKS_PER_CORE = 16
LAYER = apply(
    click.option(
        "--mixer",
        metavar="NAME",
        required=True,
        shell_complete=complete_mixer,
        help="A token mixer: a name (costmodel list mixers) or file.py:NAME.",
    ),
    click.option(
        "--set", "sizes", metavar="KEY=N", multiple=True, help="A hyperparameter, such as heads=8; repeat for more."
    ),
    click.option("--width", metavar="N", help="Model width.  [default: heads x head dimension]"),
    click.option("--kernel", metavar="NAME", help="Implementation of the mixer.  [default: its first]"),
)
SPREAD = apply(
    click.option(
        "--strategy",
        metavar="NAME",
        required=True,
        shell_complete=complete_strategy,
        help="How the sequence is spread: a name (costmodel list strategies) or file.py:NAME.",
    ),
    click.option("--ranks", metavar="N", default="2", show_default=True, help="Processes; under torchrun, its own."),
    *(click.option(f"--{axis}", metavar="N", help=f"Ranks along the {axis} axis of the mesh.") for axis in AXES),
    click.option(
        "--context-inside", is_flag=True, help="In a grid, context ranks follow each other, not Ulysses ranks."
    ),
)


@click.command()
@LAYER
@SPREAD
@click.option("--seq", metavar="N", required=True, help="Tokens of a sequence, over all ranks.")
@click.option("--batch", metavar="N", default="1", show_default=True, help="Sequences, over all ranks.")
@click.option("--pass", "phase", type=PASSES, default="forward", show_default=True, help="Which pass.")
@CAUSAL
@DOCUMENTS
@CACHED
@GRADIENT
@click.option("--dtype", type=click.Choice(["bf16", "fp16", "fp32"]), default="fp32", show_default=True)
@click.option("--repetitions", metavar="N", default="3", show_default=True, help="Timed runs, after one that is not.")
@click.option("--profile", metavar="NAME", help="Device that is predicted for.  [default: cpu, where it runs there]")
@click.option("--timeout", metavar="S", default="600", show_default=True, help="Seconds for each repetition.")
@click.option("--seed", metavar="N", default="0", show_default=True, help="Of weights and inputs.")
@click.option("--save", metavar="FILE", type=click.Path(dir_okay=False), help="Add the result to a JSON Lines file.")
@JSON
def run(**options: Any) -> None:
    """Run one layer on real ranks, and compare it with the prediction made before the run.

    \b
    costmodel run --mixer attention --set heads=4 --set head_dim=64 --strategy zigzag --ranks 2 --seq 16Ki
    costmodel run --mixer mamba2 --strategy state-gather --ranks 4 --seq 4Ki --pass train --save results.jsonl
    costmodel run --mixer attention --strategy pass-q --ranks 2 --seq 1Ki --pass prefill --cached 7Ki
    torchrun --nproc-per-node 4 -m costmodel run --mixer attention --strategy ring --ranks 4 --seq 64Ki

    Ranks are processes of one thread that talk over gloo, or over NCCL where each has a GPU of its own. First the
    ranks run the longest beginning of the sequence that one process can afford in float64, and are compared with it:
    a wrong result ends the command. Then the whole is timed and counted. Bytes and messages are those handed to the
    transport; memory is what the allocator handed out.

    Exit status: 0 as predicted or not, 1 a rank failed or the result is wrong, 2 bad input.
    """
    if find_spec("torch") is None:
        raise InputError("run", options["mixer"], "torch is not installed", "pip install 'costmodel[validate]'")
    from validate.launch import RankError
    from validate.measuring import WrongResultError
    from validate.predicted import predict
    from validate.run_page import as_record, print_run, save

    asked = _asked(options)
    predicted = predict(asked.job, asked.profile)
    try:
        found = _measured(asked)
    except (RankError, WrongResultError) as error:
        raise click.ClickException(str(error)) from error
    if found is None:
        return
    if asked.save is not None:
        save(asked.save, as_record(asked.job, predicted, found))
    if options["as_json"]:
        from costmodel.report import data

        click.echo(data.dump("run", as_record(asked.job, predicted, found)))
    else:
        print_run(asked.job, predicted, found)


@dataclass(frozen=True)
class Asked:
    """The question, checked."""

    job: Job
    profile: str
    repetitions: int
    timeout_s: float
    save: Path | None


def _asked(options: Mapping[str, Any]) -> Asked:
    """The options as a job.

    Raises:
        InputError: for a bad value.
    """
    from costmodel.estimate import Chosen
    from costmodel.subject import from_mixer
    from validate.job import Job

    sizes = parse_sizes(options["sizes"])
    wide = None if options["width"] is None else parse_count(options["width"], "--width")
    subject = from_mixer(options["mixer"], wide, **sizes)
    (layer,) = subject.layers
    ranks = {axis: parse_count(options[axis], f"--{axis}") for axis in AXES if options[axis] is not None}
    mesh = Chosen((options["strategy"],), ranks).mesh(_ranks(options["ranks"]))
    length = parse_count(options["seq"], "--seq")
    job = Job(
        options["mixer"],
        options["strategy"],
        options["kernel"] or layer.mixer.kernels[0],
        {axis: size for axis, size in mesh.items() if size > 1},
        length,
        parse_count(options["batch"], "--batch"),
        options["phase"],
        subject.causal if options["causal"] is None else options["causal"],
        options["dtype"],
        sizes,
        wide,
        0 if options["seed"] == "0" else parse_count(options["seed"], "--seed"),
        options["context_inside"],
        parse_documents(options["documents"], length),
        parse_cached(options["cached"]),
        options["gradient"],
    )
    repetitions, timeout = (parse_count(options[name], f"--{name}") for name in ("repetitions", "timeout"))
    save = None if options["save"] is None else writable(options["save"], "--save")
    return Asked(job, _profile(options["profile"], job.ranks), repetitions, float(timeout), save)


def _ranks(text: str) -> int:
    """Processes: as many as asked for, or those of the launcher.

    Raises:
        InputError: where these are not as many.
    """
    asked = parse_count(text, "--ranks")
    launched = os.environ.get("WORLD_SIZE")
    if launched is not None and parse_count(launched, "WORLD_SIZE") != asked:
        raise InputError("--ranks", asked, f"the launcher started {launched} processes", f"give --ranks {launched}")
    most = RANKS_PER_CORE * len(os.sched_getaffinity(0))
    if launched is None and asked > most:
        rule = f"must be at most {most}, {RANKS_PER_CORE} for each core of this machine"
        raise InputError("--ranks", asked, rule, "start more with torchrun")
    return asked


def _profile(name: str | None, ranks: int) -> str:
    """The device that the ranks run on, as a profile.

    Raises:
        InputError: where it must be given.
    """
    import torch

    if name is not None:
        return name
    if torch.cuda.device_count() >= ranks:
        told = f"the ranks run on {torch.cuda.get_device_name()}"
        raise InputError("--profile", "none", told, "name its profile, see costmodel list profiles")
    return "cpu"


def _measured(asked: Asked) -> Measured | None:
    """What the ranks did; on a launcher's ranks but the first, ``None``.

    Raises:
        RankError: when a rank fails.
        WrongResultError: when what they compute is wrong.
    """
    from validate.launch import Launched, started
    from validate.measured import measure

    with started(asked.job.ranks, asked.timeout_s) as processes:
        first = not isinstance(processes, Launched) or processes.rank.index == 0
        found = measure(processes, asked.job, asked.repetitions, asked.timeout_s, _tell if first else lambda _: None)
        return found if first else None


def _tell(what: str) -> None:
    """Progress, beside the answer."""
    click.echo(what, err=True)
