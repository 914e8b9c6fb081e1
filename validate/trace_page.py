"""The answer of ``costmodel trace``, in a terminal, as Markdown, LaTeX or JSON."""

from __future__ import annotations

from costmodel.formulas import Formula
from costmodel.report import data
from costmodel.report.formula_page import aligned, described, formula_data, print_parts, symbol_table, table
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
        print_parts(page, found.formulas, found.legend, PART, _label)
        page.note(_note(found))


def as_markdown(found: ModuleFormulas) -> str:
    """A table of formulas and one of symbols."""
    known = table("| one call | formula |", found.formulas, _full)
    return f"**{found.question.name}**\n\n{known}\n\n{symbol_table(found.legend)}\n\n{_note(found)}"


def as_latex(found: ModuleFormulas) -> str:
    """Equations, and the symbols as a description."""
    known = aligned(found.formulas, _full)
    return f"% {found.question.name}. {_note(found)}\n{known}\n{described(found.legend)}"


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
