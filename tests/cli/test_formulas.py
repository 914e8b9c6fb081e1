"""``costmodel formulas``: evaluated at numbers, they are the numbers of ``costmodel predict``."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from itertools import product
from math import ceil, exp2, isclose, log2

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from costmodel.arrangement import AXES, Way
from costmodel.errors import InputError
from costmodel.estimate import Chosen, estimate, flops
from costmodel.formulas import LayerFormulas, layer_formulas
from costmodel.hardware import parse_cluster
from costmodel.mixer import mixers
from costmodel.notation import as_python
from costmodel.ops.primitive import Reading
from costmodel.plan import Plan, Ranking
from costmodel.strategy import strategies
from costmodel.subject import from_mixer
from costmodel.workload import PHASES, Workload


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, dict[str, int], Chosen, Workload]:
    """A mixer with random sizes, a way of running it, and a workload."""
    mixer = mixers.get(draw(st.sampled_from(mixers.names())))
    causal = draw(st.sampled_from({"causal": [True], "full": [False], "either": [True, True, False]}[mixer.causality]))
    known = [name for name in strategies.names() if issubclass(mixer.carry_for(causal), strategies.get(name).carries)]
    strategy = strategies.get(draw(st.sampled_from(known)))
    axes = [*strategy.axes, *draw(st.sampled_from([[], ["tensor"]]))]
    ranks = {axis: draw(st.sampled_from([2, 4])) for axis in axes}
    halvings = {key: draw(st.integers(0, 2)) for key, size in mixer.sizes.items() if size.usual >= 16}
    sizes = {key: mixer.sizes[key].usual >> times for key, times in halvings.items()}
    if "kv_heads" in sizes:
        sizes["kv_heads"] = sizes["heads"] >> draw(st.integers(0, 2))
    kernel = draw(st.sampled_from(mixer.kernels))
    phase = draw(st.sampled_from(PHASES))
    length = draw(st.integers(1, 20)) * 1024
    cached = draw(st.integers(0, 3)) * 1024 if phase == "prefill" and mixer.extends and causal else 0
    return (
        mixer.name,
        sizes,
        Chosen((strategy.name,), ranks, (kernel,)),
        Workload(length, draw(st.integers(1, 3)), phase, causal, cached=cached),
    )


def evaluator(found: LayerFormulas, ranking: Ranking, plan: Plan) -> dict[str, Fraction]:
    """Values of the formulas' symbols for a plan."""
    (layer,) = ranking.subject.layers
    values: dict[str, int] = {AXES[axis]: size for axis, size in plan.mesh.items()}
    values |= {f"rank_{AXES[axis][-1]}": size - 1 for axis, size in plan.mesh.items()}
    tile = ranking.cluster.profile.device.kernels["attention"].tile or 1
    values |= {
        "B": ranking.workload.batch,
        "L": plan.length,
        "T": ranking.workload.cached,
        "s": 2,
        "a": 4,
        "g": 4,
        "t": tile,
    }
    values |= {key: value for key, value in layer.sizes.items() if key in found.legend}
    return {key: Fraction(value) for key, value in values.items()}


def of_the_busiest(found: LayerFormulas, values: Mapping[str, Fraction], axis: str) -> dict[str, Fraction]:
    """Bytes and messages of the rank that sends most along an axis, by their units; work is given for the last rank."""
    wire = {f.unit: f.value for f in found.formulas if (f.part, f.name) == ("wire", axis)}
    ranks = [name for name in values if name.startswith("rank_")]
    places = product(*(range(int(values[name]) + 1) for name in ranks))
    at_each = [values | {name: Fraction(place) for name, place in zip(ranks, each, strict=True)} for each in places]
    sent = [{unit: formula.evaluate(at) for unit, formula in wire.items()} for at in at_each]
    return max(sent, key=lambda of_rank: of_rank["bytes"])


@given(case=cases())
@settings(max_examples=60)
def test_formulas_at_numbers_are_the_numbers_of_predict(case: tuple[str, dict[str, int], Chosen, Workload]) -> None:
    name, sizes, chosen, workload = case
    devices = 1
    for ranks in chosen.ranks.values():
        devices *= ranks
    way = Way(strategies.get(chosen.strategies[0]), chosen.kernels[0], "tensor" in chosen.ranks)
    try:
        ranking = estimate(from_mixer(name, **sizes), workload, parse_cluster(f"{devices}xh100"), chosen)
    except InputError:
        assume(False)
    plan = ranking.plan(0)
    found = layer_formulas(name, way, workload)
    symbols = {key: size.symbol for key, size in mixers.get(name).sizes.items()}
    found = layer_formulas(name, way, workload, {key: sizes[key] for key in sizes if symbols[key] in found.numbers})
    values = evaluator(found, ranking, plan)
    functions = {"ceil": ceil, "log2": log2, "exp2": exp2, "max": max, "min": min}
    counted = flops(ranking, 0)
    expected = {
        ("memory", "weights", "bytes"): plan.memory["parameters"],
        ("memory", "saved", "bytes"): plan.memory["activations"],
        ("memory", "cache", "bytes"): plan.memory["cache"],
    }
    for axis, size in plan.wire.items():
        expected |= {("wire", axis, "bytes"): size, ("wire", axis, "messages"): plan.messages[axis]}
    held = 0.0
    for formula in found.formulas:
        # What is shown, not only what it was made from; logarithms are rounded, in the order of the terms.
        text, exact = as_python(formula.value), formula.value.evaluate(values)
        value = eval(text, functions, values)
        assert isclose(value, exact, rel_tol=1e-12) if "log2" in text else value == exact
        key = formula.part, formula.name, formula.unit
        if formula.part == "wire":
            value = of_the_busiest(found, values, formula.name)[formula.unit]
        if formula.part == "flop":
            for reading in formula.detail.split(", "):
                assert float(value) == pytest.approx(counted[Reading(reading)].get(formula.name, 0.0), rel=1e-9)
        elif key in expected:
            assert float(value) == pytest.approx(expected.pop(key), rel=1e-9)
        elif formula.part == "memory":
            assert formula.name == "peak"
            held = float(value)
    # What is not in the layer's formulas is of the step: replicas exchange weights.
    left = {key: size for key, size in expected.items() if size and key[1] != "replicas"}
    assert left == {}
    assert held - plan.memory["activations"] == pytest.approx(plan.memory["working"], rel=1e-9)


def test_ring_attention_by_hand(ask) -> None:
    document = ask("formulas", "--mixer", "attention", "--strategy", "ring", "--full")
    assert document["schema"] == "costmodel.formulas/1"
    told = {(f["part"], f["name"], f["unit"], f["detail"]): f["python"] for f in document["formulas"]}
    # Scores and values over all keys, 4 B L^2 H d / P; projections of queries and output, 4 B L D H d / P, and of keys
    # and values, 4 B L D H_kv d / P.
    numbers = {"B": 2, "L": 64, "D": 32, "H": 4, "H_kv": 2, "d": 8, "P_c": 4, "P_d": 1, "rank_c": 3, "s": 2}
    attention = 4 * 2 * 64**2 * 4 * 8 / 4
    projections = 4 * 2 * 64 * 32 * 4 * 8 / 4 + 4 * 2 * 64 * 32 * 2 * 8 / 4
    (contraction,) = [text for key, text in told.items() if key[1] == "contraction" and "useful" in key[3]]
    assert eval(contraction, {}, numbers) == attention + projections
    assert eval(told["wire", "context", "bytes", "sent"], {}, numbers) == 3 * 2 * 2 * 2 * 16 * 8 * 2
    assert eval(told["wire", "context", "messages", "sent"], {}, numbers) == 6
    assert set(document["symbols"]) >= {"B", "L", "D", "H", "H_kv", "d", "P_c", "s"}


def test_a_size_that_is_set_is_a_number(ask) -> None:
    document = ask("formulas", "--mixer", "attention", "--set", "kv_heads=1", "--set", "window=4096")
    assert "H_kv" not in document["symbols"]
    assert any("4096" in formula["python"] for formula in document["formulas"])


def test_a_size_that_the_method_loops_over_is_a_number_and_said_so(ask, run, tmp_path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from costmodel.mixer import Hyperparameter\n"
        "from costmodel.mixers.attention import Attention\n\n\n"
        "class Again(Attention):\n"
        "    name = 'again'\n"
        "    sizes = Attention.sizes | {'times': Hyperparameter('n', 3, 'times that the output is squared')}\n\n"
        "    def finish(self, ops, mixed, w, at):\n"
        "        for _ in range(at.sizes['n']):\n"
        "            mixed = ops.mul(mixed, mixed)\n"
        "        return super().finish(ops, mixed, w, at)\n\n\n"
        "again = Again()\n"
    )
    question = ("formulas", "--mixer", f"{path}:again", "--pass", "decode")
    document = ask(*question)
    assert document["numbers"] == {"n": 3} and "n" not in document["symbols"]
    assert "one rank; n = 3" in " ".join(run(*question).stdout.split())
    plain = ask("formulas", "--mixer", "attention", "--pass", "decode")
    names = {"B": 1, "L": 8, "H": 4, "H_kv": 2, "d": 8, "D": 32, "P_d": 1}
    least = [
        eval(formula["python"], {}, names)
        for found in (plain, document)
        for formula in found["formulas"]
        if formula["name"] == "elementwise"
    ]
    assert least[1] - least[0] == 3 * 4 * 8


@pytest.mark.parametrize("style", ["--latex", "--markdown"])
def test_other_notations(run, style: str) -> None:
    text = run("formulas", "--mixer", "attention", "--strategy", "zigzag", "--pass", "train", "--tensor", style).stdout
    assert r"\frac{" in text and r"\left\lceil" in text
    assert text.count("{") == text.count("}")
    assert "H_{kv}" in text and "P_{c}" in text


@pytest.mark.parametrize("width", [80, 120])
def test_the_page(run, width: int) -> None:
    page = run("formulas", "--mixer", "attention", "--strategy", "ring", width=width).stdout
    assert max(map(len, page.splitlines())) <= width
    assert "2·B·L·H_kv·d·s·(P_c - 1)/(P_d·P_c)" in page
    assert "rank_c = P_c - 1" in page
    assert page == run("formulas", "--mixer", "attention", "--strategy", "ring", width=width).stdout


def test_cached_tokens_are_a_symbol_or_a_number(ask) -> None:
    """Every new token sees the T before: 4 B H L T d FLOP of products more than without."""
    question = ("formulas", "--mixer", "attention", "--pass", "prefill")
    found = [ask(*question, *more) for more in ((), ("--cached", "T"), ("--cached", "4Ki"))]
    values = {"B": 3, "L": 64, "D": 256, "H": 4, "H_kv": 4, "d": 64, "P_d": 1, "T": 4096}
    plain, symbol, number = (
        next(f["python"] for f in document["formulas"] if f["name"] == "contraction" and "useful" in f["detail"])
        for document in found
    )
    assert ("T" in symbol, "T" in number) == (True, False)
    assert eval(symbol, {}, values) == eval(number, {}, values) == eval(plain, {}, values) + 4 * 3 * 4 * 64 * 4096 * 64


CACHED = ("--pass", "prefill", "--cached", "T")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--strategy", "halo"], "does not know what crosses a cut of attention"),
        (["--strategy", "tree"], "it is for decode, not for forward"),
        (["--kernel", "fast"], "no kernel of attention named 'fast'"),
        (["--set", "headz=3"], "Did you mean 'heads'?"),
        (["--cached", "4Ki"], "only a prefill follows on cached tokens"),
        (["--mixer", "mla", "--strategy", "all-gather-latent", *CACHED], "it does not spread cached tokens"),
        (["--pass", "prefill", "--cached", "t"], "--cached: 't' is not valid"),
    ],
)
def test_what_does_not_apply_is_refused(run, arguments: list[str], said: str) -> None:
    done = run("formulas", "--mixer", "attention", *arguments)
    assert done.exit_code == 2
    assert said in done.stderr
