"""The answer of ``costmodel trace``, in a terminal, as Markdown, LaTeX or JSON."""

from __future__ import annotations

from itertools import groupby

from costmodel.formulas import Formula
from costmodel.notation import as_latex as latex
from costmodel.notation import as_text, symbol_as_latex
from costmodel.report import data
from costmodel.report.formula_page import escaped, formula_data
from costmodel.report.page import Page
from validate.module_trace import ModuleFormulas

PART = {
    "forward": "Forward: FLOP by class (a multiply-add is 2)",
    "backward": "Backward: FLOP by class",
    "memory": "Memory",
}


def print_trace(found: ModuleFormulas) -> None:
    """A page of formulas."""
    with Page() as page:
        page.title(found.question.name, "forward and backward" if found.question.backward else "forward")
        page.line("; ".join(f"{name} {shape}" for name, shape in found.inputs.items()), "dim")
        for part, formulas in groupby(found.formulas, key=lambda formula: formula.part):
            page.heading(PART[part])
            for formula in formulas:
                page.line(_label(formula), "cyan")
                page.indented(as_text(formula.value), 4)
        if found.legend:
            page.heading("Symbols")
            page.facts(found.legend.items())
        page.gap()
        page.note(_note(found))


def as_markdown(found: ModuleFormulas) -> str:
    """A table of formulas and one of symbols."""
    lines = [f"**{found.question.name}**", "", "| one call | formula |", "|---|---|"]
    lines += [f"| {_full(formula)} | ${latex(formula.value)}$ |" for formula in found.formulas]
    lines += ["", "| symbol | meaning |", "|---|---|"]
    lines += [f"| ${symbol_as_latex(name)}$ | {meaning} |" for name, meaning in found.legend.items()]
    return "\n".join([*lines, "", _note(found)])


def as_latex(found: ModuleFormulas) -> str:
    """Equations, and the symbols as a description."""
    lines = [f"% {found.question.name}. {_note(found)}", r"\begin{align*}"]
    lines.append(" \\\\\n".join(rf"  \text{{{escaped(_full(x))}}} &= {latex(x.value)}" for x in found.formulas))
    lines += [r"\end{align*}", r"\begin{description}"]
    lines += [rf"  \item[${symbol_as_latex(name)}$] {escaped(text)}" for name, text in found.legend.items()]
    return "\n".join([*lines, r"\end{description}"])


def as_json(found: ModuleFormulas) -> str:
    """Formulas as Python expressions of the symbols, and as LaTeX; and how they were found."""
    content = {
        "module": found.question.name,
        "inputs": {name: str(shape) for name, shape in found.inputs.items()},
        "backward": found.question.backward,
        "formulas": [formula_data(formula) for formula in found.formulas],
        "symbols": found.legend,
        "evaluations": found.fit.evaluations,
        "held_out_points_that_agree": found.fit.held_out,
        "smallest_size": found.fit.smallest,
        "largest_size": found.fit.largest,
    }
    return data.dump("trace", content)


def _label(formula: Formula) -> str:
    return f"{formula.name} {formula.unit}" if formula.unit == "FLOP" else formula.name


def _full(formula: Formula) -> str:
    return f"{_label(formula)}, {formula.part}" if formula.unit == "FLOP" else formula.name


def _note(found: ModuleFormulas) -> str:
    fit = found.fit
    if not found.legend:
        return "Counted once: every size is a number."
    sizes = f"sizes from {fit.smallest} to {fit.largest}"
    return f"Counted at {fit.evaluations} points, {sizes}; at the {fit.held_out} held out, the formulas agree exactly."
