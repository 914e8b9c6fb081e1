"""A ring's messages are on their way while it computes, and its memory does not grow with the sequence's length."""

from __future__ import annotations

import pytest
import torch

from costmodel.carries.pairs import Pairs
from costmodel.masks import Mask
from costmodel.strategy import strategies
from validate.allocations import allocating
from validate.executor import Executor
from validate.launch import Rank, RankPool
from validate.mesh import Mesh
from validate.timeline import Span, Timed, waiting

RANKS = 4


def attend(ops: Executor, strategy: str, n: int, causal: bool = True) -> None:
    """Forward and backward over ``n`` tokens of this rank, 2 heads that share keys, d = 4, e = 4."""
    random = torch.Generator().manual_seed(n)
    dtype = ops.dtypes["model"]
    q, k, v = (torch.randn(1, heads, n, 4, generator=random).to(dtype).requires_grad_() for heads in (2, 1, 1))
    carry = Pairs(q, k, v, Mask(causal), 0.5)
    out = strategies.get(strategy).apply(ops, ops.transport.mesh.axes, carry)
    out.backward(torch.ones_like(out))


def timed_ring(rank: Rank, strategy: str, causal: bool) -> list[Span]:
    ops = Timed(torch.float64, Mesh.of({"context": RANKS}, rank.index), timeout_s=20)
    attend(ops, strategy, 16, causal)
    return ops.spans


def indices(spans: list[Span], kind: str, name: str) -> list[int]:
    return [i for i, span in enumerate(spans) if span.kind == kind and span.name == name]


def working(causal: bool, strategy: str, rank: int, step: int) -> bool:
    """Whether a rank computes in a step at all: in a causal ring of contiguous blocks, not for later ones."""
    return not causal or strategy != "ring" or step <= rank


@pytest.mark.parametrize(("strategy", "causal"), [("ring", False), ("ring", True), ("zigzag", True)])
def test_blocks_are_sent_before_the_kernel_and_waited_for_after_it(pool: RankPool, strategy: str, causal: bool) -> None:
    for rank, spans in enumerate(pool.run(timed_ring, strategy, causal, ranks=RANKS)):
        kernels = [indices(spans, "kernel", name) for name in ("Attention", "AttentionBackward")]
        steps = [step for step in range(RANKS) if working(causal, strategy, rank, step)]
        assert [len(k) for k in kernels] == [len(steps)] * 2
        for step in range(RANKS - 1):
            posted, waited = (indices(spans, kind, f"ring step {step}, blocks") for kind in ("post", "wait"))
            assert len(posted) == 2, "once forward, once backward"
            for way in (0, 1):
                own = [i for i in waited if posted[way] < i < (posted[1] if way == 0 else len(spans))]
                assert own, "waited for"
                if step in steps:
                    assert posted[way] < kernels[way][steps.index(step)] < own[0]
                if step + 1 in steps:
                    assert own[-1] < kernels[way][steps.index(step + 1)]


@pytest.mark.parametrize(("strategy", "causal"), [("ring", False), ("zigzag", True)])
def test_gradients_travel_while_the_next_step_computes(pool: RankPool, strategy: str, causal: bool) -> None:
    """They leave after the step that added to them, and are waited for after the next one's kernel, before its sum."""
    for spans in pool.run(timed_ring, strategy, causal, ranks=RANKS):
        kernels = indices(spans, "kernel", "AttentionBackward")
        added = indices(spans, "kernel", "AddInto")  # dq, dk and dv of every step
        for step in range(1, RANKS):
            (posted,) = indices(spans, "post", f"ring step {step}, accumulators")
            arrived = indices(spans, "wait", f"ring step {step}, accumulators")[0]
            assert added[3 * step - 1] < posted < kernels[step] < arrived < added[3 * step]


def test_waiting_is_what_the_waits_took() -> None:
    spans = [Span("kernel", "Attention", 0.0, 5.0), Span("wait", "a", 5.0, 5.5), Span("wait", "b", 7.0, 7.25)]
    assert waiting(spans) == 0.75


# Memory ---------------------------------------------------------------------------------------------------------------


def peak_bytes(rank: Rank, strategy: str, ranks: int, length: int) -> int:
    ops = Executor(torch.float32, Mesh.of({"context": ranks}, rank.index), timeout_s=20)
    with allocating(torch.device("cpu")) as found:
        attend(ops, strategy, length // ranks)
    return found.peak


@pytest.mark.parametrize("strategy", ["ring", "zigzag"])
def test_memory_of_a_rings_backward_is_that_of_its_part(pool: RankPool, strategy: str) -> None:
    """As much with more ranks over more tokens: nothing of it is in proportion to the whole sequence.

    From three ranks on: between two, no accumulators travel beside blocks. Kernels take some memory of their own, the
    same at all sizes; doubling a part at most doubles the rest.
    """
    n = 1024
    three, four = (max(pool.run(peak_bytes, strategy, ranks, n * ranks, ranks=ranks)) for ranks in (3, 4))
    assert four == three
    assert max(pool.run(peak_bytes, strategy, 3, 2 * n * 3, ranks=3)) <= 2 * three


# Gradients ------------------------------------------------------------------------------------------------------------


def gradients(rank: Rank, gradient: torch.dtype) -> tuple[list[torch.Tensor], int]:
    ops = Executor(torch.bfloat16, Mesh.of({"context": RANKS}, rank.index), gradient=gradient, timeout_s=20)
    random = torch.Generator().manual_seed(rank.index)
    qkv = [torch.randn(1, 2, 16, 8, generator=random).bfloat16().requires_grad_() for _ in range(3)]
    out = strategies.get("ring").apply(ops, ops.transport.mesh.axes, Pairs(*qkv, Mask(), 0.3))
    forward = ops.transport.sent["context"].bytes
    out.backward(torch.ones_like(out))
    return [x.grad.float() for x in qkv], ops.transport.sent["context"].bytes - forward


def test_gradients_travel_in_float32_or_in_the_dtype_of_the_model(pool: RankPool) -> None:
    wide, narrow = (pool.run(gradients, dtype, ranks=RANKS) for dtype in (torch.float32, torch.bfloat16))
    block = 2 * 2 * 16 * 8  # elements of keys and values
    for (exact, sent), (rounded, sent_narrow) in zip(wide, narrow, strict=True):
        # Blocks go P - 1 steps in bfloat16, their gradients P steps, home included.
        assert sent == block * (2 * (RANKS - 1) + 4 * RANKS)
        assert sent_narrow == block * (2 * (RANKS - 1) + 2 * RANKS)
        assert torch.equal(exact[0], rounded[0]), "gradients of queries stay, in float32"
        for a, b in zip(exact[1:], rounded[1:], strict=True):
            # Each of P sums is rounded to 8 bits, and float32's once at the end.
            torch.testing.assert_close(a, b, rtol=0, atol=(RANKS + 1) * 2**-8 * float(a.abs().max()))
            assert not torch.equal(a, b)
