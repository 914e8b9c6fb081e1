"""A layer of a model on this rank, as a torch module: what ``validate.distributed`` gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from costmodel.arrangement import Way
from costmodel.block import Block
from costmodel.candidates import Meshes, fitting
from costmodel.dims import Shape
from costmodel.errors import InputError
from costmodel.subject import Layer
from validate.agreement import check_alike
from validate.executor import Executor
from validate.mesh import Mesh
from validate.rehearsal import rehearsed
from validate.releasing import Releasing, Step
from validate.spreading import Spreading
from validate.task import SEQUENCE, Task


class DistributedLayer(Spreading, nn.Module):
    """A layer of which each rank has a part; made by ``validate.distributed``.

    Shapes: of B sequences of L tokens, D wide, a rank has [b, n, D], with b = B / data ranks, and n = L / (context x
    ulysses x tensor) ranks; decoding, n is 1. Every rank of the mesh calls every method that communicates.

    Attributes:
        weights: this rank's part of the layer's weights, by name: heads and widths are cut along the tensor axis, rows
            for each token like the sequence if the strategy says so, and the rest is a copy.
        whole_shapes: the weights' shapes before they are cut.
        ops: runs it; ``ops.transport.sent`` is what this rank sent so far.

    Raises:
        InputError: when the mesh does not have the axes of the strategy, the layer has routed experts, or its weights
            depend on a length that is not given.
        ValueError: when the ranks of an axis do not divide the heads, or what else of the weights it cuts.
    """

    def __init__(self, layer: Layer, task: Task, ops: Executor) -> None:
        nn.Module.__init__(self)
        Spreading.__init__(self, layer, task, ops.transport)
        self.ops = ops
        self._rehearsed: dict[tuple[Any, ...], Sequence[Step]] = {}
        self._tables: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        _check_axes(task.way, self.mesh)
        if layer.mlp is not None and layer.mlp.experts > 1:
            raise InputError("mlp experts", layer.mlp.experts, "routed experts are modelled, but not run", "give 1")
        try:
            self.whole_shapes: dict[str, Shape] = task.block(layer, Mesh(), task.length).weights()
        except KeyError as missing:
            rule = f"{layer.mixer.name} has weights for every token"
            raise InputError("length", task.length, rule, "give the length of the sequence") from missing
        own = task.block(layer, self.mesh, task.length).weights()
        alone = {
            name: task.block(layer, Mesh.of({name: axis.size}), task.length).weights()
            for name, axis in self.mesh.axes.items()
        }
        self._cuts = {
            name: [
                (dim, tuple(axis for axis in SEQUENCE if axis in alone and alone[axis][name][dim] != size))
                for dim, size in enumerate(shape)
                if own[name][dim] != size
            ]
            for name, shape in self.whole_shapes.items()
        }
        made = {name: torch.empty(shape, dtype=ops.dtypes["model"], device=ops.device) for name, shape in own.items()}
        self.weights = nn.ParameterDict(
            {name: nn.Parameter(w, requires_grad=name not in layer.mixer.fixed) for name, w in made.items()}
        )
        self.reset_parameters()

    # Weights ------------------------------------------------------------------------------------------------------

    def reset_parameters(self, seed: int = 0) -> None:
        """Parts of the same weights on every rank: vectors 1, others normal with variance 1 over their first size."""
        random = torch.Generator().manual_seed(seed)
        self.load(
            {
                name: torch.ones(shape)
                if len(shape) == 1
                else torch.randn(shape, generator=random) * float(shape[0]) ** -0.5
                for name, shape in self.whole_shapes.items()
            }
        )

    @torch.no_grad()
    def load(self, whole: Mapping[str, Tensor]) -> None:
        """Take this rank's part of weights that are given whole.

        Args:
            whole: of every name and shape in ``whole_shapes``; cast to the layer's dtype.

        Raises:
            InputError: when a weight is missing, unknown, or of another shape.
        """
        given = {name: tuple(w.shape) for name, w in whole.items()}
        for name in sorted(given.keys() | self.whole_shapes.keys()):
            if given.get(name) != self.whole_shapes.get(name):
                rule = f"the layer's has shape {self.whole_shapes.get(name)}"
                raise InputError(f"shape of weight '{name}'", given.get(name), rule)
        for name, parameter in self.weights.items():
            parameter.copy_(self.cut(name, whole[name]))

    def cut(self, name: str, whole: Tensor) -> Tensor:
        """This rank's part of a weight of ``whole_shapes``, or of its gradient."""
        for dim, names in self._cuts[name]:
            if names == ("ulysses",) and "context" in self.mesh.axes:  # of what each rank of the outer axis has
                outer = self.mesh.axes["context"].size
                whole = self._part(whole.unflatten(dim, (outer, -1)), dim + 1, names).flatten(dim, dim + 1)
            else:
                whole = self._part(whole, dim, names)
        return whole

    @torch.no_grad()
    def sum_gradients(self) -> None:
        """Add up each weight's gradient over the ranks that hold a copy of it, in place, in the weights' dtype.

        One all-reduce along each axis, of all gradients laid end to end, counted in ``ops.transport.sent``. Every rank
        calls this, after the backward pass.

        Raises:
            CommunicationError: when a message does not come in time.
        """
        for axis in self.mesh.axes.values():
            copied = [
                parameter
                for name, parameter in self.weights.items()
                if parameter.grad is not None and all(axis.name not in names for _, names in self._cuts[name])
            ]
            if copied:
                flat = torch.cat([parameter.grad.flatten() for parameter in copied])
                sizes = [parameter.numel() for parameter in copied]
                summed = torch.split(self.ops.transport.all_reduce(flat, axis), sizes)
                for parameter, gradient in zip(copied, summed, strict=True):
                    parameter.grad = gradient.view(parameter.shape)

    # Tokens -------------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, memory: Tensor | None = None, *, spend: bool = False) -> Tensor:
        """The layer's output [b, n, D] for this rank's tokens [b, n, D], as ``shard`` leaves them.

        Args:
            memory: this rank's tokens of the second sequence, cut by ``shard_memory``, where the mixer reads one; of a
                shared layer, the embeddings of the tokens x, cut like x.
            spend: whether the memory of x, and of ``memory``, may be freed once they are not needed any more.

        Raises:
            InputError: when the strategy does not apply to these shapes, or they differ between ranks.
        """
        return self._run((x, memory), x.shape[1] * self.mesh.ranks_along(SEQUENCE), spend=spend)

    def decode(
        self,
        x: Tensor,
        cache: Sequence[Tensor],
        length: int,
        embedded: Tensor | None = None,
        *,
        spend: bool = False,
    ) -> Tensor:
        """The layer's output [b, 1, D] for the last of ``length`` tokens, x [b, 1, D].

        Args:
            cache: this rank's part of what earlier tokens left (see ``shard_cache``); its last place is written with
                this token's, on the last rank, or on that which has the sequence where these are dealt out.
            embedded: the token's embedding, like x, for a shared layer.
            spend: as in ``forward``.

        Raises:
            InputError: when the strategy does not apply to these shapes, or they differ between ranks.
        """
        return self._run((x, embedded), length, cache, spend=spend)

    def extend(
        self,
        x: Tensor,
        cache: Sequence[Tensor],
        cached: int,
        embedded: Tensor | None = None,
        *,
        spend: bool = False,
    ) -> Tensor:
        """The layer's output [b, n, D] for this rank's new tokens [b, n, D], which follow on ``cached``: a prefill.

        Args:
            cache: this rank's part of what the cached tokens left (see ``shard_cache``), with room at its end for its
                new ones, which is written.
            embedded: the new tokens' embeddings, like x, for a shared layer.
            spend: as in ``forward``.

        Raises:
            InputError: when the strategy does not apply to these shapes, or they differ between ranks.
        """
        return self._run((x, embedded), x.shape[1] * self.mesh.ranks_along(SEQUENCE), cache, cached, spend)

    def _run(
        self,
        pair: tuple[Tensor, Tensor | None],
        length: int,
        cached_tensors: Sequence[Tensor] = (),
        cached: int = 0,
        spend: bool = False,
    ) -> Tensor:
        """The block, whose memory is freed as soon as it is not needed."""
        given, cache = tuple(x for x in pair if x is not None), tuple(cached_tensors)
        self._check(given, length, cache, cached)
        tables = self.tables(length, cached)
        block, weights = self.block(length), dict(self.weights.items())
        known = torch.is_grad_enabled(), *(tuple(x.shape for x in group) for group in (given, tables, cache))
        if known not in self._rehearsed:
            self._rehearsed[known] = rehearsed(block, self.ops, weights, given, tables, cache)
        releasing = Releasing(self._rehearsed[known], given if spend else ())
        releasing.keep([*weights.values(), *tables, *cache, *(() if spend else given)])
        with self.ops.releasing(releasing):
            return block(self.ops, given[0], tables, cache, weights, given[1:])

    def tables(self, length: int, cached: int = 0) -> tuple[Tensor, Tensor]:
        """Cosine and sine [n, d / 2] of the rotary positions of this rank's part of ``length`` tokens; made once."""
        if (length, cached) not in self._tables:
            every = torch.arange(cached, cached + length)
            places = self._part(every, 0, SEQUENCE[:2])  # between the gathers of tensor parallelism
            if self.task.phase == "decode":
                places = torch.tensor([length - 1])
            turns = self.layer.mixer.turns(self.block(length).sizes)
            turn = torch.outer(places.double(), torch.tensor(turns, dtype=torch.float64))
            cos, sin = (x.to(self.ops.device, self.ops.dtypes["accumulate"]) for x in (turn.cos(), turn.sin()))
            self._tables[length, cached] = cos, sin
        return self._tables[length, cached]

    def mix(self, carry: Any) -> Tensor:
        """The mixed values [b, H, n, e] of this rank's tokens, from the carry of its heads: the strategy alone."""
        return self.task.way.strategy.apply(self.ops, self.mesh.axes, carry)

    def block(self, length: int | None) -> Block:
        """The layer as a method over the op vocabulary, for sequences of so many tokens."""
        return self.task.block(self.layer, self.mesh, length)

    def _check(self, given: tuple[Tensor, ...], length: int, cache: tuple[Tensor, ...], cached: int) -> None:
        """Refuse what would go wrong between the ranks: shapes that differ, or that the strategy is not for."""
        x = given[0]
        if (self.task.phase == "decode") != bool(cache and not cached):
            raise InputError("pass", self.task.phase, "forward(x) is for other passes than decode, decode(...) for it")
        if x.dim() != 3 or x.shape[2] != self.layer.sizes["D"]:
            raise InputError("shape of x", tuple(x.shape), f"it is [B, n, {self.layer.sizes['D']}]")
        shapes = ", ".join(str(tuple(t.shape)) for t in (*given, *cache))
        check_alike(shapes, self.transport, self.ops.device)
        self._check_strategy(self.task.workload(length, x.shape[0] * self.mesh.ranks_along(self._dealt), cached))
        self._check_memory(*given)

    def _check_memory(self, x: Tensor, memory: Tensor | None = None) -> None:
        if self.layer.shared:
            if memory is None or memory.shape != x.shape:
                given = None if memory is None else tuple(memory.shape)
                rule = f"a shared layer reads its tokens' embeddings {tuple(x.shape)}"
                raise InputError("shape of memory", given, rule)
            return
        wanted = None if self.task.phase == "decode" else self.layer.mixer.memory(self.layer.sizes)
        given = None if memory is None else (memory.shape[1] * self.mesh.ranks_along(SEQUENCE), memory.shape[2])
        expected = None if wanted is None else (wanted.tokens, wanted.width)
        if given != expected:
            raise InputError("tokens and width of memory", given, f"{self.layer.mixer.name} reads {expected}")


def _check_axes(way: Way, mesh: Mesh) -> None:
    if len(fitting(way.strategy.axes, way.tensor, Meshes.one(dict(mesh.sizes)))) == 0:
        needed = ", ".join(way.strategy.axes) or "neither context nor ulysses"
        rule = f"along the sequence, strategy '{way.strategy.name}' needs axes of at least 2 ranks: {needed}"
        raise InputError("mesh", dict(mesh.sizes), rule)
