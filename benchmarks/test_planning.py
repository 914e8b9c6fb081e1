"""How long the answers take: ``make bench``. Compare within a run; figures in the README are of an idle machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from costmodel.arrangement import Arrangement, Way
from costmodel.candidates import Choices, fitting, meshes
from costmodel.evaluation import Evaluator, Group
from costmodel.hardware import parse_cluster
from costmodel.huggingface import read_config
from costmodel.mixer import mixers
from costmodel.piece import Pieces
from costmodel.plan import rank
from costmodel.strategy import strategies
from costmodel.subject import from_mixer, from_model
from costmodel.trace import Tracer, Widths
from costmodel.workload import Workload

ROOT = Path(__file__).resolve().parents[1]
LLAMA = ROOT / "examples" / "llama-3-8b.json"
EVALUATED = 1_000_000

COMMANDS = {
    "help": ["--help"],
    "layer, 4 devices": ["plan", "--mixer", "attention", "--seq", "1Mi", "--cluster", "4xrtx4090"],
    "layer, 8 devices": ["plan", "--mixer", "attention", "--seq", "1Mi", "--cluster", "8xh100"],
    "one plan": [
        *("predict", "--mixer", "attention", "--seq", "1Mi", "--cluster", "8xh100", "--strategy", "zigzag"),
    ],
    "formulas": ["formulas", "--mixer", "attention"],
    "model, 8 devices": ["plan", "--model", str(LLAMA), "--seq", "1Mi", "--cluster", "8xh100", "--pass", "prefill"],
    "model, nothing fits": [
        *("plan", "--model", str(LLAMA), "--seq", "1Mi", "--cluster", "4xrtx4090", "--pass", "prefill"),
    ],
    "model, 4096 devices": [
        *("plan", "--model", str(LLAMA), "--seq", "1Mi", "--cluster", "4096xh100", "--pass", "train"),
    ],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_command(benchmark: Callable[..., object], command: str) -> None:
    """Whole processes, imports included."""

    def run() -> None:
        found = subprocess.run(
            [sys.executable, "-m", "costmodel", *COMMANDS[command]], capture_output=True, cwd=ROOT, check=False
        )
        assert found.returncode in (0, 1)

    benchmark.pedantic(run, rounds=9, warmup_rounds=1)  # type: ignore[attr-defined]


@pytest.mark.parametrize("phase", ["prefill", "train"])
def test_ranking(benchmark: Callable[..., object], phase: str) -> None:
    """Tracing, compiling and timing every plan of a model on 4,096 devices."""
    subject, workload = from_model(read_config(LLAMA)), Workload(2**20, phase=phase)  # type: ignore[arg-type]
    ranking = benchmark(rank, subject, workload, parse_cluster("4096xh100"))
    assert len(ranking.order) > 0  # type: ignore[attr-defined]


def test_plan_evaluations(benchmark: Callable[..., object]) -> None:
    """Seconds and bytes of a million candidates (mesh, recompute, sharing, L) of one arrangement, training."""
    subject, workload = from_model(read_config(LLAMA)), Workload(2**20, phase="train")
    way = Way(strategies.get("zigzag"), "fused", True)
    choices = Choices.of(fitting(way.strategy.axes, True, meshes(64)), train=True)
    group = Group(Evaluator(subject, workload, parse_cluster("64xh100")), Arrangement((way,)), choices)
    each = -(-EVALUATED // len(group))
    many = group.where(np.repeat(np.arange(len(group)), each)[:EVALUATED])
    length = np.tile(np.arange(1, each + 1) * 1024.0, len(group))[:EVALUATED]

    def evaluate() -> None:
        assert len(many.costs(length)["seconds"]) == EVALUATED

    benchmark.pedantic(evaluate, rounds=7, warmup_rounds=1)  # type: ignore[attr-defined]


@pytest.mark.parametrize("mixer", mixers.names())
@pytest.mark.parametrize("strategy", ["whole", "ulysses"])
def test_trace(benchmark: Callable[..., object], mixer: str, strategy: str) -> None:
    """One layer of a mixer under a strategy, forward and backward, to a program."""
    causal = mixers.get(mixer).causality != "full"
    subject, workload = from_mixer(mixer), Workload(2**20, phase="train", causal=causal)
    way = Way(strategies.get(strategy), mixers.get(mixer).kernels[0], False)

    def trace() -> object:
        pieces = Pieces(subject, workload, way.strategy.axes, False, Tracer(Widths(2, 4, 4), 64))
        return pieces.layer(subject.layers[0], way)

    assert benchmark(trace) is not None
