"""Plans in the words of frameworks: expected options are those of the frameworks' own documents."""

from __future__ import annotations

import pytest

from costmodel.data_parallel import Sharing
from costmodel.estimate import Chosen, estimate
from costmodel.hardware import parse_cluster
from costmodel.plan import Plan
from costmodel.report.frameworks import options
from costmodel.subject import from_mixer
from costmodel.workload import Phase, Workload


def chosen(strategy: str, phase: Phase, recompute: bool = False, inside: bool = False, **ranks: int) -> Plan:
    sharing = Sharing.EVERYTHING if phase == "train" else Sharing.NOTHING
    way = Chosen((strategy,), ranks, (), recompute, sharing, inside)
    workload = Workload(2**16, ranks.get("data", 1), phase)
    return estimate(from_mixer("attention", heads=32, kv_heads=8), workload, parse_cluster("8xh100"), way).plan(0)


def test_a_grid_has_its_nearest_ranks_first_in_megatron() -> None:
    said = options(chosen("ulysses-zigzag", "prefill", context=2, ulysses=4))
    assert said == {
        "DeviceMesh": 'init_device_mesh("cuda", (2, 4), mesh_dim_names=("context", "ulysses"))',
        "Megatron-Core": "--context-parallel-size 8 --cp-comm-type a2a+p2p --hierarchical-context-parallel-sizes 4 2",
    }
    said = options(chosen("ulysses-zigzag", "prefill", inside=True, context=2, ulysses=4))
    assert said == {"DeviceMesh": 'init_device_mesh("cuda", (4, 2), mesh_dim_names=("ulysses", "context"))'}


def test_a_training_step() -> None:
    said = options(chosen("zigzag", "train", recompute=True, data=2, context=2, tensor=2))
    assert said == {
        "DeviceMesh": 'init_device_mesh("cuda", (2, 2, 2), mesh_dim_names=("data", "context", "tensor"))',
        "Megatron-Core": "--tensor-model-parallel-size 2 --sequence-parallel --context-parallel-size 2 "
        "--cp-comm-type p2p --use-megatron-fsdp --data-parallel-sharding-strategy optim_grads_params "
        "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
        "torchtitan": "data_parallel_shard_degree = 2, context_parallel_degree = 2, "
        'context_parallel_rotate_method = "alltoall", tensor_parallel_degree = 2, activation_checkpoint.mode = "full"',
        "Accelerate": 'dp_shard_size=2, cp_size=2, cp_comm_strategy="alltoall", tp_size=2, gradient_checkpointing=True',
    }


def test_ulysses_is_deepspeeds() -> None:
    said = options(chosen("ulysses", "train", ulysses=8))
    assert said["Accelerate"] == 'sp_size=8, sp_backend="deepspeed", zero_optimization.stage=3'
    assert said["Megatron-Core"].startswith("--context-parallel-size 8 --cp-comm-type a2a --use-megatron-fsdp")
    assert "torchtitan" not in said


@pytest.mark.parametrize("strategy", ["ring", "striped", "tile"])
def test_a_strategy_that_no_framework_has_is_not_said_to_be_there(strategy: str) -> None:
    ranks = {"context": 4, "ulysses": 2} if strategy == "tile" else {"context": 8}
    assert set(options(chosen(strategy, "train", **ranks))) == {"DeviceMesh"}
