"""Clusters: names, levels and bandwidths derived by hand from round numbers."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.errors import InputError, UnknownNameError
from costmodel.hardware import Cluster, Link, Profile, Quantity, load_profile, parse_cluster
from costmodel.hardware.profile import Collectives

RINGS = ("all_gather", "reduce_scatter", "all_reduce")
EVERY = ("all_to_all", "ring_shift", *RINGS)


def exactly(number: float) -> Quantity:
    return Quantity(number, "chosen for the test", "assumed", low=number / 2, high=number)


def link(latency: float, rate: float, devices: int = 0, **more: Quantity | Collectives) -> Link:
    return Link(
        name="test",
        devices=devices,
        latency_s=exactly(latency),
        bytes_per_s=exactly(rate),
        peak_bytes_per_s=exactly(1e12),
        **more,  # type: ignore[arg-type]
    )


def machine(*links: Link) -> Profile:
    return msgspec.structs.replace(load_profile("h100"), name="test", links=links, correlations=())


# Nodes of 4 devices at 100 GB/s, 1 us; between nodes 10 GB/s a device, 20 us.
TWO_LEVELS = machine(link(1e-6, 100e9, 4), link(20e-6, 10e9))
# The same with one way out of a node for its 4 devices: 12 GB/s.
ONE_CARD = machine(link(1e-6, 100e9, 4), link(20e-6, 10e9, uplink_bytes_per_s=exactly(12e9)))
# Nodes of 4, racks of 16, 1 GB/s between racks.
THREE_LEVELS = machine(link(1e-6, 100e9, 4), link(5e-6, 10e9, 16), link(20e-6, 1e9))


@pytest.mark.parametrize(
    ("text", "name", "devices"),
    [
        ("h100", "h100", 1),
        ("8xh100", "h100", 8),
        ("4xrtx4090", "rtx4090", 4),
        ("rtx4090", "rtx4090", 1),
        ("4096xh100", "h100", 4096),
        (" 4 x rtx4090 ", "rtx4090", 4),
        ("16Xa100", "a100", 16),
        ("16×a100", "a100", 16),
        ("008xh200", "h200", 8),
    ],
)
def test_parse(text: str, name: str, devices: int) -> None:
    cluster = parse_cluster(text)
    assert (cluster.profile.name, cluster.devices) == (name, devices)
    assert parse_cluster(str(cluster)) == cluster


def test_parse_a_users_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "4xmine.toml").write_bytes(Path(parse_file("h100")).read_bytes())
    assert parse_cluster("8x./4xmine.toml").devices == 8
    assert parse_cluster("./4xmine.toml").devices == 1
    assert parse_cluster(str(tmp_path / "4xmine.toml")).devices == 1


def parse_file(name: str) -> str:
    import costmodel.hardware

    return f"{Path(costmodel.hardware.__file__).parent}/profiles/{name}.toml"


@pytest.mark.parametrize(
    "text",
    ["0xh100", "-1xh100", "+2xh100", "7.5xh100", "1e30xh100", "1_000xh100", "0x8xh100", "٣xh100", ".xh100"],
)
def test_count_must_be_whole(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_cluster(text)
    assert text in str(caught.value) or "Known:" in str(caught.value)
    if text != "٣xh100":
        assert "must be a whole number, at least 1; write for example 8x" in str(caught.value)


@pytest.mark.parametrize("text", ["10000001xh100", "999999999999xh100"])
def test_count_has_a_limit(text: str) -> None:
    with pytest.raises(InputError, match="must be at most 10,000,000"):
        parse_cluster(text)


@pytest.mark.parametrize("text", ["8xh10O", "h10O", "xh100", "8 h100"])
def test_nearest_profile(text: str) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'h100'"):
        parse_cluster(text)


@given(st.text(max_size=12) | st.from_regex(r"[-+.0-9e]{0,6}[xX ]{0,2}(h100|rtx4090|)", fullmatch=True))
def test_any_text(text: str) -> None:
    try:
        cluster = parse_cluster(text)
    except InputError as error:
        assert str(error)
    else:
        assert cluster.devices >= 1


@pytest.mark.parametrize("devices", [0, -1, 10_000_001])
def test_cluster_refuses_counts(devices: int) -> None:
    with pytest.raises(InputError, match=r"devices: .* must be 1 to 10,000,000 for h100"):
        Cluster(load_profile("h100"), devices)


def test_cluster_refuses_more_than_its_links_join() -> None:
    with pytest.raises(InputError, match="must be 1 to 8 for test"):
        Cluster(machine(link(1e-6, 1e9, 4), link(1e-6, 1e9, 8)), 9)
    with pytest.raises(InputError, match="must be 1 to 1 for test"):
        Cluster(machine(), 2)


def test_nodes() -> None:
    assert [(Cluster(TWO_LEVELS, n).nodes, Cluster(TWO_LEVELS, n).devices_per_node) for n in (1, 3, 4, 5, 16)] == [
        (1, 1),
        (1, 3),
        (1, 4),
        (2, 4),
        (4, 4),
    ]


@pytest.mark.parametrize(
    ("size", "stride", "level"),
    [
        (1, 1, 0),
        (2, 1, 0),
        (4, 1, 0),
        (2, 2, 0),  # 0 and 2; 1 and 3
        (8, 1, 1),  # two nodes of one rack
        (2, 4, 1),  # 0 and 4
        (2, 8, 1),  # 0 and 8
        (16, 1, 1),
        (4, 4, 1),
        (32, 1, 2),
        (2, 16, 2),  # 0 and 16
        (3, 1, 2),  # blocks of three: 3, 4, 5 leave the node, 15, 16, 17 the rack
        (6, 1, 2),
    ],
)
def test_level(size: int, stride: int, level: int) -> None:
    assert Cluster(THREE_LEVELS, 96).level_of(size, stride) == level


def test_level_when_everything_is_in_one_unit() -> None:
    assert Cluster(THREE_LEVELS, 3).level_of(3) == 0  # one node, though 3 does not divide 4
    assert Cluster(THREE_LEVELS, 4).level_of(3) == 0
    assert Cluster(THREE_LEVELS, 12).level_of([3, 6, 12], 1).tolist() == [1, 1, 1]  # one rack


@given(
    st.sampled_from([1, 2, 3, 4, 6, 8, 12]),
    st.sampled_from([1, 2, 3, 4, 8, 16]),
    st.integers(1, 6),
)
def test_level_is_that_of_the_ranks_themselves(size: int, stride: int, blocks: int) -> None:
    devices = size * stride * blocks
    level = int(Cluster(THREE_LEVELS, devices).level_of(size, stride))
    ranks = np.arange(devices).reshape(blocks, size, stride)  # groups run along the middle axis
    units = [4, 16, 10**9]
    together = [bool(((ranks // unit) == (ranks // unit)[:, :1]).all()) for unit in units]
    assert level == together.index(True)


def test_inside_a_node() -> None:
    for collective in EVERY:
        latency, value, low, high = Cluster(TWO_LEVELS, 16).link_arrays(collective, [2, 4], [1, 1])
        assert latency.tolist() == [1e-6, 1e-6]
        assert (value.tolist(), low.tolist(), high.tolist()) == ([100e9] * 2, [50e9] * 2, [100e9] * 2)


@pytest.mark.parametrize(
    ("size", "stride", "ring", "all_to_all"),
    [
        # m members in a node of 4. Ring collectives: m x 10 GB/s, at most the node's 100. All-to-all: only
        # (size - m) of (size - 1) parts of what a device sends leave the node, at 10 GB/s.
        (8, 1, 40e9, 10e9 * 7 / 4),  # m = 4
        (16, 1, 40e9, 10e9 * 15 / 12),  # m = 4
        (8, 2, 20e9, 10e9 * 7 / 6),  # m = 2: every second rank
        (4, 4, 10e9, 10e9),  # m = 1: one member in each node
        (2, 8, 10e9, 10e9),
        (3, 1, 10e9, 10e9),  # some groups lie across a node's edge with one member on one side
    ],
)
def test_across_nodes(size: int, stride: int, ring: float, all_to_all: float) -> None:
    cluster = Cluster(TWO_LEVELS, 48)
    for collective in RINGS:
        _, value, low, _ = cluster.link_arrays(collective, size, stride)
        assert (value, low) == (ring, ring / 2)
    assert cluster.link_arrays("ring_shift", size, stride)[1] == 10e9
    assert cluster.link_arrays("all_to_all", size, stride)[1] == pytest.approx(all_to_all)


@pytest.mark.parametrize(
    ("size", "stride", "ring", "shift", "all_to_all"),
    [
        # 12 GB/s leave a node. One group a node: a ring has all of it (4 x 10 is more), a shift the 10 GB/s
        # of the one device that sends. All-to-all: 4 devices send, 3 GB/s each.
        (8, 1, 12e9, 10e9, 3e9 * 7 / 4),
        # Two groups of two members leave each node: half of it each.
        (4, 2, 6e9, 6e9, 3e9 * 3 / 2),
        # Four groups: a quarter each.
        (4, 4, 3e9, 3e9, 3e9),
    ],
)
def test_one_way_out_of_a_node(size: int, stride: int, ring: float, shift: float, all_to_all: float) -> None:
    cluster = Cluster(ONE_CARD, 16)
    for collective in RINGS:
        assert cluster.link_arrays(collective, size, stride)[1] == ring
    assert cluster.link_arrays("ring_shift", size, stride)[1] == shift
    assert cluster.link_arrays("all_to_all", size, stride)[1] == pytest.approx(all_to_all)


def test_the_slowest_level_on_the_way_decides() -> None:
    # A fast outer level: 4 devices x 40 GB/s leave a node, but the ring also runs inside it, at 100 GB/s.
    fast = machine(link(1e-6, 100e9, 4), link(20e-6, 40e9))
    assert Cluster(fast, 8).link_arrays("all_reduce", 8)[1] == 100e9
    # 64 ranks over 4 racks: 100 in a node; 4 x 10 between nodes; 16 x 1 between racks.
    assert Cluster(THREE_LEVELS, 64).link_arrays("all_reduce", 64)[1] == 16e9


def test_a_shared_medium_is_divided_by_the_devices_of_the_node() -> None:
    # 4 cards, 21 GB/s alone, 72 GB/s together: 18 each. Three cards: 24 each would be more than 21.
    for devices, rate in [(4, 18e9), (3, 21e9), (2, 21e9)]:
        cluster = Cluster(load_profile("rtx4090"), devices)
        assert cluster.link_arrays("all_reduce", devices)[1] == rate
    # Two groups of two at the same time share it just as one group of four does.
    assert Cluster(load_profile("rtx4090"), 4).link_arrays("ring_shift", 2)[1] == 18e9


def test_a_collectives_own_bandwidth_goes_first() -> None:
    own = machine(link(1e-6, 100e9, collectives=Collectives(all_reduce=exactly(150e9))))
    assert Cluster(own, 8).link_arrays("all_reduce", 8)[1] == 150e9
    assert Cluster(own, 8).link_arrays("all_gather", 8)[1] == 100e9


def test_published_node_rates() -> None:
    # nccl issue 1603: 4 x RTX 4090 through host memory, 18 GB/s; nccl-tests issue 119: 24 A100 on three nodes
    # with four 24 GB/s cards each, 96 GB/s.
    assert parse_cluster("4xrtx4090").link_arrays("all_to_all", 4)[1] == 18e9
    assert parse_cluster("24xa100").link_arrays("all_reduce", 24)[1] == 96e9


@pytest.mark.parametrize(
    ("size", "stride", "ring", "all_to_all"),
    [
        # A hop in a node of 4 takes 1 us, one between nodes 20 us; m members in a node. Of a ring's hops, 1 in m is
        # between nodes; of the messages of an all-to-all, size - m of size - 1.
        (8, 1, 23e-6 / 4, 83e-6 / 7),
        (8, 2, 21e-6 / 2, 121e-6 / 7),
        (4, 4, 20e-6, 20e-6),
        (4, 1, 1e-6, 1e-6),
    ],
)
def test_steps_within_a_node_are_sooner(size: int, stride: int, ring: float, all_to_all: float) -> None:
    cluster = Cluster(TWO_LEVELS, 48)
    for collective in RINGS:
        assert cluster.latency(collective, size, stride) == pytest.approx(ring)
    assert cluster.latency("all_to_all", size, stride) == pytest.approx(all_to_all)
    assert cluster.latency("ring_shift", size, stride) == (1e-6 if (size, stride) == (4, 1) else 20e-6)


@pytest.mark.parametrize(
    ("profile", "size", "stride", "seconds"),
    [
        (TWO_LEVELS, 4, 1, 2 * 3e-6),  # a chain of 4
        (TWO_LEVELS, 16, 1, 2 * (3e-6 + 2 * 20e-6)),  # 4 nodes are two steps of a binary tree
        (TWO_LEVELS, 6, 4, 2 * 3 * 20e-6),  # 6 nodes, one member each: three steps
        (TWO_LEVELS, 1, 1, 0),
        (THREE_LEVELS, 64, 1, 2 * (3e-6 + 2 * 5e-6 + 2 * 20e-6)),  # 4 in a node, 4 nodes in a rack, 4 racks
    ],
)
def test_a_tree_between_nodes(profile: Profile, size: int, stride: int, seconds: float) -> None:
    assert Cluster(profile, 192).tree_latency(size, stride) == pytest.approx(seconds)


def test_arrays_broadcast() -> None:
    latency, value, low, high = Cluster(TWO_LEVELS, 16).link_arrays("all_gather", [[2], [4]], [1, 2, 4])
    assert latency.shape == value.shape == low.shape == high.shape == (2, 3)
    assert value.tolist() == [[100e9, 100e9, 10e9], [100e9, 20e9, 10e9]]


def test_a_device_alone_needs_no_link() -> None:
    latency, value, *_ = Cluster(machine(), 1).link_arrays("all_reduce", 1)
    assert (latency, value) == (0, np.inf)


def test_unknown_collective() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'all_reduce'"):
        parse_cluster("8xh100").link_arrays("allreduce", 8)


@given(
    st.sampled_from(EVERY),
    st.sampled_from(["rtx4090", "a100", "h100", "h200", "cpu"]),
    st.integers(0, 6),
    st.integers(0, 4),
)
def test_ranges_enclose_the_value_and_keep_below_the_line_rate(
    collective: str, name: str, size: int, stride: int
) -> None:
    cluster = Cluster(load_profile(name), 2**12)
    _, value, low, high = cluster.link_arrays(collective, 2**size, 2**stride)
    ceiling = cluster.profile.links[0].peak_bytes_per_s.value * (2 if collective == "all_reduce" else 1)
    assert 0 < low <= value <= high <= ceiling


def test_clusters_are_values() -> None:
    assert len({parse_cluster("8xh100"), Cluster(load_profile("h100"), 8), parse_cluster("4xh100")}) == 2
