"""Relations that hold for every plan, whatever the numbers of the profile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.candidates import factorisations, meshes
from costmodel.data_parallel import Sharing
from costmodel.errors import InputError
from costmodel.estimate import Chosen, estimate
from costmodel.hardware import Quantity, load_profile, parse_cluster
from costmodel.hardware.cluster import Cluster
from costmodel.hardware.profile import Collectives, placed
from costmodel.huggingface import read_config
from costmodel.mixer import mixers
from costmodel.ops.primitive import Reading
from costmodel.plan import Plan, Ranking, rank, speedup
from costmodel.report import words
from costmodel.step import MEMORY
from costmodel.strategy import strategies
from costmodel.subject import from_mixer, from_model
from costmodel.workload import Phase, Workload

LLAMA = Path(__file__).resolve().parents[1] / "examples" / "llama-3-8b.json"


def ranked(phase: str, devices: int = 8, length: int = 2**17, profile: str = "h100") -> Ranking:
    workload = Workload(length, phase=phase)  # type: ignore[arg-type]
    return rank(from_model(read_config(LLAMA)), workload, Cluster(load_profile(profile), devices))


@pytest.mark.parametrize("phase", ["forward", "train", "prefill", "decode"])
def test_order_of_a_ranking(phase: str) -> None:
    ranking = ranked(phase)
    seconds = ranking.column("seconds")[ranking.order]
    assert len(ranking.order) > 0
    assert np.all(np.diff(seconds) >= -1e-7 * seconds[1:])  # of equals, the one with less memory
    assert np.all(ranking.bytes[ranking.order] <= ranking.capacity)
    assert len(ranking.order) + len(ranking.too_large) == len(ranking.places)


@pytest.mark.parametrize("phase", ["forward", "train", "prefill", "decode"])
def test_no_plan_beats_its_resources(phase: str) -> None:
    """The step lasts at least as long as computing, and as communicating; the range contains the value."""
    ranking = ranked(phase)
    total, compute, communication = (ranking.column(name) for name in ("seconds", "compute", "communication"))
    assert np.all(total >= np.maximum(compute, communication) * (1 - 1e-12))
    assert np.all(total <= (compute + communication) * (1 + 1e-12))
    for plan in ranking.best(3):
        assert plan.fastest <= plan.seconds <= plan.slowest
        busy = sum(plan.breakdown.values())
        assert busy == pytest.approx(plan.compute + plan.communication)


def layer(devices: int, length: int, kernel: str, profile: str = "rtx4090") -> Plan:
    workload = Workload(length, phase="forward")
    found = rank(from_mixer("attention"), workload, Cluster(load_profile(profile), devices), kernels=(kernel,))
    return found.best(1)[0]


def test_what_both_plans_are_uncertain_of_cancels() -> None:
    one, four = layer(1, 4096, "vanilla"), layer(4, 4096, "fused")
    ratio, low, high = speedup(four, one)
    assert ratio == pytest.approx(one.seconds / four.seconds)
    assert low < ratio < high
    assert speedup(one, one) == (1.0, 1.0, 1.0)
    # Independent errors of both would make it wider.
    apart = np.hypot(np.log(one.slowest / one.seconds), np.log(four.seconds / four.fastest))
    assert np.log(high / ratio) < apart
    with pytest.raises(InputError, match="different hardware"):
        speedup(four, layer(1, 4096, "fused", "h100"))


def test_sizes_beyond_those_measured_are_told() -> None:
    # 4 x 32 heads x 128 x (pairs in tiles of 64) FLOP; the longest that was measured: 4 x 4 x 32 x 32768^2 x 128.
    measured = load_profile("rtx4090").device.kernels.attention.measured
    assert measured is not None and measured.flop is not None
    assert measured.flop[1] == pytest.approx(4 * 4 * 32 * 32768**2 * 128, rel=1e-3)
    length = 2**19
    tiles = length // 64
    executed = 4 * 32 * 128 * 64 * 64 * tiles * (tiles + 1) // 2
    found = layer(1, length, "fused").extrapolated
    assert found["attention"] == pytest.approx(executed / measured.flop[1], rel=1e-3)
    assert "attention" not in layer(1, 2**14, "fused").extrapolated
    assert "attention" not in layer(1, length, "fused", "h200").extrapolated  # not fitted: nothing was measured


def scaled_part(cluster: Cluster, factor: float, part: str) -> Cluster:
    """The cluster with one of its rates multiplied."""

    def scaled(quantity: object) -> object:
        ends = {name: getattr(quantity, name) for name in ("value", "low", "high")}
        return msgspec.structs.replace(quantity, **{k: v and v * factor for k, v in ends.items()})

    profile = cluster.profile
    if part == "links":
        links = tuple(
            msgspec.structs.replace(
                link,
                bytes_per_s=scaled(link.bytes_per_s),
                collectives=Collectives(**{name: scaled(q) for name, q in link.collectives.items()}),
            )
            for link in profile.links
        )
        return replace(cluster, profile=msgspec.structs.replace(profile, links=links))
    device = msgspec.structs.replace(profile.device, **{part: scaled(getattr(profile.device, part))})
    return replace(cluster, profile=msgspec.structs.replace(profile, device=device))


@pytest.mark.parametrize("part", ["links", "memory_bytes_per_s", "vector_flop_per_s", "special_op_per_s"])
@pytest.mark.parametrize("phase", ["train", "decode"])
def test_a_slower_part_never_makes_a_plan_faster(part: str, phase: str) -> None:
    subject, cluster = from_model(read_config(LLAMA)), parse_cluster("8xh100")
    workload = Workload(2**17, phase=phase)  # type: ignore[arg-type]
    slower = scaled_part(cluster, 0.01, part)
    before, after = (rank(subject, workload, c).column("seconds") for c in (cluster, slower))
    assert np.all(after >= before * (1 - 1e-12))
    assert np.any(after > before)


@pytest.mark.parametrize("mixer", mixers.names())
def test_one_device_sends_nothing(mixer: str) -> None:
    causal = mixers.get(mixer).causality != "full"
    workload = Workload(2**15, phase="train", causal=causal)
    ranking = rank(from_mixer(mixer), workload, parse_cluster("1xh100"))
    assert {str(group.arrangement.strategies[0].name) for group in ranking.groups} == {"whole"}
    assert np.all(ranking.column("communication") == 0)
    assert ranking.plan(0).wire == {}


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["train", "prefill", "decode"]), st.sampled_from([1, 2, 8]), st.integers(10, 20))
def test_longer_sequences_cost_more(phase: str, devices: int, exponent: int) -> None:
    short, long = (ranked(phase, devices, 2**e) for e in (exponent, exponent + 1))
    if len(short.places) == len(long.places):
        assert np.all(long.column("seconds") >= short.column("seconds"))
        assert np.all(long.bytes >= short.bytes)


@pytest.mark.parametrize("phase", ["train", "prefill"])
def test_longest_sequence_fits_and_a_longer_one_does_not(phase: str) -> None:
    ranking = ranked(phase)
    for group in ranking.groups:
        longest = group.longest(ranking.capacity)
        sizes = group.choices.mesh.sizes
        piece = 2 * sizes["context"] * sizes["ulysses"] * sizes["tensor"]
        used, more = (sum(group.bytes(length).values()) for length in (longest, longest + piece))
        assert np.all((used <= ranking.capacity) | (longest == 0))
        assert np.all(more > ranking.capacity)


@pytest.mark.parametrize(("strategy", "worst"), [("ring", 1.9), ("zigzag", 1.01), ("all-gather", 1.01)])
def test_the_last_rank_works_most(strategy: str, worst: float) -> None:
    """Plans are timed at the last rank. A contiguous causal ring has it do nearly twice the average."""
    one = estimate(
        from_mixer("attention"), Workload(2**20), parse_cluster("8xh100"), Chosen((strategy,), {"context": 8})
    )
    (piece,) = (formulas.piece for formulas in one.groups[0].layers)
    flops = piece.program.flops(Reading.USEFUL)["contraction"]
    at = {"B": 1, "L": 2**20, "P_d": 1, "P_t": 1, "P_u": 1, "P_c": 8}
    work = [flops.evaluate(at | {"rank_c": rank}) for rank in range(8)]
    assert max(work) == work[-1]
    projections = 8 * 2**17 * 4096**2
    mixing = [float(w - projections) for w in work]
    assert max(mixing) / np.mean(mixing) == pytest.approx(worst, abs=0.03) or max(mixing) / np.mean(mixing) < worst


@pytest.mark.parametrize("strategy", ["double-ring", "tile"])
@pytest.mark.parametrize("documents", [(2**15, 2**14, 2**14), (2**12, 2**16 - 2**12), (2**11,) * 32])
def test_the_busiest_of_a_grid_of_ranks_is_found(strategy: str, documents: tuple[int, ...]) -> None:
    """Among packed documents it may be any, along both axes; every pair is some rank's."""
    mesh, length = {"context": 4, "ulysses": 2}, 2**16
    chosen, workload = Chosen((strategy,), mesh), Workload(length, documents=documents)
    group = estimate(from_mixer("attention"), workload, parse_cluster("8xh100"), chosen).groups[0]
    (piece,) = (formulas.piece for formulas in group.layers)
    flops = piece.program.flops(Reading.USEFUL)["contraction"]
    at = {"B": 1, "L": length, "P_d": 1, "P_t": 1, "P_c": 4, "P_u": 2}
    work = {(c, u): flops.evaluate(at | {"rank_c": c, "rank_u": u}) for c in range(4) for u in range(2)}
    symbols = group.layers[0].times.symbols
    known = group.evaluator.values(group.choices.base, symbols) | {"L": float(length)}
    seconds = [group._computing(known | {"rank_c": float(c), "rank_u": float(u)})[0] for c, u in work]
    places, imbalance = group.busiest
    assert group._computing(known | places)[0] == max(seconds)
    assert imbalance == pytest.approx(max(seconds) / np.mean(seconds))
    pairs = sum(n * (n + 1) // 2 for n in documents)
    assert sum(work.values()) == 4 * pairs * 4096 + 8 * length * 4096**2


def test_attention_on_one_gpu_by_hand() -> None:
    """Forward, causal, L = 32,768, 32 heads of 128, tiles of 128, on an H100 with launches for nothing.

    Pairs: 256 tiles a side, 256 * 257 / 2 of them executed, 128^2 pairs each. Products 4 d a pair and head. Beside
    them, scale, subtraction, maximum and sum of each pair, and its exponential; d divisions, one logarithm and one
    addition a query. A query takes as long as if it had some keys more. A part of the others is not hidden by the
    products, and tiles are uneven under the mask.
    """
    length, heads, d = 32768, 32, 128
    single = estimate(from_mixer("attention"), Workload(length), parse_cluster("1xh100"), Chosen(("whole",), {}))
    device = single.cluster.profile.device
    assert device.kernels.attention.tile == 128
    kernel, pairs, queries = device.kernels.attention, heads * (256 * 257 / 2) * 128**2, heads * length
    assert kernel.exposed is not None and kernel.uneven is not None and kernel.ramp is not None
    products = 4 * d * (pairs + kernel.ramp.value * queries) / (device.peak("bf16").value * kernel.compute.value)
    plain = (4 * pairs + (d + 1) * queries) / (
        device.vector_flop_per_s.value * device.kernels.elementwise.compute.value
    )
    special = (pairs + queries) / device.special_op_per_s.value
    seconds = (products + kernel.exposed.value * (plain + special)) * (1 + kernel.uneven.value) + device.launch_s.value
    assert single.plan(0).breakdown["attention"] == pytest.approx(seconds, rel=1e-9)


@given(st.integers(1, 200))
@settings(deadline=None)
def test_every_mesh_once(devices: int) -> None:
    every = factorisations(devices, 4)
    assert np.all(np.prod(every, axis=1) == devices)
    assert len({tuple(row) for row in every.tolist()}) == len(every)
    count = sum(
        1
        for a in range(1, devices + 1)
        if devices % a == 0
        for b in range(1, devices // a + 1)
        if devices // a % b == 0
        for c in range(1, devices // a // b + 1)
        if devices // a // b % c == 0
    )
    assert len(meshes(devices)) == count


def test_memory_kinds_add_up() -> None:
    plan = ranked("train").best(1)[0]
    assert list(plan.memory) == list(MEMORY)
    assert plan.bytes == pytest.approx(sum(plan.memory.values()))


def test_strategies_of_every_carry_are_offered() -> None:
    """A mixer gets every strategy that knows its carry, and none that does not."""
    for name in mixers.names():
        mixer = mixers.get(name)
        causal = mixer.causality != "full"
        ranking = rank(from_mixer(name), Workload(2**18, causal=causal), parse_cluster("4xh100"))
        offered = {s.name for group in ranking.groups for s in group.arrangement.strategies}
        known = {s for s in strategies.names() if issubclass(mixer.carry_for(causal), strategies.get(s).carries)}
        assert offered
        assert offered <= known


@pytest.mark.parametrize("phase", ["forward", "train"])
def test_ranks_of_a_nonlinear_recurrence_wait(phase: str) -> None:
    """8 ranks recur one after the other, forward and then backward, each for as long as it is busy with it itself."""
    workload = Workload(2**17, phase=phase)  # type: ignore[arg-type]
    (plan,) = rank(from_mixer("lstm"), workload, parse_cluster("8xh100")).best(1)
    assert plan.seconds == pytest.approx(8 * plan.breakdown["recurrence"], rel=0.01)


@pytest.mark.parametrize("sharing", [Sharing.NOTHING, Sharing.OPTIMIZER])
def test_weights_cut_like_the_sequence_have_no_copies_on_its_ranks(sharing: Sharing) -> None:
    """MLP-Mixer's 2 L D_S weights are cut over 8 context ranks: nothing to exchange, and all optimizer state is own."""
    workload, cluster = Workload(2**20, phase="train", causal=False), parse_cluster("8xh100")
    chosen = Chosen(("all-reduce",), {"context": 8}, sharing=sharing)
    (plan,) = estimate(from_mixer("mlp-mixer", hidden=384), workload, cluster, chosen).best(1)
    weights = 2 * 2**20 * 384 / 8
    assert plan.memory["optimizer"] == 12 * weights
    assert plan.memory["gradients"] == 2 * weights
    assert plan.wire.keys() == {"context"}


def test_the_inner_axis_of_a_grid_has_the_faster_link() -> None:
    # 2 nodes of 8: 8 context ranks fill a node if they are inside, and have 4 of their members in it if not.
    subject, cluster = from_mixer("attention", heads=16, kv_heads=16), parse_cluster("16xh100")
    chosen = Chosen(("ulysses-zigzag",), {"context": 8, "ulysses": 2})
    outside, inside = (
        estimate(subject, Workload(2**17), cluster, replace(chosen, context_inside=context_inside)).plan(0)
        for context_inside in (False, True)
    )
    assert inside.breakdown["context ring_shift"] < outside.breakdown["context ring_shift"] / 2
    assert inside.breakdown["ulysses all_to_all"] > outside.breakdown["ulysses all_to_all"] * 2
    assert words.mesh(outside) == "context 8 x ulysses 2"
    assert words.mesh(inside) == "ulysses 2 x context 8"


def test_all_logits_at_once() -> None:
    # When the loss's gradient is cast back: probabilities and their gradient at 4 bytes, and the cast at 2.
    def working(tokens: int, whole: bool) -> float:
        workload = Workload(tokens, phase="train", whole_logits=whole)
        chosen = Chosen(("whole",), {}, recompute=True)
        ranking = estimate(from_model(read_config(LLAMA)), workload, Cluster(load_profile("h100"), 1), chosen)
        return float(ranking.column("working")[0])

    vocabulary, tokens = 128256, 8192
    more = working(2 * tokens, whole=True) - working(tokens, whole=True)
    assert 10 * vocabulary * tokens <= more < 10.3 * vocabulary * tokens
    assert working(tokens, whole=True) > 8 * working(tokens, whole=False)
    with pytest.raises(InputError, match="only training takes a loss"):
        Workload(tokens, whole_logits=True)


@pytest.mark.parametrize(("phase", "waits"), [("forward", True), ("train", True), ("decode", False)])
def test_a_step_takes_its_hosts_launches_unless_they_are_replayed(phase: Phase, waits: bool) -> None:
    plain = load_profile("h100")
    slow = placed(plain, {"device.host_launch_s": Quantity(1e-2, "for the test", "assumed")})
    device, host = (
        estimate(from_mixer("attention"), Workload(256, 1, phase), Cluster(profile, 1), Chosen(("whole",), {})).plan(0)
        for profile in (plain, slow)
    )
    if not waits:
        assert host.seconds == device.seconds
        assert "host" not in host.breakdown
        return
    launches = host.breakdown.pop("host") / 1e-2
    assert launches == pytest.approx(round(launches)) and 5 < launches < 100
    assert host.seconds == pytest.approx(launches * 1e-2)
    assert host.breakdown == device.breakdown
    assert words.busy("host") == "the host, which launches kernels"


@pytest.mark.parametrize(("phase", "length"), [("train", 2**16), ("prefill", 2**16), ("forward", 2**18)])
def test_a_ranking_beside_another_is_as_it_is_alone(phase: Phase, length: int) -> None:
    subject, cluster = from_mixer("attention"), parse_cluster("4xh100")
    first = rank(subject, Workload(2**16), cluster)
    alone, beside = (rank(subject, Workload(length, phase=phase), cluster, beside=other) for other in (None, first))
    assert beside.places.tolist() == alone.places.tolist()
    for name in ("seconds", "communication", *MEMORY):
        assert beside.column(name).tolist() == alone.column(name).tolist()
