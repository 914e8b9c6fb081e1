"""``costmodel list``: what there is to choose from."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem

from costmodel.cli.options import JSON, VERBOSE

KINDS = ("mixers", "strategies", "profiles")


def complete_name(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the kind that is being listed."""
    from costmodel.report.catalogue import names

    kind = ctx.params.get("kind")
    return [CompletionItem(name) for name in (names(kind) if kind else ()) if name.startswith(incomplete)]


@click.command("list")
@click.argument("kind", type=click.Choice(KINDS), required=False)
@click.argument("chosen", metavar="[NAME]...", nargs=-1, shell_complete=complete_name)
@VERBOSE
@JSON
def listing(kind: str | None, chosen: tuple[str, ...], **options: Any) -> None:
    """Known mixers, strategies and hardware profiles; of a NAME everything that is known.

    \b
    costmodel list
    costmodel list mixers
    costmodel list profiles rtx4090     every number of the profile with its source
    costmodel list profiles ./mine.toml
    """
    from costmodel.report import catalogue

    kinds = (kind,) if kind else KINDS
    if options["as_json"]:
        click.echo(catalogue.as_json(kinds, chosen))
    else:
        catalogue.print_catalogue(kinds, chosen, options["verbose"])
