"""A layer spread over the processes of a launcher, by the names of what it is and of how it is spread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from costmodel.arrangement import Way
from costmodel.errors import InputError, UnknownNameError
from costmodel.estimate import check_way
from costmodel.strategy import strategies
from costmodel.subject import Layer, from_mixer
from costmodel.workload import Phase
from validate.executor import Executor
from validate.launch import Rank, init_from_environment
from validate.layer import DistributedLayer
from validate.mesh import CONTEXT_INSIDE, ORDER, Mesh
from validate.task import Task


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
        documents: lengths of the documents that each sequence is packed with, in their order; tokens see only those of
            their own, and of the padding after them, and states are reset at the first token of each.
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
