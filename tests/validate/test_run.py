"""``costmodel run``: what it prints and keeps, what it refuses, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from costmodel.cli import main as command_line
from validate.job import Job
from validate.launch import Rank
from validate.measured import AFFORDED_TOKENS, slice_of

SMALL = ("run", "--mixer", "attention", "--set", "heads=2", "--set", "head_dim=8", "--repetitions", "1")
RING = (*SMALL, "--strategy", "ring", "--ranks", "2", "--seq", "64")
STATES = ("run", "--mixer", "mamba2", "--strategy", "state-gather", "--ranks", "2", "--seq", "512")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command as the command line finds it."""
    entry = EntryPoint("run", "validate.run:run", command_line.GROUP)
    monkeypatch.setattr(command_line, "_registered", lambda: {"run": entry})
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    def invoke(*arguments: str) -> Result:
        return CliRunner(env={"COLUMNS": "100"}).invoke(command_line.main, arguments, prog_name="costmodel")

    return invoke


def document(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_counts_are_those_of_the_formula(run, tmp_path: Path) -> None:
    kept = tmp_path / "results.jsonl"
    found = document(run(*RING, "--save", str(kept), "--json"))
    # Keys and values of 32 tokens, 2 heads of 8 entries of 4 bytes each, passed on once.
    assert [own["sent"] for own in found["measured"]["ranks"]] == [{"context": {"bytes": 4096, "messages": 2}}] * 2
    assert found["predicted"]["ranks"][0]["sent"] == found["measured"]["ranks"][0]["sent"]
    assert all(own["memory_bytes"] >= 32 * 16 * 4 for own in found["measured"]["ranks"])
    assert found["measured"]["checked_tokens"] == 64
    assert 0 < found["measured"]["relative_error"] < 1e-5
    assert found["predicted"]["profile"] == "cpu"
    (line,) = kept.read_text().splitlines()
    saved = json.loads(line)
    assert saved["environment"]["torch"]
    assert saved["measured"] == found["measured"]


def test_a_page_for_people(run) -> None:
    result = run(*RING, "--pass", "train", "--dtype", "bf16")
    assert result.exit_code == 0, result.output
    for told in ("ring 2; mesh context 2", "all 64 tokens against one process", "measured is", "and Adam"):
        assert told in " ".join(result.stdout.split())
    assert result.stdout.count("same") == 4  # bytes and messages of both ranks
    assert "run 1 of 1" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--strategy", "tree", "--ranks", "3", "--seq", "33", "--pass", "decode"),
        ("--strategy", "pass-q-decode", "--ranks", "2", "--batch", "4", "--seq", "32", "--pass", "decode"),
        ("--strategy", "ulysses-zigzag", "--ulysses", "2", "--ranks", "4", "--seq", "64", "--pass", "prefill"),
        ("--strategy", "whole", "--ranks", "2", "--tensor", "2", "--seq", "33", "--pass", "decode"),
        ("--strategy", "whole", "--ranks", "2", "--data", "2", "--batch", "2", "--seq", "33", "--pass", "decode"),
    ],
)
def test_other_passes_and_meshes(run, arguments: tuple[str, ...]) -> None:
    found = document(run(*SMALL, *arguments, "--json"))
    assert [own["sent"] for own in found["measured"]["ranks"]] == [own["sent"] for own in found["predicted"]["ranks"]]


def test_either_axis_of_a_grid_may_be_the_inner_one(run) -> None:
    grid = ("--strategy", "tile", "--context", "2", "--ulysses", "2", "--ranks", "4", "--seq", "64")
    found = {inside: document(run(*SMALL, *grid, *inside, "--json")) for inside in ((), ("--context-inside",))}
    sizes, mesh = {"heads": 1, "head_dim": 4}, {"context": 2, "ulysses": 2}
    job = Job("attention", "tile", "fused", mesh, 64, sizes=sizes)
    assert job.on(Rank(1, 4, 1.0)).mesh.line("context") == (1, 3)
    assert replace(job, context_inside=True).on(Rank(1, 4, 1.0)).mesh.line("context") == (0, 1)
    for inside, told in found.items():
        assert told["job"]["context_inside"] == bool(inside)
        assert [own["sent"] for own in told["measured"]["ranks"]] == [own["sent"] for own in told["predicted"]["ranks"]]
        assert 0 < told["measured"]["relative_error"] < 1e-5


@pytest.mark.parametrize("spread", [("pass-q",), ("zigzag",), ("ulysses", "--batch", "2"), ("all-gather",)])
def test_a_prefill_that_follows_on_cached_tokens(run, spread: tuple[str, ...]) -> None:
    asked = ("--pass", "prefill", "--seq", "30", "--cached", "96")
    found = document(run(*SMALL, "--strategy", *spread, "--ranks", "2", *asked, "--json"))
    measured = found["measured"]
    assert [own["sent"] for own in measured["ranks"]] == [own["sent"] for own in found["predicted"]["ranks"]]
    assert (found["job"]["cached"], measured["checked_tokens"], measured["checked_cached_tokens"]) == (96, 30, 96)
    assert 0 < measured["relative_error"] < 1e-5
    told = " ".join(run(*SMALL, "--strategy", *spread, "--ranks", "2", *asked).stdout.split())
    assert "of 30 tokens after 96 tokens in the cache" in told
    assert "all 30 tokens after 96 cached ones against one process" in told


def test_gradients_of_half_precision_are_half_the_bytes(run) -> None:
    trained = (*RING, "--pass", "train", "--dtype", "bf16", "--json")
    half, whole = (document(run(*trained, "--gradient", precision)) for precision in ("model", "fp32"))
    for found in (half, whole):
        assert [own["sent"] for own in found["measured"]["ranks"]] == [
            own["sent"] for own in found["predicted"]["ranks"]
        ]
    # Keys and values of 32 tokens, 2 heads of 8, in bf16: once forward, once backward. Their gradients go round twice.
    keys, elements = 2 * 2 * 2 * 32 * 16, 2 * 2 * 32 * 16
    assert half["measured"]["ranks"][0]["sent"]["context"]["bytes"] == keys + 2 * elements
    assert whole["measured"]["ranks"][0]["sent"]["context"]["bytes"] == keys + 4 * elements
    assert half["job"]["gradient"] == "model"


WRONG = """
from costmodel.strategies.ring import Ring

class Forgetful(Ring):
    name = "forgetful"

    def apply(self, ops, axes, carry):
        return ops.scale(super().apply(ops, axes, carry), 1.01)
"""


def test_a_wrong_result_is_an_error(run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(WRONG)
    result = run(*SMALL, "--strategy", f"{tmp_path / 'mine.py'}:Forgetful", "--ranks", "2", "--seq", "64")
    assert result.exit_code == 1
    assert "the ranks' result for the first 64 tokens is off by 0.0" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((*RING, "--ranks", "0"), "--ranks: '0' is not valid"),
        ((*RING, "--ranks", "1"), "ring needs at least 2 ranks"),
        ((*RING, "--seq", "63", "--full"), "63 tokens would be padded to 64 at their end, which every token would see"),
        ((*RING, "--strategy", "rin"), "Did you mean 'ring'?"),
        (("run", "--mixer", "fnet", *RING[9:]), "does not know what crosses a cut"),
        ((*RING, "--set", "head=3"), "Did you mean 'heads'?"),
        ((*RING, "--context", "3"), "has 3 ranks and the cluster 2 devices"),
        ((*RING, "--profile", "h10"), "Did you mean 'h100'?"),
        ((*RING, "--kernel", "fast"), "no kernel of attention named 'fast'"),
        ((*RING, "--repetitions", "none"), "--repetitions: 'none' is not valid"),
        ((*RING, "--save", "/nowhere/results.jsonl"), "--save: '/nowhere/results.jsonl' is not valid: there is no"),
        ((*RING, "--context-inside"), "only a grid of context and Ulysses ranks has two placements"),
        ((*RING, "--dtype", "fp8"), "'fp8' is not one of"),
        ((*RING, "--ranks", "10000"), "for each core of this machine; start more with torchrun"),
        ((*RING, "--cached", "64"), "only a prefill adds to a cache"),
        ((*RING, "--cached", "0", "--pass", "prefill"), "--cached: '0' is not valid"),
        ((*RING, "--cached", "63", "--pass", "prefill"), "63 cached tokens do not divide over 2 x 1 ranks"),
        ((*RING, "--cached", "64", "--pass", "prefill", "--full"), "cached tokens do not see new ones"),
        ((*RING, "--cached", "64", "--pass", "prefill", "--documents", "2"), "no decoding, and no cached tokens"),
        ((*STATES, "--cached", "64", "--pass", "prefill"), "mamba2 is modelled from its first token on only"),
        ((*RING, "--gradient", "model"), "only training has gradients"),
        ((*RING, "--gradient", "fp16", "--pass", "train"), "'fp16' is not one of"),
    ],
)
def test_bad_input_is_told_before_anything_starts(run, arguments: tuple[str, ...], told: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert told in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def test_another_number_of_launched_processes(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    result = run(*RING)
    assert (result.exit_code, "give --ranks 3" in result.stderr) == (2, True)


def test_a_slice_is_what_one_process_affords() -> None:
    sizes = {"heads": 1, "head_dim": 8}
    long = Job("attention", "zigzag", "fused", {"context": 4}, 2**20, sizes=sizes)
    assert slice_of(long).length == AFFORDED_TOKENS
    assert slice_of(long.of(96)).length == 96
    # As large a part of what is cached, which both ranks share.
    after = replace(long, mesh={"context": 2}, phase="prefill", cached=3 * 2**19)
    assert (slice_of(after).length, slice_of(after).cached) == (2**11, 3 * 2**10)
    # Halved until the ranks cannot be given less: 8 pieces of 3 x 2^11 tokens would be 8 of 3.
    assert slice_of(long.of(3 * 2**18)).length == 3 * 2**11


def test_tensors_do_not_depend_on_the_ranks() -> None:
    job = Job("attention", "zigzag", "fused", {"context": 2}, 4096, batch=2, sizes={"heads": 1, "head_dim": 4})
    alone = job.alone()
    whole = alone.tokens(alone.on(Rank(0, 1, 1.0)), 0, "fp32")
    for rank in range(2):
        made = job.on(Rank(rank, 2, 1.0))
        assert made.shard(whole).float().equal(job.tokens(made, 0, "fp32"))


def test_packed_documents_and_an_odd_length(run) -> None:
    result = run(*RING, "--seq", "63", "--documents", "1,20,42")
    assert result.exit_code == 0, result.output
    told = " ".join(result.output.split())
    assert "packed with 3 documents of 1 to 42 tokens" in told
    assert "63 tokens padded to 64 (+1.59%)" in told
    assert "all 63 tokens against one process in float64" in told
