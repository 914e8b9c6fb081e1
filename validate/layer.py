"""A layer of a model on this rank, as a torch module: what ``validate.distributed`` gives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from costmodel.arrangement import Way
from costmodel.block import Block, Share
from costmodel.candidates import Meshes, fitting, padded_length, refusals
from costmodel.dims import Shape
from costmodel.documents import Documents
from costmodel.errors import InputError, UnknownNameError
from costmodel.estimate import check_way
from costmodel.mixer import Kept
from costmodel.strategy import strategies
from costmodel.subject import Layer, from_mixer
from costmodel.tensor import Kind
from costmodel.tensor import Tensor as Traced
from costmodel.trace import Widths
from costmodel.workload import Phase, Workload
from validate.executor import Executor
from validate.launch import Rank, init_from_environment
from validate.layout import Level, shard, shard_nested
from validate.mesh import CONTEXT_INSIDE, ORDER, Mesh
from validate.releasing import Rehearsal, Releasing, Step, rehearse

#: Bytes in which ranks tell each other their shapes.
TEXT = 256

#: Axes of the mesh that the sequence is spread over, outermost first.
SEQUENCE = ("context", "ulysses", "tensor")


@dataclass(frozen=True)
class Task:
    """What a layer is to do: how its mixer is spread and run, under which mask, in which pass.

    Attributes:
        way: the strategy, the mixer's kernel, and whether there are several tensor ranks.
        causal: whether a token sees only earlier ones.
        length: tokens of the sequence, for mixers that have weights for each of them; others take any length.
        documents: lengths of those that each sequence is packed with; none where a sequence is one.
    """

    way: Way
    causal: bool = True
    phase: Phase = "train"
    length: int | None = None
    documents: tuple[int, ...] = ()

    def workload(self, length: int, batch: int, cached: int = 0) -> Workload:
        """The task over sequences of so many tokens, their padding included.

        Raises:
            InputError: for documents with more tokens, or a pass that does not take them.
        """
        room = length - sum(self.documents)
        whole = (*self.documents, *([room] if room and self.documents else []))
        return Workload(length, batch, self.phase, self.causal, cached=cached, documents=whole)


class DistributedLayer(nn.Module):
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
        ValueError: when the tensor axis does not divide the heads.
    """

    def __init__(self, layer: Layer, task: Task, ops: Executor) -> None:
        super().__init__()
        self.layer, self.task, self.ops, self.mesh = layer, task, ops, ops.transport.mesh
        self._rehearsed: dict[tuple[Any, ...], Sequence[Step]] = {}
        self._tables: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._aside = copy(ops.transport)  # the same ranks, counted apart
        self._aside.sent = dict(self._aside.sent)
        _check_axes(task.way, self.mesh)
        if layer.mlp is not None and layer.mlp.experts > 1:
            raise InputError("mlp experts", layer.mlp.experts, "routed experts are modelled, but not run", "give 1")
        try:
            self.whole_shapes: dict[str, Shape] = _block(layer, task, Mesh(), task.length).weights()
        except KeyError as missing:
            rule = f"{layer.mixer.name} has weights for every token"
            raise InputError("length", task.length, rule, "give the length of the sequence") from missing
        own = _block(layer, task, self.mesh, task.length).weights()
        alone = {
            name: _block(layer, task, Mesh.of({name: axis.size}), task.length).weights()
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

    def shard(self, whole: Tensor, dim: int = 1) -> Tensor:
        """This rank's part of a tensor of all tokens: of its batch at dimension 0, of its sequence at ``dim``.

        The sequence is padded with zeros at its end, to ``padded`` tokens. A token that is decoded is whole on every
        rank that has its sequence: on all along the context axis, unless the strategy deals sequences out.

        Raises:
            ValueError: when the ranks do not divide the batch.
        """
        missing = 0 if self.task.phase == "decode" else self.padded(whole.shape[dim]) - whole.shape[dim]
        if missing:
            shape = *whole.shape[:dim], missing, *whole.shape[dim + 1 :]
            whole = torch.cat([whole, whole.new_zeros(shape)], dim)
        return self._part(self._part(whole, 0, self._dealt), dim, self._spread)

    def padded(self, length: int) -> int:
        """Tokens of a sequence of so many with those that it is padded with: the next multiple of what it is cut into.

        Raises:
            InputError: where it would have to be padded, and may not be.
        """
        workload = self.task.workload(length, _size(self.mesh, ["data"]))
        found = padded_length(self.layer, self.task.way, workload, dict(self.mesh.sizes))
        if found != length:
            self._check_strategy(workload)
        return found

    def shard_memory(self, whole: Tensor) -> Tensor:
        """This rank's part [b, n_M, D_M] of a second sequence [B, L_M, D_M]: contiguous, as no mask asks for its order.

        Raises:
            ValueError: when the ranks do not divide the batch or the sequence.
        """
        return self._part(self._part(whole, 0, ["data"]), 1, SEQUENCE, "contiguous")

    def places(self, batch: int, length: int) -> tuple[Tensor, Tensor]:
        """Which sequences of a batch, and which tokens of a sequence, this rank holds: their numbers, in its order.

        Numbers of ``length`` and above are padding.
        """
        sequences = self._part(torch.arange(batch), 0, self._dealt)
        if self.task.phase == "decode":
            return sequences, torch.tensor([length - 1])
        return sequences, self._part(torch.arange(self.padded(length)), 0, SEQUENCE)

    def shard_cache(self, whole: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """This rank's part of a cache: tensors of the shapes of ``Mixer.cache``, with the batch before them.

        With tokens [B, heads, T, ...] (see ``Kept.tokens``), T is cut over context and Ulysses ranks, heads over tensor
        ranks unless all share one; states are cut by heads alone.
        Along tokens, ranks have one stretch each in turn; where sequences are dealt out, the last stretch, which has
        room for the new token, and that of the rank which has the sequence change places.
        """
        kept = self.layer.mixer.cache(self.block(None).sizes, whole[0].shape[2])
        return tuple(self._cached(x, k) for x, k in zip(whole, kept, strict=True))

    def _cached(self, whole: Tensor, kept: Kept) -> Tensor:
        """This rank's part of one tensor of a cache."""
        part = self._part(whole, 0, ["data"])
        if kept.tokens:
            part = self._stretches(part) if self._deals else self._part(part, 2, SEQUENCE[:2], "contiguous")
        return part if part.shape[1] == kept.shape[0] else self._part(part, 1, ["tensor"])

    def _stretches(self, x: Tensor) -> Tensor:
        """Of sequences [B, H, T, ...] that are dealt out, one stretch each: the last of this rank's own."""
        axis = self.mesh.axes["context"]
        last, found = axis.size - 1, []
        for owner in range(axis.size):
            place = last if owner == axis.rank else owner if axis.rank == last else axis.rank
            found.append(shard(shard(x, 0, axis.size, owner), 2, axis.size, place))
        return torch.cat(found)

    @torch.no_grad()
    def unshard(self, part: Tensor, dim: int = 1, length: int | None = None) -> Tensor:
        """The tensor of all tokens, from every rank's part; every rank calls this. Not differentiable.

        The inverse of ``shard``: all-gathers, counted in ``ops.transport.sent``.

        Args:
            part: as ``shard`` leaves it: sequences at dimension 0, tokens at ``dim``.
            length: tokens of the sequence, where it was padded: what comes after them is left out.
        """
        for name in reversed(self._spread):
            if axis := self.mesh.axes.get(name):
                layout = self._layout(name)
                order = "rank" if layout == "contiguous" else layout
                part = self.ops.transport.all_gather(part, axis, dim, order)
        for name in reversed(self._dealt):
            if axis := self.mesh.axes.get(name):
                part = self.ops.transport.all_gather(part, axis, 0)
        return part if length is None else part.narrow(dim, 0, length)

    def forward(self, x: Tensor, memory: Tensor | None = None, *, spend: bool = False) -> Tensor:
        """The layer's output [b, n, D] for this rank's tokens [b, n, D], as ``shard`` leaves them.

        Args:
            memory: this rank's tokens of the second sequence, cut by ``shard_memory``, where the mixer reads one; of a
                shared layer, the embeddings of the tokens x, cut like x.
            spend: whether the memory of x, and of ``memory``, may be freed once they are not needed any more.

        Raises:
            InputError: when the strategy does not apply to these shapes, or they differ between ranks.
        """
        length = x.shape[1] * _size(self.mesh, SEQUENCE)
        second = () if memory is None else (memory,)
        self._check(x, length, second=second)
        self._check_memory(memory, x)
        return self._run(length, (x, *second), self.tables(length), spend=spend)

    def decode(self, x: Tensor, cache: Sequence[Tensor], length: int, embedded: Tensor | None = None) -> Tensor:
        """The layer's output [b, 1, D] for the last of ``length`` tokens, x [b, 1, D].

        Args:
            cache: this rank's part of what earlier tokens left (see ``shard_cache``); its last place is written with
                this token's, on the last rank, or on that which has the sequence where these are dealt out.
            embedded: the token's embedding, like x, for a shared layer.

        Raises:
            InputError: when the strategy does not apply to these shapes, or they differ between ranks.
        """
        second = () if embedded is None else (embedded,)
        self._check(x, length, *cache, second=second)
        if self.layer.shared:
            self._check_memory(embedded, x)
        return self._run(length, (x, *second), self.tables(length), tuple(cache))

    def extend(self, x: Tensor, cache: Sequence[Tensor], cached: int, embedded: Tensor | None = None) -> Tensor:
        """The layer's output [b, n, D] for this rank's new tokens [b, n, D], which follow on ``cached``: a prefill.

        Args:
            cache: this rank's part of what the cached tokens left (see ``shard_cache``), with room at its end for its
                new ones, which is written.
            embedded: the new tokens' embeddings, like x, for a shared layer.

        Raises:
            InputError: when the strategy does not apply to these shapes, or they differ between ranks.
        """
        length = x.shape[1] * _size(self.mesh, SEQUENCE)
        second = () if embedded is None else (embedded,)
        self._check(x, length, *cache, second=second, cached=cached)
        self._check_memory(embedded, x)
        tables = self.tables(length, cached)
        return self._run(length, (x, *second), tables, tuple(cache))

    def _run(
        self,
        length: int,
        given: tuple[Tensor, ...],
        tables: tuple[Tensor, Tensor],
        cache: tuple[Tensor, ...] = (),
        spend: bool = False,
    ) -> Tensor:
        """The block, whose memory is freed as soon as it is not needed."""
        block, weights = self.block(length), dict(self.weights.items())
        known = torch.is_grad_enabled(), *(tuple(x.shape for x in group) for group in (given, tables, cache))
        if known not in self._rehearsed:
            self._rehearsed[known] = self._rehearse(block, given, tables, cache)
        releasing = Releasing(self._rehearsed[known], given if spend else ())
        releasing.keep([*weights.values(), *tables, *cache, *(() if spend else given)])
        with self.ops.releasing(releasing):
            return block(self.ops, given[0], tables, cache, weights, given[1:])

    def _rehearse(
        self, block: Block, given: tuple[Tensor, ...], tables: tuple[Tensor, ...], cache: tuple[Tensor, ...]
    ) -> Sequence[Step]:
        """What the block does to memory, for tensors of these shapes."""

        def shapes(tensors: Iterable[Tensor], kind: Kind) -> tuple[Traced, ...]:
            return tuple(Traced.new(tuple(x.shape), x.itemsize, kind) for x in tensors)

        weights = dict(zip(self.weights, shapes(self.weights.values(), "parameter"), strict=True))
        cos_sin, kept = shapes(tables, "table"), shapes(cache, "cache")

        def method(ops: Rehearsal, given: Sequence[Traced]) -> Traced:
            return block(ops, given[0], (cos_sin[0], cos_sin[1]), kept, weights, tuple(given[1:]))

        widths = Widths(self.ops.width("model"), self.ops.width("accumulate"), self.ops.width("gradient"))
        return rehearse(Rehearsal(widths, torch.is_grad_enabled()), method, shapes(given, "activation"))

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
        return _block(self.layer, self.task, self.mesh, length)

    @property
    def _spread(self) -> Sequence[str]:
        """Axes that tokens of a sequence are spread over."""
        return () if self.task.phase == "decode" else SEQUENCE

    @property
    def _deals(self) -> bool:
        return self.task.phase == "decode" and self.task.way.strategy.deals

    @property
    def _dealt(self) -> Sequence[str]:
        """Axes that sequences are dealt out over."""
        return ("data", "context") if self._deals else ("data",)

    def _layout(self, axis: str) -> str:
        return self.task.way.strategy.layouts.get(axis, "contiguous")

    def _part(self, whole: Tensor, dim: int, names: Sequence[str], layout: str | None = None) -> Tensor:
        """This rank's part of a dimension that is spread over some axes, in the strategy's layout unless given."""
        axes = [self.mesh.axes[name] for name in names if name in self.mesh.axes]
        levels = [Level(axis.size, layout or self._layout(axis.name)) for axis in axes]
        return shard_nested(whole, dim, levels, [axis.rank for axis in axes])

    def _check_memory(self, memory: Tensor | None, x: Tensor) -> None:
        if self.layer.shared:
            if memory is None or memory.shape != x.shape:
                given = None if memory is None else tuple(memory.shape)
                rule = f"a shared layer reads its tokens' embeddings {tuple(x.shape)}"
                raise InputError("shape of memory", given, rule)
            return
        wanted = self.layer.mixer.memory(self.layer.sizes)
        given = None if memory is None else (memory.shape[1] * _size(self.mesh, SEQUENCE), memory.shape[2])
        expected = None if wanted is None else (wanted.tokens, wanted.width)
        if given != expected:
            raise InputError("tokens and width of memory", given, f"{self.layer.mixer.name} reads {expected}")

    def _check(self, x: Tensor, length: int, *cache: Tensor, second: tuple[Tensor, ...] = (), cached: int = 0) -> None:
        """Refuse what would go wrong between the ranks: shapes that differ, or that the strategy is not for."""
        if (self.task.phase == "decode") != bool(cache and not cached):
            raise InputError("pass", self.task.phase, "forward(x) is for other passes than decode, decode(...) for it")
        if x.dim() != 3 or x.shape[2] != self.layer.sizes["D"]:
            raise InputError("shape of x", tuple(x.shape), f"it is [B, n, {self.layer.sizes['D']}]")
        self._check_alike(", ".join(str(tuple(t.shape)) for t in (x, *second, *cache)))
        batch = x.shape[0] * _size(self.mesh, self._dealt)
        self._check_strategy(self.task.workload(length, batch, cached))

    def _check_strategy(self, workload: Workload) -> None:
        _, reasons = refusals(self.layer, self.task.way, workload, Meshes.one(dict(self.mesh.sizes)))
        if reasons:
            strategy = self.task.way.strategy.name
            raise InputError("strategy", strategy, f"it does not apply here: {'; '.join(reasons)}")

    def _check_alike(self, shapes: str) -> None:
        """Compare a text with that of every other rank, by messages that are not counted as the layer's."""
        text = shapes.encode()[:TEXT]
        rows = torch.zeros(1, TEXT, dtype=torch.uint8)
        rows[0, : len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        rows = rows.to(self.ops.device)
        for axis in reversed(self.mesh.axes.values()):
            rows = self._aside.all_gather(rows, axis, 0)
        found = [bytes(row.tolist()).rstrip(b"\0").decode() for row in rows.cpu()]
        if set(found) != {text.decode()}:
            told = "; ".join(f"rank {rank} has {other}" for rank, other in enumerate(found))
            raise InputError("shapes on this rank", shapes, f"every rank needs the same: {told}", "cut with shard(...)")


def distributed(  # noqa: PLR0913 - most have defaults, and go by their names
    mixer: str | Layer,
    strategy: str,
    mesh: Mapping[str, int] | DeviceMesh,
    *,
    causal: bool = True,
    phase: Phase = "train",
    kernel: str | None = None,
    length: int | None = None,
    documents: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    gradient: torch.dtype | None = None,
    **sizes: int,
) -> DistributedLayer:
    """One layer, of which this process holds its part; every process of the launcher calls this alike.

    The module takes this rank's tokens [B, n, D] and gives as many; ``shard`` cuts whole tensors, ``unshard`` gathers
    them. It is on the current CUDA device where the launcher's ranks talk over NCCL, else on the CPU.

    Args:
        mixer: the name of a mixer, whose hyperparameters follow as ``sizes``, or a layer of a model.
        strategy: the name of a strategy; see ``costmodel.strategy.strategies.names()``.
        mesh: ranks along each axis: ``data``, ``context``, ``ulysses``, ``tensor``. Their product is the number of
            processes. Or a ``DeviceMesh`` of all processes whose dimensions have these names, in this order or with
            ``ulysses`` before ``context``, whose ranks then follow each other.
        causal: whether a token sees only earlier ones.
        phase: ``train``, ``forward`` or ``prefill`` for ``layer(x)``; ``decode`` for ``layer.decode(x, cache, L)``.
        kernel: the implementation of the mixer, such as ``fused`` or ``vanilla`` (scores in memory); its first if not
            given.
        length: tokens of the whole sequence, for mixers that have weights for each of them.
        documents: lengths of the documents that each sequence is packed with, in their order, for attention; tokens see
            only those of their own, and of the padding after them.
        dtype: of weights and activations. What one rank accumulates is in float32 at least.
        gradient: of gradients that several ranks add to, on their way between them: those of keys and values in a ring,
            and in reduce-scatters. ``dtype`` halves the bytes of half precision, and rounds once for every rank;
            float32, or float64 for a float64 layer, if not given. Weights' gradients are summed in ``dtype``.
        sizes: hyperparameters of the mixer, and ``width`` of the model; the usual ones where not given.

    Raises:
        UnknownNameError: for a name that nothing has.
        InputError: when mesh, strategy and number of processes do not go together, a size is out of range, or
            gradients are neither in ``dtype`` nor in that of accumulation.
    """
    layer = mixer if isinstance(mixer, Layer) else from_mixer(mixer, **sizes).layers[0]
    sizes_of_mesh, context_inside = _sizes_of(mesh)
    rank = _rank_of(sizes_of_mesh)
    over_nccl = rank is not None and dist.get_backend() == "nccl"
    ops = Executor(
        dtype,
        Mesh.of(sizes_of_mesh, 0 if rank is None else rank.index, context_inside),
        gradient=gradient,
        device=torch.device("cuda", torch.cuda.current_device()) if over_nccl else "cpu",
    )
    chosen = layer.mixer.kernels[0] if kernel is None else kernel
    way = Way(strategies.get(strategy), chosen, sizes_of_mesh.get("tensor", 1) > 1)
    check_way(layer, way, causal)
    return DistributedLayer(layer, Task(way, causal, phase, length, tuple(documents)), ops)


def _sizes_of(mesh: Mapping[str, int] | DeviceMesh) -> tuple[dict[str, int], bool]:
    """Ranks along each axis of a mesh, and whether context ranks are within Ulysses ranks.

    Raises:
        InputError: for an axis that there is not, or without ranks, and for a mesh whose ranks are numbered otherwise.
    """
    if isinstance(mesh, DeviceMesh):
        sizes = dict(zip(mesh.mesh_dim_names or (), mesh.mesh.shape, strict=False))
        ordered = [list(sizes) == [name for name in order if name in sizes] for order in (ORDER, CONTEXT_INSIDE)]
        numbered = mesh.mesh.flatten().tolist() == list(range(mesh.size()))
        if len(sizes) != mesh.mesh.dim() or not any(ordered) or not numbered:
            rule = (
                f"its dimensions are named, in this order: {', '.join(ORDER)}, or with ulysses before context; and its "
                "ranks follow each other"
            )
            remedy = 'for example init_device_mesh("cpu", (2, 2), mesh_dim_names=("context", "ulysses"))'
            raise InputError("mesh", str(mesh), rule, remedy)
        return sizes, not ordered[0]
    for name, size in mesh.items():
        if name not in ORDER:
            raise UnknownNameError("axis", name, ORDER)
        if size < 1:
            raise InputError(name, size, "an axis has at least 1 rank")
    return dict(mesh), False


def _rank_of(mesh: Mapping[str, int]) -> Rank | None:
    """Which of the launcher's ranks this process is; ``None`` for a mesh of one.

    Raises:
        InputError: when the launcher started another number of processes.
    """
    ranks = math.prod(mesh.values())
    rank = init_from_environment() if ranks > 1 else None
    running = 1 if rank is None else rank.size
    if ranks != running:
        remedy = f"start them with torchrun --nproc-per-node {ranks}" if running == 1 else None
        raise InputError("mesh", dict(mesh), f"it has {ranks} ranks, and {running} are running", remedy)
    return rank


def _block(layer: Layer, task: Task, mesh: Mesh, length: int | None) -> Block:
    """The layer as a method, with the sizes of one rank."""
    packed = Documents(task.documents) if task.documents else None
    share = Share(_size(mesh, ["tensor"]), length, _size(mesh, SEQUENCE[:2]), _size(mesh, ["ulysses"]), packed)
    return share.block(layer, task.way, mesh.axes, task.phase, task.causal)


def _size(mesh: Mesh, names: Sequence[str]) -> int:
    """Ranks along some axes together."""
    return math.prod(mesh.axes[name].size for name in names if name in mesh.axes)


def _check_axes(way: Way, mesh: Mesh) -> None:
    if len(fitting(way.strategy.axes, way.tensor, Meshes.one(dict(mesh.sizes)))) == 0:
        needed = ", ".join(way.strategy.axes) or "neither context nor ulysses"
        rule = f"along the sequence, strategy '{way.strategy.name}' needs axes of at least 2 ranks: {needed}"
        raise InputError("mesh", dict(mesh.sizes), rule)
