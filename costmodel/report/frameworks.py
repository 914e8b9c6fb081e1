"""A plan in the words of frameworks: the options that make them run it."""

from __future__ import annotations

from collections.abc import Iterator

from costmodel.data_parallel import Sharing
from costmodel.plan import Plan

#: Context parallelism of Megatron-Core (``--cp-comm-type``), by the strategy that it is.
MEGATRON = {"zigzag": "p2p", "all-gather": "all_gather", "ulysses": "a2a", "ulysses-zigzag": "a2a+p2p"}

#: That of torchtitan (``context_parallel_rotate_method``) and Accelerate (``cp_comm_strategy``), both torch's own.
TORCH = {"zigzag": "alltoall", "all-gather": "allgather"}

#: How far weights, gradients and optimizer state are shared out, as DeepSpeed counts it.
STAGE = {Sharing.NOTHING: 0, Sharing.OPTIMIZER: 1, Sharing.EVERYTHING: 3}


def axes(plan: Plan) -> dict[str, int]:
    """The axes of the mesh that have more than one rank, outermost first."""
    grid = ("ulysses", "context") if plan.context_inside else ("context", "ulysses")
    return {axis: plan.mesh[axis] for axis in ("data", *grid, "tensor") if plan.mesh[axis] > 1}


def options(plan: Plan) -> dict[str, str]:
    """What to give to each framework that has the plan's strategy; those that have not are left out.

    Of several strategies in one plan, as for the layers of a hybrid, only the mesh is told.
    """
    strategies = {way.strategy.name for way in plan.arrangement.ways}
    name = strategies.pop() if len(strategies) == 1 else ""
    said = {"DeviceMesh": _device_mesh(plan), "Megatron-Core": " ".join(_megatron(plan, name))}
    if plan.alone.evaluator.train:
        said |= {"torchtitan": ", ".join(_torchtitan(plan, name)), "Accelerate": ", ".join(_accelerate(plan, name))}
    return {framework: words for framework, words in said.items() if words}


def facts(plan: Plan) -> Iterator[tuple[str, str]]:
    """The same, under a label."""
    for place, (framework, words) in enumerate(options(plan).items()):
        yield "" if place else "Run as", f"{framework}: {words}"


def _device_mesh(plan: Plan) -> str:
    used = axes(plan)
    if not used:
        return ""
    sizes, names = (tuple(part) for part in (used.values(), used))
    return f'init_device_mesh("cuda", {sizes}, mesh_dim_names={names})'.replace("'", '"')


def _megatron(plan: Plan, strategy: str) -> Iterator[str]:
    """Flags; ranks that are left are data parallel."""
    grid = plan.mesh["context"] * plan.mesh["ulysses"]
    if strategy != "whole" and (strategy not in MEGATRON or plan.context_inside):
        return
    if plan.mesh["tensor"] > 1:
        yield f"--tensor-model-parallel-size {plan.mesh['tensor']} --sequence-parallel"
    if grid > 1:
        yield f"--context-parallel-size {grid} --cp-comm-type {MEGATRON[strategy]}"
    if strategy == "ulysses-zigzag":  # the first size is of the nearest ranks
        yield f"--hierarchical-context-parallel-sizes {plan.mesh['ulysses']} {plan.mesh['context']}"
    if plan.sharing is Sharing.OPTIMIZER:
        yield "--use-distributed-optimizer"
    if plan.sharing is Sharing.EVERYTHING:
        yield "--use-megatron-fsdp --data-parallel-sharding-strategy optim_grads_params"
    if plan.recompute:
        yield "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"


def _torchtitan(plan: Plan, strategy: str) -> Iterator[str]:
    """Keys of its configuration; it shares everything out over data and context ranks, or nothing over data ranks."""
    nothing = plan.sharing is Sharing.NOTHING and strategy == "whole"
    if (strategy != "whole" and strategy not in TORCH) or not (nothing or plan.sharing is Sharing.EVERYTHING):
        return
    kind = "replicate" if nothing else "shard"
    if plan.mesh["data"] > 1:
        yield f"data_parallel_{kind}_degree = {plan.mesh['data']}"
    if plan.mesh["context"] > 1:
        yield f"context_parallel_degree = {plan.mesh['context']}"
        yield f'context_parallel_rotate_method = "{TORCH[strategy]}"'
    if plan.mesh["tensor"] > 1:
        yield f"tensor_parallel_degree = {plan.mesh['tensor']}"
    if plan.recompute:
        yield 'activation_checkpoint.mode = "full"'


def _accelerate(plan: Plan, strategy: str) -> Iterator[str]:
    """Arguments of ``ParallelismConfig`` and of what goes with it: FSDP2, or DeepSpeed for Ulysses."""
    ulysses = strategy == "ulysses"
    nothing = plan.sharing is Sharing.NOTHING and strategy == "whole"
    if not (ulysses or (strategy in ("whole", *TORCH) and (nothing or plan.sharing is Sharing.EVERYTHING))):
        return
    if plan.mesh["data"] > 1:
        yield f"dp_{'replicate' if nothing else 'shard'}_size={plan.mesh['data']}"
    if ulysses:
        yield f'sp_size={plan.mesh["ulysses"]}, sp_backend="deepspeed", zero_optimization.stage={STAGE[plan.sharing]}'
    elif plan.mesh["context"] > 1:
        yield f'cp_size={plan.mesh["context"]}, cp_comm_strategy="{TORCH[strategy]}"'
    if plan.mesh["tensor"] > 1:
        yield f"tp_size={plan.mesh['tensor']}"
    if plan.recompute:
        yield "gradient_checkpointing=True"
