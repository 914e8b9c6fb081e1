"""Which mixers are compared with an implementation by others; run as a script, this prints docs/compared.md."""

from __future__ import annotations

import sys
from pathlib import Path

from costmodel.mixer import mixers
from tests.validate import (
    test_fla,
    test_outside,
    test_outside_patterns,
    test_state_spaces,
    test_torch_modules,
)
from tests.validate.outside import COMPARED

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "compared.md"
TESTS = (test_fla, test_outside, test_outside_patterns, test_state_spaces, test_torch_modules)

#: Mixers that no installed package has.
ALONE = (
    "ckconv",
    "cosformer",
    "longnet",
    "mamba3",
    "multiresconv",
    "performer",
    "rfa",
    "slstm",
    "sparse-strided",
    "ttt-mlp",
)

HEAD = """\
# Definitions compared with implementations by others

{compared} of {all} mixers: the same weights and input give the same output, in float64 to 1e-10 or, where the other
implementation works in float32, to 1e-5. Where only the recurrence is compared, this says so; what is said after a
comma is how theirs was brought to the definition, with the reason at the test
({files} in tests/validate).

| mixer | compared with |
|---|---|
"""


def document() -> str:
    """docs/compared.md."""
    files = ", ".join(f"`{test.__name__.rpartition('.')[2]}`" for test in TESTS)
    head = HEAD.format(compared=len(COMPARED), all=len(mixers.names()), files=files)
    found = [f"| {name} | {'; '.join(sorted(COMPARED[name]))} |" for name in sorted(COMPARED)]
    without = [f"| {name} | {mixers.get(name).source} |" for name in ALONE]
    lines = [
        *found,
        "",
        "Written from these alone, as no installed package has them:",
        "",
        "| mixer | source |",
        "|---|---|",
    ]
    return head + "\n".join([*lines, *without, ""])


def test_every_mixer_is_compared_or_said_not_to_be() -> None:
    assert sorted([*COMPARED, *ALONE]) == sorted(mixers.names())


def test_the_document_is_up_to_date() -> None:
    assert DOCUMENT.read_text() == document(), "python -m tests.validate.test_compared > docs/compared.md"


if __name__ == "__main__":
    sys.stdout.write(document())
