"""The answer of ``costmodel formulas --all``, in a terminal, as Markdown, LaTeX or JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from costmodel.formulas import Formula
from costmodel.mixer import Mixer
from costmodel.notation import as_latex as latex
from costmodel.notation import as_text, symbol_as_latex
from costmodel.report import data
from costmodel.report.formula_page import aligned, described, escaped, formula_data, symbol_table, table
from costmodel.report.page import Page
from costmodel.subject import MASKED
from costmodel.survey import Entry, common_symbols

WHAT = (
    "One layer of each mixer with its projections, in a forward pass on one rank, without data parallelism: first "
    "where the rank has whole sequences, then with the first strategy, by name, that spreads them. Causal wherever "
    "the mixer can be. FLOP are the useful ones (query-key pairs that the mask leaves; a multiply-add is 2), of the "
    "mixer's first kernel; peak is of activations; the state is what decoding keeps."
)
BUSIEST = "Work under a causal mask depends on the rank: the busiest has rank_c = P_c - 1 or rank_u = P_u - 1."


def print_survey(entries: Sequence[Entry]) -> None:
    """A paragraph for each mixer."""
    with Page() as page:
        page.note(WHAT)
        for entry in entries:
            mixer = entry.mixer
            page.heading(mixer.name)
            page.facts([("", mixer.title), ("P, V", mixer.template), ("Structure", _nature(entry))])
            for heading, formulas in _parts(entry):
                page.gap()
                page.line(heading, "bold")
                page.facts((_label(formula), as_text(formula.value)) for formula in formulas)
        page.heading("Symbols")
        page.facts(common_symbols(tuple(entries)).items())
        page.note(BUSIEST)


def as_markdown(entries: Sequence[Entry]) -> str:
    """A table of all mixers, a section for each with its formulas, and the symbols."""
    lines = ["# Mixers", "", f"{WHAT} {BUSIEST}", ""]
    lines += ["| mixer | structure of P | crosses a cut | FLOP, whole | state, bytes |", "|---|---|---|---|---|"]
    for entry in entries:
        state = _math(entry.state) if entry.state else "none"
        flop = _math(entry.main) + ("" if entry.main.name == "contraction" else f" ({entry.main.name})")
        name = entry.mixer.name
        cells = [f"[{name}](#{name})", entry.mixer.structure.value, entry.mixer.carry_for(entry.causal).kind]
        lines.append(f"| {' | '.join([*cells, flop, state])} |")
    lines += ["", symbol_table(common_symbols(tuple(entries)))]
    for entry in entries:
        lines += ["", *_section(entry)]
    return "\n".join(lines)


def _section(entry: Entry) -> Iterator[str]:
    mixer = entry.mixer
    yield f"## {mixer.name}"
    yield ""
    yield f"{mixer.title[0].upper()}{mixer.title[1:]}. {mixer.source}."
    yield ""
    yield f"`{mixer.template}`"
    yield ""
    yield f"{_nature(entry)}."
    yield ""
    yield f"Sizes: {'; '.join(_sizes(mixer, entry.numbers))}."
    for heading, formulas in _parts(entry):
        yield ""
        yield table(f"| {heading} | |", formulas, _label)


def as_latex(entries: Sequence[Entry]) -> str:
    """A subsection of equations for each mixer, and the symbols as a description."""
    lines = [f"% {WHAT}", f"% {BUSIEST}"]
    for entry in entries:
        lines += [rf"\subsection*{{{escaped(entry.mixer.title)}}}", rf"{escaped(_nature(entry))}."]
        for heading, formulas in _parts(entry):
            lines += [rf"\paragraph{{{escaped(heading)}}}", aligned(formulas, _label)]
    legend = {size.symbol: size.meaning for entry in entries for size in entry.mixer.sizes.values()}
    legend |= common_symbols(tuple(entries))
    return "\n".join([*lines, described(legend)])


def as_json(entries: Sequence[Entry]) -> str:
    """The document of ``costmodel formulas --all``."""
    content = {"mixers": [_data(entry) for entry in entries], "symbols": common_symbols(tuple(entries))}
    return data.dump("survey", content)


def _data(entry: Entry) -> dict[str, Any]:
    mixer = entry.mixer
    return {
        "name": mixer.name,
        "title": mixer.title,
        "template": mixer.template,
        "structure": mixer.structure.value,
        "carry": mixer.carry_for(entry.causal).kind,
        "causality": mixer.causality,
        "causal": entry.causal,
        "kernel": mixer.kernels[0],
        "source": mixer.source,
        "numbers": entry.numbers,
        "symbols": {size.symbol: size.meaning for size in mixer.sizes.values()},
        "whole": [formula_data(formula) for formula in entry.whole],
        "strategy": entry.strategy.name if entry.strategy else None,
        "spread": [formula_data(formula) for formula in entry.spread],
        "state": formula_data(entry.state) if entry.state else None,
    }


# Words --------------------------------------------------------------------------------------------------------------


def _parts(entry: Entry) -> Iterator[tuple[str, Sequence[Formula]]]:
    """The groups of formulas of a mixer under their headings."""
    kernel = f"{entry.mixer.kernels[0]} kernel"
    yield f"whole sequences, {kernel}", entry.whole
    if entry.strategy:
        yield f"{entry.strategy.name}, {kernel}", entry.spread
    if entry.state:
        yield "decoding", [entry.state]


def _nature(entry: Entry) -> str:
    mixer = entry.mixer
    carry = mixer.carry_for(entry.causal).kind
    mask = "causal here" if entry.causal else "no mask here"
    structure = mixer.structure.value
    return f"{structure[0].upper()}{structure[1:]}; crosses a cut: {carry}; defined {MASKED[mixer.causality]}, {mask}"


def _sizes(mixer: Mixer, numbers: dict[str, int]) -> Iterator[str]:
    for key, size in mixer.sizes.items():
        usual = f"usually {size.usual}" if size.usual else "left out"
        usual = f"{size.usual} in the formulas" if size.symbol in numbers else usual
        yield f"${symbol_as_latex(size.symbol)}$ `{key}`, {size.meaning.rstrip('.')} ({usual})"


def _label(formula: Formula) -> str:
    return f"{formula.name} {formula.unit}"


def _math(formula: Formula) -> str:
    return f"${latex(formula.value)}$"
