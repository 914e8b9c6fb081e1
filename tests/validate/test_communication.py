"""Collectives on real ranks: what arrives, and what was sent for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from costmodel.ops.communication import AllGather, AllReduce, AllToAll, Communication, ReduceScatter, RingShift
from costmodel.ops.mesh import Axis
from costmodel.tensor import Tensor as Traced
from validate import kernels
from validate.communication import LAYOUT, CommunicationError, Traffic
from validate.executor import Executor
from validate.launch import Rank, RankError, RankPool
from validate.layout import shard, unshard
from validate.mesh import Mesh

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
#: The context axis alone, outside another and inside another.
SIZES = [{"context": 2}, {"context": 3}, {"context": 4}, {"context": 2, "tensor": 2}, {"data": 2, "context": 2}]


def run_collective(rank: Rank, kind: type[Communication], options: dict[str, Any], given_: Any) -> Any:
    shape, dtype, sizes = given_
    ops = Executor(dtype, Mesh.of(sizes, rank.index), timeout_s=20)
    axis = ops.transport.mesh.axes["context"]
    random = torch.Generator().manual_seed(rank.index)  # small whole numbers: sums are exact in every dtype
    x = torch.randint(-8, 8, shape, generator=random).to(dtype)
    (out,) = kernels.run(kind(axis, **options), ops, (x,))
    return x, out, ops.transport.sent["context"]


Ranks = list[Tensor]


def _gathered(xs: Ranks, rank: int, dim: int, order: str = "rank") -> Tensor:
    return unshard(xs, dim, LAYOUT[order])


def _summed(xs: Ranks, rank: int) -> Tensor:
    return sum(x.double() for x in xs).to(xs[0].dtype)  # type: ignore[union-attr]


def _scattered(xs: Ranks, rank: int, dim: int, order: str = "rank") -> Tensor:
    return shard(_summed(xs, rank), dim, len(xs), rank, LAYOUT[order])


def _transposed(xs: Ranks, rank: int, split: int, concat: int) -> Tensor:
    return torch.cat([shard(x, split, len(xs), rank) for x in xs], concat)


def _from_before(xs: Ranks, rank: int) -> Tensor:
    return xs[rank - 1]


#: What each collective must give, from the tensors of all ranks of its line.
EXPECTED: dict[type[Communication], Callable[..., Tensor]] = {
    AllGather: _gathered,
    AllReduce: _summed,
    ReduceScatter: _scattered,
    AllToAll: _transposed,
    RingShift: _from_before,
}


@st.composite
def collectives(draw: st.DrawFn, kind: type[Communication]) -> tuple[dict[str, Any], Any]:
    sizes = draw(st.sampled_from(SIZES))
    options: dict[str, Any] = {}
    if kind in (AllGather, ReduceScatter):
        options = {"dim": draw(st.integers(0, 2)), "order": draw(st.sampled_from(sorted(LAYOUT)))}
    elif kind is AllToAll:
        options = dict(zip(("split", "concat"), draw(st.permutations(range(3)))[:2], strict=True))
    shape = [draw(st.integers(1, 3)) for _ in range(3)]
    for option, factor in (("dim", 2 * sizes["context"]), ("split", sizes["context"])):
        if option in options:
            shape[options[option]] *= factor
    return options, (tuple(shape), draw(st.sampled_from(DTYPES)), sizes)


def lines(sizes: dict[str, int]) -> list[tuple[int, ...]]:
    ranks = Mesh.of(sizes).ranks
    return sorted({Mesh.of(sizes, rank).line("context") for rank in range(ranks)})


@pytest.mark.parametrize("kind", EXPECTED)
def test_collective(pool: RankPool, kind: type[Communication]) -> None:
    @settings(max_examples=12)
    @given(collectives(kind))
    def check(drawn: tuple[dict[str, Any], Any]) -> None:
        options, given_ = drawn
        shape, dtype, sizes = given_
        done = pool.run(run_collective, kind, options, given_, ranks=Mesh.of(sizes).ranks)
        for line in lines(sizes):
            for index, rank in enumerate(line):
                _, out, sent = done[rank]
                assert torch.equal(out, EXPECTED[kind]([done[other][0] for other in line], index, **options))
                assert sent == _predicted(kind(Axis("context", len(line), index), **options), shape, dtype)

    check()


def _predicted(primitive: Communication, shape: Sequence[int], dtype: torch.dtype) -> Traffic:
    """The formula; an all-reduce fills its elements up until the ranks divide them."""
    x = Traced.new(tuple(shape), dtype.itemsize)
    filled = -x.elements % primitive.axis.size if isinstance(primitive, AllReduce) else 0
    inputs = [Traced.new((x.elements + filled,), dtype.itemsize) if filled else x]
    return Traffic(int(primitive.wire_bytes(inputs)), int(primitive.messages(inputs)))


def test_every_collective_of_the_vocabulary_is_tested() -> None:
    concrete = {kind for kind in kernels.registry._kernels if issubclass(kind, Communication)}
    assert EXPECTED.keys() <= concrete


def receive_from_nobody(rank: Rank) -> None:
    """Rank 1 does not send what rank 0 waits for."""
    ops = Executor(mesh=Mesh.of({"context": 2}, rank.index), timeout_s=0.5)
    if rank.index == 0:
        ops.transport.shift(ops.transport.mesh.axes["context"], [torch.ones(3)], "ring step 1, blocks").receive()


def test_a_message_that_does_not_come_names_rank_axis_and_step() -> None:
    with RankPool(2) as own, pytest.raises(RankError) as caught:
        own.run(receive_from_nobody, timeout_s=20)
    told = "rank 0: ring step 1, blocks along axis 'context': no message from rank 1 (waited up to 0.5 s)"
    assert told in str(caught.value)
    assert CommunicationError.__name__ in str(caught.value)
