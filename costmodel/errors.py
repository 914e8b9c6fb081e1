"""Errors a user can act on: each names the field, the value, what is allowed and the nearest valid choice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A value given by the user that cannot be used.

    The message reads ``field: value 'v' ...rule... remedy``; the command line prints it alone, without a
    traceback, and exits with status 2.

    >>> print(InputError("--seq", 0, "must be at least 1 token", "try --seq 1k"))
    --seq: 0 is not valid: must be at least 1 token; try --seq 1k
    """

    def __init__(self, field: str, value: object, rule: str, remedy: str | None = None) -> None:
        self.field, self.value, self.rule, self.remedy = field, value, rule, remedy
        shown = repr(value) if isinstance(value, str) else str(value)
        super().__init__(f"{field}: {shown} is not valid: {rule}" + (f"; {remedy}" if remedy else ""))


class UnknownNameError(InputError):
    """A name that is not registered; suggests the closest one and lists all.

    >>> print(UnknownNameError("mixer", "atention", ["attention", "mla"]))
    no mixer named 'atention'. Did you mean 'attention'? Known: attention, mla
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        choices = sorted(known)
        close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
        hint = f"Did you mean '{close[0]}'? " if close else ""
        super().__init__(kind, name, f"known: {', '.join(choices)}", close[0] if close else None)
        self.args = (f"no {kind} named '{name}'. {hint}Known: {', '.join(choices)}",)
