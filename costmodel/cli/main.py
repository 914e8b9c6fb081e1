"""The command ``costmodel``: a group whose sub-commands are found by name and imported when they are called."""

from __future__ import annotations

import errno
import gc
import importlib
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from io import TextIOWrapper
from typing import Any

import click
from click.shell_completion import CompletionItem

from costmodel import __version__
from costmodel.errors import InputError

#: Sub-commands of other packages register in this group of entry points.
GROUP = "costmodel.commands"


@dataclass(frozen=True)
class BuiltIn:
    """A sub-command of this package: where it is, and its line in the list of commands."""

    module: str
    attribute: str
    help: str

    def load(self) -> click.Command:
        """The click command."""
        command: click.Command = getattr(importlib.import_module(self.module), self.attribute)
        return command


BUILT_IN = {
    "plan": BuiltIn("costmodel.cli.plan", "plan", "The best way to run a workload on a cluster, and what it costs."),
    "predict": BuiltIn(
        "costmodel.cli.predict", "predict", "What one plan costs, or every plan, at one or many lengths."
    ),
    "compare": BuiltIn(
        "costmodel.cli.compare", "compare", "Mixers side by side over lengths, and where one becomes cheaper."
    ),
    "formulas": BuiltIn("costmodel.cli.formulas", "formulas", "The exact formulas behind the numbers of one rank."),
    "list": BuiltIn("costmodel.cli.listing", "listing", "Known mixers, strategies and hardware profiles."),
}


class Refused(click.ClickException):
    """An ``InputError``, shown as one message."""

    exit_code = 2


class Commands(click.Group):
    """Built-in sub-commands and those of entry points; listing them imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*BUILT_IN, *sorted(set(_registered()) - set(BUILT_IN))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in BUILT_IN:
            return BUILT_IN[cmd_name].load()
        registered = _registered().get(cmd_name)
        return _loaded(registered) if registered else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._line(name)) for name in self.list_commands(ctx)])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        options = click.Command.shell_complete(self, ctx, incomplete)
        return [CompletionItem(name, help=self._line(name)) for name in names] + options

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            raise Refused(str(error)) from error
        except KeyboardInterrupt:
            ctx.exit(130)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise  # a closed pipe is click's to end quietly
            raise click.ClickException(f"the answer cannot be written: {error.strerror}") from None

    def _line(self, name: str) -> str:
        found = BUILT_IN.get(name)
        return found.help if found else f"From the package {_registered()[name].module.partition('.')[0]}."


def _registered() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _loaded(entry: EntryPoint) -> click.Command:
    """The command of another package, which may lack something that it needs."""
    try:
        command: click.Command = entry.load()
    except Exception as error:
        raise Refused(f"the command '{entry.name}' does not load from {entry.value}: {error}") from error
    return command


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", prog_name="costmodel")
def main() -> None:
    """What a long context costs, which way of spreading it is best, and how sure that is.

    \b
    costmodel plan --mixer attention --seq 1Mi --cluster 4xrtx4090
    costmodel plan --model config.json --seq 128Ki --cluster 8xh100 --pass prefill

    Counts take k, M, G (powers of 1000) or Ki, Mi, Gi (powers of 1024). Every command has --json.

    \b
    Exit status: 0 answered; 1 nothing fits; 2 bad input.
    Completion:  eval "$(_COSTMODEL_COMPLETE=bash_source costmodel)"
                 (zsh_source, fish_source likewise)
    """
    gc.set_threshold(1_000_000)  # formulas are many small objects and no cycles: looking for some takes a while
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character still gets its answer
