"""Random cases: every size drawn, then mended until the strategy applies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from costmodel.candidates import Meshes, padded_length, refusals
from costmodel.mixer import Mixer
from costmodel.model import MlpSpec
from costmodel.strategy import Strategy
from costmodel.subject import Layer, from_mixer
from costmodel.workload import PHASES
from tests.validate.cases import Case

RANKS = 4


def refusal(case: Case) -> str | None:
    """Why a strategy does not apply to a case, or ``None``."""
    _, reasons = refusals(case.layer, case.way, case.workload, Meshes.one(case.mesh))
    return reasons[0] if reasons else None


def _runs(case: Case) -> bool:
    return refusal(case) is None


#: Sizes that switch a part of a mixer on or off, and that ``from_mixer`` does not take.
OPTIONS = {"attention": {"qk_norm": 1, "gate": 1}}

#: Train with layer norms in heads: of 2 entries such a norm is nearly a step, whose slope magnifies rounding errors.
#: Their steps are of hundreds of ops, which take long to count: fewer of them.
STEEP = {"ttt-linear", "ttt-mlp", "titans"}

#: Whether masks are causal, by what a mixer is defined for.
MASKS = {"causal": [True], "full": [False], "either": [True, True, False]}

#: Changes that make a strategy apply to more; each is tried on top of those before it.
MENDING: tuple[Callable[[Case], Case], ...] = (
    lambda case: replace(case, length=padded_length(case.layer, case.way, case.workload, case.mesh)),
    lambda case: replace(case, length=2 * case.length),
    lambda case: replace(case, length=case.length * case.mesh.get("context", 1)),
    lambda case: replace(case, layer=replace(case.layer, window=None)),
    lambda case: replace(case, causal=case.layer.mixer.causality != "full"),
    lambda case: replace(case, kernel=case.layer.mixer.kernels[0]),
)


def mended(case: Case) -> Case | None:
    for change in (lambda same: same, *MENDING):
        case = change(case)
        if _runs(case):
            return case
    return None


@st.composite
def meshes(draw: st.DrawFn, strategy: Strategy, cut: bool) -> dict[str, int]:
    """Up to 4 ranks: along the strategy's axes, and along others where ranks are left."""
    sizes = {axis: draw(st.integers(2, RANKS // 2 ** (len(strategy.axes) - 1))) for axis in strategy.axes}
    left = RANKS // int(np.prod([*sizes.values()], dtype=int))
    tensor = draw(st.integers(1, left if cut else 1))
    return sizes | {"tensor": tensor, "data": draw(st.integers(1, left // tensor))}


@st.composite
def layers(draw: st.DrawFn, mixer: Mixer, cut: int, tensor: int, context: int) -> Layer:
    """A small layer whose heads and second sequence can be cut so many ways, and strides among so many ranks."""
    groups = cut * draw(st.integers(1, 2))
    given = {"kv_heads": groups, "window": draw(st.integers(0, 6)), "stride": context * draw(st.integers(1, 3))}
    given |= {"memory": cut * context * draw(st.integers(1, 4))}
    given |= {_short(name): groups * draw(st.integers(1, 3)) for name, size in mixer.sizes.items() if size.cut} | given
    given |= {"head_dim": 2 * draw(st.integers(2, 4))} if mixer.name in STEEP else {}
    given |= {"hidden": cut * context * draw(st.integers(1, 2))} if "hidden" in mixer.sizes else {}
    sizes = {
        name: given[_short(name)] if _short(name) in given else _size(draw, _short(name), size.least)
        for name, size in mixer.sizes.items()
    }
    (layer,) = from_mixer(mixer.name, draw(st.integers(1, 9)), **sizes).layers
    option = draw(st.sampled_from([{}, OPTIONS.get(mixer.name, {})]))
    layer = replace(layer, sizes={**layer.sizes, **option})
    hidden = tensor * draw(st.integers(1, 4))
    mlp = draw(st.sampled_from([None, MlpSpec(hidden), MlpSpec(hidden, gated=False)]))
    if mixer.name == "attention" and mlp is not None and draw(st.booleans()):
        sizes = {**layer.sizes, "doubled": 1, "adapter": draw(st.integers(0, 3))}
        return replace(layer, sizes=sizes, mlp=replace(mlp, adapter=draw(st.integers(0, 3))), norms=2, shared=2)
    return replace(layer, mlp=mlp, norms=draw(st.sampled_from([0, 1, 2] if mlp is None else [2, 4])))


def _short(name: str) -> str:
    """The hyperparameter of a mixture's part."""
    return name.rpartition(".")[2]


#: The largest values of sizes that multiply each other to the tokens of a segment.
LARGEST = {"branches": 3, "dilation": 2, "growth": 2, "kept": 2, "random": 2, "chunk_levels": 2, "state_levels": 3}
LARGEST |= {"mimo_rank": 2}


def _size(draw: st.DrawFn, name: str, least: int) -> int:
    """Dimensions of heads are even, for rotary positions; no sequence drawn is longer than the longest; landmarks
    divide over some numbers of ranks; few levels, as tokens see twice as far with each; so many index heads that some
    like a pair of tokens, as those that none likes are equal.
    """
    if name == "landmarks":
        return draw(st.sampled_from([4, 6, 12]))
    if name == "index_heads":
        return draw(st.sampled_from([24, 32]))
    if name == "levels":
        return draw(st.integers(1, 3))
    if name == "longest":
        return draw(st.integers(1000, 2000))
    return 2 * draw(st.integers(1, 4)) if name.endswith("dim") else draw(st.integers(least, LARGEST.get(name, 6)))


def _piece(layer: Layer) -> int:
    """Tokens that a rank needs at least: whole chunks and segments, and as many as the mixer or the next rank reads."""
    grain = layer.mixer.grain(layer.sizes) * max(1, layer.mixer.segments(layer.sizes))
    read = int(layer.mixer.overlap(layer.sizes))
    return grain * -(-max(read, layer.mixer.shortest(layer.sizes)) // grain)


@st.composite
def cases(draw: st.DrawFn, mixer: Mixer, strategy: Strategy) -> Case:
    """A case to which the strategy applies."""
    mesh = draw(meshes(strategy, not mixer.indivisible))
    tensor, ulysses, context = (mesh.get(name, 1) for name in ("tensor", "ulysses", "context"))
    layer = draw(layers(mixer, tensor * ulysses * strategy.groups, tensor, context))
    times = draw(st.integers(1, 3 if mixer.name in STEEP else 5))
    length = tensor * ulysses * context * _piece(layer) * (2 ** (times // 2) if mixer.doubled else times)
    case = Case(
        layer,
        strategy,
        mesh,
        length=length,
        batch=mesh["data"] * (context if strategy.deals else 1) * draw(st.integers(1, 2)),
        causal=draw(st.sampled_from(MASKS[mixer.causality])),
        kernel=draw(st.sampled_from((mixer.kernels[0], *mixer.kernels))),
        dtype=draw(st.sampled_from(["bf16", "fp32", "fp64"])),
        flash=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )
    short = draw(st.integers(0, min(5, length - 1)))
    wanted = [replace(case, phase=phase, length=length - (phase != "decode") * short) for phase in PHASES]
    wanted += (
        [replace(case, phase="prefill", cached=context * ulysses * draw(st.integers(1, 5)))] if mixer.extends else []
    )
    possible = [found for one in wanted if (found := mended(one))]
    assume(possible)
    trained = [found for found in possible if found.phase == "train"]
    return draw(st.sampled_from(trained * 2 + possible))
