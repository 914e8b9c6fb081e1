"""Memory of real runs against the formulas: what operations leave for each other, and what is allocated."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.mixer import mixers
from costmodel.strategy import strategies
from costmodel.subject import from_mixer
from tests.validate.cases import DTYPES, Case, expected
from validate.allocations import allocating
from validate.launch import Rank, RankPool
from validate.layer import DistributedLayer, Task
from validate.live_memory import Live, Remembering, Sink, Source
from validate.mesh import Mesh

#: Strategies of softmax attention whose peak is in the backward pass, and the axes that they cut.
ATTENTION = {
    "whole": (),
    "ring": ("context",),
    "zigzag": ("context",),
    "striped": ("context",),
}


@dataclass(frozen=True)
class Held:
    """Bytes at their peak, of activations between operations, and by which operation; and of the allocator."""

    live: int
    where: str
    allocated: int


def held(rank: Rank, case: Case) -> Held:
    """A pass whose input nothing else holds and, trained, whose output only the graph holds; twice."""
    ops = Remembering(DTYPES[case.dtype], Mesh.of(case.mesh, rank.index), flash=case.flash, timeout_s=20)
    made = DistributedLayer(case.layer, Task(case.way, case.causal, case.phase, case.length), ops)
    made.load(case.weights(made.whole_shapes))
    x, seed = (made.shard(t.to(DTYPES[case.dtype])).contiguous() for t in case.tokens())
    given_ = [x, *(made.shard_memory(t.to(DTYPES[case.dtype])).contiguous() for t in case.memory())]

    def step() -> None:
        if case.phase == "forward":
            with torch.no_grad():
                made(*(t.clone() for t in given_), spend=True)
            return
        out = made(*(Source.apply(torch.zeros(0, requires_grad=True), t.clone) for t in given_), spend=True)
        end = Sink.apply(out, seed.clone)
        del out
        end.backward(torch.zeros(0))

    with Live(without=[*made.weights.values(), *made.tables(case.length), *given_, seed]) as ops.live:
        step()
    live, ops.live = ops.live, None
    assert live is not None
    peak, at = live.peak(without=[w.grad for w in made.weights.values() if w.grad is not None])
    made.zero_grad(set_to_none=True)
    with allocating(torch.device("cpu")) as found:
        step()
    return Held(peak, live.marks[at], found.peak)


@st.composite
def plain(draw: st.DrawFn, name: str) -> Case:
    """Softmax attention of any shape, without parts that are switched on."""
    axes = ATTENTION[name]
    ranks = draw(st.integers(2, 4)) if axes else 1
    groups = draw(st.integers(1, 2))
    sizes = {"heads": groups * draw(st.integers(1, 3)), "kv_heads": groups, "head_dim": 2 * draw(st.integers(1, 4))}
    (layer,) = from_mixer("attention", draw(st.integers(1, 9)), **sizes).layers
    length = 2 * ranks * draw(st.integers(1, 8))
    dtype = draw(st.sampled_from(["bf16", "fp32", "fp64"]))
    batch = draw(st.integers(1, 2))
    return Case(layer, strategies.get(name), dict.fromkeys(axes, ranks), length, batch, dtype=dtype, flash=True)


#: Of live over predicted memory. Autograd adds up gradients in place where the formula has a new sum, and frees the
#: gradients of several outputs and padded ones at other points.
FEWEST, MOST = 0.75, 1.4


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTENTION)
def test_trained_attention_holds_about_what_the_formula_says(pool: RankPool, name: str) -> None:
    """Of the rank that has most; a rank that the mask leaves out of a step holds less."""

    @settings(max_examples=6)
    @given(plain(name))
    def check(case: Case) -> None:
        known, found = expected(case), pool.run(held, case, ranks=case.ranks)
        told = [known.peak(rank) for rank in range(case.ranks)]
        assert FEWEST * max(told) <= max(each.live for each in found) <= MOST * max(told)
        # Kernels need memory of their own, which the allocator sees besides; and gradients of weights.
        assert all(each.allocated >= each.live for each in found)

    check()


def usual(name: str, phase: str) -> Case:
    """A mixer of small sizes on one rank."""
    mixer = mixers.get(name)
    sizes = {key: 2 if size.cut else max(size.least, 4) for key, size in mixer.sizes.items()}
    given_ = {"kv_heads": 2, "window": 0, "head_dim": 8}
    (layer,) = from_mixer(name, 16, **sizes | {key: size for key, size in given_.items() if key in sizes}).layers
    length = 32 * mixer.grain(layer.sizes) * max(1, mixer.segments(layer.sizes)) if name == "longnet" else 96
    causal, whole = mixer.causality != "full", strategies.get("whole")
    return Case(layer, whole, {}, length, causal=causal, dtype="fp32", kernel=mixer.kernels[0], phase=phase)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("name", mixers.names())
def test_every_trained_mixer_holds_about_what_the_formula_says(name: str) -> None:
    case = usual(name, "train")
    found, told = held(Rank(0, 1, 20.0), case), expected(case).peak(0)
    assert FEWEST * told <= found.live <= MOST * told, f"{found.live} at {found.where}, not {told}"


#: Reshaping the heads of a product, which are apart in its memory, makes a copy of them where the formula has a view.
COPIED = {"bigbird": 1.05, "longnet": 1.22}


@pytest.mark.slow
@pytest.mark.parametrize("name", mixers.names())
def test_every_mixer_holds_what_the_formula_says_to_the_byte(name: str) -> None:
    case = usual(name, "forward")
    found, told = held(Rank(0, 1, 20.0), case), expected(case).peak(0)
    most = int(told * COPIED.get(name, 1))
    assert told <= found.live <= most, f"{found.live} at {found.where}, not {told}"
    assert found.allocated >= found.live
