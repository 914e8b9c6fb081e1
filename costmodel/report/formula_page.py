"""The answer of ``costmodel formulas``, in a terminal, as Markdown, LaTeX or JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby

from costmodel.formulas import Formula, LayerFormulas
from costmodel.notation import as_latex as latex
from costmodel.notation import as_python, as_text, symbol_as_latex
from costmodel.report import data
from costmodel.report.page import Page

#: What the symbols mean, and how a formula is called on a page.
Legend = Mapping[str, str]
Label = Callable[[Formula], str]

PART = {
    "flop": "FLOP by class and reading (a multiply-add is 2)",
    "traffic": "Device memory traffic of kernels, in bytes",
    "wire": "Sent by one rank, by axis of the mesh",
    "memory": "Device memory, in bytes",
}


def print_formulas(found: LayerFormulas) -> None:
    """A page of formulas."""
    with Page() as page:
        page.title(_title(found), f"{found.workload.phase}, {'causal' if found.workload.causal else 'no mask'}")
        page.line(found.mixer.template, "dim")
        numbers = "".join(f"; {name} = {number}" for name, number in found.numbers.items())
        page.line(f"{found.way.strategy.title}; {found.way.kernel} kernel; one rank{numbers}", "dim")
        print_parts(page, found.formulas, found.legend, PART, _label)
        page.note(_note(found))


def as_markdown(found: LayerFormulas) -> str:
    """A table of formulas and one of symbols."""
    known = table("| one rank | formula |", found.formulas, _label)
    return f"**{_title(found)}**, {found.workload.phase}\n\n{known}\n\n{symbol_table(found.legend)}"


def as_latex(found: LayerFormulas) -> str:
    """Equations, and the symbols as a description."""
    known = aligned(found.formulas, _label)
    return f"% {_title(found)}, {found.workload.phase}\n{known}\n{described(found.legend)}"


def as_json(found: LayerFormulas) -> str:
    """Formulas as Python expressions (with ``ceil``, ``log2``, ``exp2``, ``max`` and ``min``) and as LaTeX."""
    content = {
        "mixer": found.mixer.name,
        "strategy": found.way.strategy.name,
        "kernel": found.way.kernel,
        "tensor_parallel": found.way.tensor,
        "pass": found.workload.phase,
        "causal": found.workload.causal,
        "numbers": found.numbers,
        "formulas": [formula_data(formula) for formula in found.formulas],
        "symbols": found.legend,
    }
    return data.dump("formulas", content)


def print_parts(
    page: Page, formulas: Iterable[Formula], legend: Legend, headings: Mapping[str, str], label: Label
) -> None:
    """Formulas under the headings of their parts, and the symbols."""
    for part, own in groupby(formulas, key=lambda formula: formula.part):
        page.heading(headings[part])
        for formula in own:
            page.line(label(formula), "cyan")
            page.indented(as_text(formula.value), 4)
    if legend:
        page.heading("Symbols")
        page.facts(legend.items())
    page.gap()


def table(heading: str, formulas: Iterable[Formula], label: Label) -> str:
    """Formulas in Markdown."""
    return "\n".join([heading, "|---|---|", *(f"| {label(each)} | ${latex(each.value)}$ |" for each in formulas)])


def symbol_table(legend: Legend) -> str:
    """The symbols in Markdown."""
    rows = (f"| ${symbol_as_latex(name)}$ | {_cell(text)} |" for name, text in legend.items())
    return "\n".join(["| symbol | meaning |", "|---|---|", *rows])


def aligned(formulas: Iterable[Formula], label: Label) -> str:
    """Formulas in LaTeX."""
    rows = (rf"  \text{{{escaped(label(each))}}} &= {latex(each.value)}" for each in formulas)
    return "\n".join([r"\begin{align*}", " \\\\\n".join(rows), r"\end{align*}"])


def described(legend: Legend) -> str:
    """The symbols in LaTeX."""
    rows = (rf"  \item[${symbol_as_latex(name)}$] {escaped(text)}" for name, text in legend.items())
    return "\n".join([r"\begin{description}", *rows, r"\end{description}"])


def formula_data(formula: Formula) -> dict[str, str]:
    """One formula."""
    return {
        "part": formula.part,
        "name": formula.name,
        "detail": formula.detail,
        "unit": formula.unit,
        "python": as_python(formula.value),
        "latex": latex(formula.value),
    }


def _title(found: LayerFormulas) -> str:
    return f"{found.mixer.name}, {found.way}"


def _label(formula: Formula) -> str:
    return ", ".join(_said(formula))


def _said(formula: Formula) -> Iterator[str]:
    yield f"{formula.name} {formula.unit}" if formula.part in ("flop", "wire") else formula.name
    yield formula.detail


def _note(found: LayerFormulas) -> str:
    ranks = [name for name in found.legend if name.startswith("rank_")]
    busiest = "; ".join(f"the busiest rank has {name} = P_{name[-1]} - 1" for name in ranks)
    exact = "Exact where sizes divide evenly."
    return f"{exact} Work depends on the rank: {busiest}." if ranks else exact


def escaped(text: str) -> str:
    """Text for LaTeX."""
    return text.replace("_", r"\_").replace("%", r"\%").replace("&", r"\&")


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
