"""``validate.distributed`` on several ranks: meshes of both kinds, ``length``, and the dtype of gradients."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh

import validate
from costmodel.errors import InputError
from costmodel.strategy import strategies
from costmodel.subject import from_mixer
from tests.ranks import ranks
from tests.validate.cases import Case, check_case
from validate.communication import Traffic
from validate.launch import Rank, RankPool
from validate.template import whole_layer

ATTENTION = {"width": 6, "heads": 4, "kv_heads": 2, "head_dim": 4}
(LAYER,) = from_mixer("attention", **ATTENTION).layers
BATCH, LENGTH, WIDTH = 2, 16, 6


@pytest.fixture(scope="module", params=[2, 4])
def world(request: pytest.FixtureRequest) -> Iterator[RankPool]:
    """So many processes, and no others."""
    with ranks(request.param) as started:
        yield started


@dataclass(frozen=True)
class Call:
    """A call of ``validate.distributed`` that every rank makes, and the shape of its mesh."""

    mixer: str
    strategy: str
    axes: tuple[str, ...]
    ranks: tuple[int, ...]
    device_mesh: bool = True
    options: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        kind = "DeviceMesh" if self.device_mesh else "mapping"
        shape = "x".join(f"{axis}{ranks}" for axis, ranks in zip(self.axes, self.ranks, strict=True))
        return f"{self.mixer}-{self.strategy}-{shape}-{kind}"

    def layer(self) -> validate.layer.DistributedLayer:
        """The layer on this rank, as under a launcher."""
        os.environ["WORLD_SIZE"] = str(math.prod(self.ranks))
        named = dict(zip(self.axes, self.ranks, strict=True))
        mesh = init_device_mesh("cpu", self.ranks, mesh_dim_names=self.axes) if self.device_mesh else named
        return validate.distributed(self.mixer, self.strategy, mesh, **self.options)


def off(_: Rank, call: Call) -> float:
    """How far output and gradients are off at most, of all tokens and weights."""
    layer = call.layer()
    random = torch.Generator().manual_seed(0)
    whole, seed = torch.randn(2, BATCH, LENGTH, WIDTH, generator=random, dtype=torch.float64)
    weights = {
        name: torch.randn(shape, generator=random, dtype=torch.float64) for name, shape in layer.whole_shapes.items()
    }
    layer.load(weights)
    assert torch.equal(layer.unshard(layer.shard(whole)), whole)
    x = layer.shard(whole).clone().requires_grad_()
    y = layer(x)
    y.backward(layer.shard(seed))
    layer.sum_gradients()

    trained = {name: w.requires_grad_() for name, w in weights.items()}
    given = whole.clone().requires_grad_()
    expected = whole_layer(layer.layer, given, trained, layer.task.causal)
    expected.backward(seed)
    pairs = [(layer.unshard(y.detach()), expected), (layer.unshard(x.grad), given.grad)]
    pairs += [(layer.weights[name].grad, layer.cut(name, w.grad)) for name, w in trained.items()]
    return max(float((found - right).abs().max() / right.abs().max()) for found, right in pairs)


EXACT = {"dtype": torch.float64}
ROWS = EXACT | {"length": LENGTH, "causal": False, "width": WIDTH}
CALLS = [
    Call("attention", "zigzag", ("context",), (2,), options=EXACT | ATTENTION),
    Call("attention", "whole", ("tensor",), (2,), options=EXACT | ATTENTION),
    Call("resmlp", "ring-values", ("context",), (2,), options=ROWS),
    Call("resmlp", "ring-values", ("context",), (2,), device_mesh=False, options=ROWS),
    Call("attention", "striped", ("context",), (4,), options=EXACT | ATTENTION),
    Call("attention", "ring", ("data", "context"), (2, 2), options=EXACT | ATTENTION),
    Call("attention", "ulysses-zigzag", ("context", "ulysses"), (2, 2), options=EXACT | ATTENTION),
    Call("attention", "tile", ("ulysses", "context"), (2, 2), options=EXACT | ATTENTION),
    Call("resmlp", "gather-values", ("context",), (4,), options=ROWS),
    Call("resmlp", "product-grid", ("context", "ulysses"), (2, 2), options=ROWS),
    Call("resmlp", "product-grid", ("ulysses", "context"), (2, 2), options=ROWS),
    Call("resmlp", "product-grid", ("context", "ulysses"), (2, 2), device_mesh=False, options=ROWS),
]


@pytest.mark.slow
def test_meshes_and_lengths(world: RankPool) -> None:
    for call in CALLS:
        if math.prod(call.ranks) == world.ranks:
            assert max(world.run(off, call)) < 1e-12, str(call)


def told(_: Rank, call: Call) -> str:
    """What is said against a call."""
    with pytest.raises(InputError) as caught:
        call.layer()
    return str(caught.value)


@pytest.mark.slow
def test_wrong_meshes_are_refused_on_every_rank(world: RankPool) -> None:
    ranks = world.ranks
    wrong = [
        (Call("attention", "ring", ("depth",), (ranks,), options=ATTENTION), "its dimensions are named, in this order"),
        (Call("attention", "ring", ("ulysses",), (ranks,), options=ATTENTION), "axes of at least 2 ranks: context"),
        (Call("resmlp", "ring-values", ("context",), (ranks,), options={"causal": False}), "give the length of the"),
    ]
    for call, reason in wrong:
        assert all(reason in text for text in world.run(told, call)), str(call)


# Gradients on the wire ------------------------------------------------------------------------------------------------

HALF = ATTENTION | {"dtype": torch.bfloat16}


def sent_and_gradient(_: Rank, call: Call) -> tuple[Traffic, torch.Tensor]:
    """What a rank sends in a training step, and the input's gradient, of all tokens."""
    layer = call.layer()
    random = torch.Generator().manual_seed(0)
    layer.load({name: torch.randn(s, generator=random) * s[0] ** -0.5 for name, s in layer.whole_shapes.items()})
    whole, seed = torch.randn(2, BATCH, LENGTH, WIDTH, generator=random).to(layer.ops.dtypes["model"])
    x = layer.shard(whole).clone().requires_grad_()
    layer(x).backward(layer.shard(seed))
    sent = layer.ops.transport.sent["context"]
    return sent, layer.unshard(x.grad)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ring", "all-gather"])
def test_the_dtype_of_gradients_on_the_wire(world: RankPool, strategy: str) -> None:
    """Of K and V together, in bf16: P - 1 hops forward, P - 1 back, and theirs go home in P hops of a ring."""
    ranks = world.ranks

    def run(**options: object) -> tuple[list[Traffic], torch.Tensor]:
        call = Call("attention", strategy, ("context",), (ranks,), device_mesh=False, options=options)
        found = world.run(sent_and_gradient, call)
        return [sent for sent, _ in found], found[0][1].double()

    wide, narrow, exact = run(**HALF), run(**HALF, gradient=torch.bfloat16), run(**ATTENTION, dtype=torch.float64)
    elements = 2 * BATCH * (LENGTH // ranks) * 2 * 4
    hops = ranks if strategy == "ring" else ranks - 1
    assert {sent.bytes for sent in wide[0]} == {2 * (ranks - 1) * elements * 2 + hops * elements * 4}
    assert {sent.bytes for sent in narrow[0]} == {2 * (ranks - 1) * elements * 2 + hops * elements * 2}
    assert {sent.messages for sent in wide[0]} == {sent.messages for sent in narrow[0]}
    # bf16 has 8 bits: both are right to a few units in the last place. The sum of two is rounded once in either.
    scale = float(exact[1].abs().max())
    errors = [float((found - exact[1]).abs().max()) / scale for found in (wide[1], narrow[1])]
    assert 0 < errors[0] < 0.05 and 0 < errors[1] < 0.05
    assert ranks == 2 or not torch.equal(wide[1], narrow[1])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ring", "zigzag", "all-gather", "tile", "double-ring"])
def test_narrow_gradients_are_counted_exactly(pool: RankPool, strategy: str) -> None:
    found = strategies.get(strategy)
    mesh = dict.fromkeys(found.axes, 2)
    check_case(pool, Case(LAYER, found, mesh, LENGTH, dtype="bf16", gradient="bf16"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_gradients_of_another_dtype_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match=r"travel in torch\.bfloat16 or torch\.float32"):
        validate.distributed("attention", "whole", {}, gradient=dtype, **HALF)
