"""Profiles that take from others what they do not say."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from costmodel.errors import InputError
from costmodel.hardware import Quantity, load_profile, parse_cluster, profiles
from costmodel.hardware.like import FURTHER
from costmodel.hardware.profile import Profile, _built_in, look_up
from costmodel.hardware.provenance import numbers

#: Writes a file of this content, and perhaps of this name, and says where it is.
Written = Callable[..., Path]

NUMBER = '{{ value = {}, source = "a datasheet", kind = "datasheet" }}'

#: Twice an A100 in every way that a datasheet tells.
OWN = {
    "device.memory_bytes": 171.8e9,
    "device.memory_bytes_per_s": 4.0e12,
    "device.peak_flop_per_s.bf16_dense": 624e12,
    "device.vector_flop_per_s": 39e12,
    "device.special_op_per_s": 4.88e12,
    "device.kernels.attention.fill": 216.0,
    "device.kernels.attention_backward.fill": 216.0,
}
LINK = """
[[links]]
name = "NVLink 9"
like = { profile = "a100", link = "NVLink", generation = "another" }
peak_bytes_per_s = { value = 600e9, source = "a datasheet", kind = "datasheet" }
"""
HEAD = 'schema = 1\nname = "mine"\ntitle = "Twice an A100"\ncalibrated = false\n'
LIKE = 'like = { profile = "a100", die = "another" }\n'


def text(own: dict[str, float] = OWN, like: str = LIKE, links: str = LINK) -> str:
    lines = [f"{key} = {NUMBER.format(value)}" for key, value in own.items()]
    return "\n".join([HEAD + like + 'device.name = "Double"', *lines, links])


@pytest.fixture
def written(tmp_path: Path) -> Written:
    def write(content: str, name: str = "mine.toml") -> Path:
        (tmp_path / name).write_text(content)
        return tmp_path / name

    return write


def number(profile: Profile, key: str) -> Quantity:
    found = look_up(profile, key)
    assert isinstance(found, Quantity), key
    return found


def test_shares_and_times_are_taken_and_say_from_where(written: Written) -> None:
    mine, a100 = load_profile(written(text())), load_profile("a100")
    for key in ("device.kernels.gemm.compute", "device.launch_s", "device.kernels.attention.ramp", "host.bytes_per_s"):
        taken, held = number(mine, key), number(a100, key)
        assert (taken.value, taken.lo, taken.hi) == (held.value, held.lo, held.hi), key
        assert taken.source == f"as a100: {held.source}"
        assert taken.kind == ("assumed" if held.kind == "assumed" else "derived"), key
    assert mine.device.kernels.attention.tile == a100.device.kernels.attention.tile == 128
    assert number(mine, "device.peak_flop_per_s.bf16_dense").value == 624e12
    assert "fp16_dense" not in mine.device.peak_flop_per_s


def test_a_family_is_widened_by_what_devices_differ(written: Written) -> None:
    # Logarithms of independent factors add in squares: a100 says 0.9025 to 1.108 for attention.
    mine = load_profile(written(text()))
    spread = number(mine, "device.kernels.attention.spread")
    further = math.log(FURTHER["another die"])
    assert math.log(spread.hi) == pytest.approx(math.sqrt(math.log(1.108) ** 2 + further**2))
    assert math.log(spread.lo) == pytest.approx(-math.sqrt(math.log(0.9025) ** 2 + further**2))
    assert number(mine, "device.kernels.gather.spread").hi == pytest.approx(FURTHER["another die"])
    assert number(mine, "device.single.Merge.spread").hi == pytest.approx(FURTHER["another die"])
    same = load_profile(written(text(like=LIKE.replace("another", "same"))))
    assert number(same, "device.kernels.gather.spread").hi == pytest.approx(FURTHER["same die"])


def test_rates_of_a_link_are_in_proportion_to_its_line_rate(written: Written) -> None:
    link, held = load_profile(written(text())).links[0], load_profile("a100").links[0]
    assert link.name == "NVLink 9"
    assert link.devices == 8
    assert link.bytes_per_s.value == pytest.approx(2 * 204e9)
    assert link.bytes_per_s.hi == pytest.approx(2 * 228e9)
    assert link.bandwidth("all_reduce").value == pytest.approx(2 * 230.2e9)
    assert link.bytes_per_s.source.startswith("the same share of the line rate (x 2), as a100: aiconfigurator")
    assert link.latency_s.value == held.latency_s.value
    assert link.spread is not None
    assert math.log(link.spread.hi) == pytest.approx(
        math.hypot(math.log(1.358), math.log(FURTHER["another generation"]))
    )


def test_what_the_file_says_stands(written: Written) -> None:
    own = OWN | {"device.kernels.gemm.compute": 0.5, "device.launch_s": 9e-6, "host.memory_bytes": 3e12}
    links = LINK + f"collectives.ring_shift = {NUMBER.format(1e11)}\n"
    mine = load_profile(written(text(own, links=links)))
    assert number(mine, "device.kernels.gemm.compute") == Quantity(0.5, "a datasheet", "datasheet")
    assert number(mine, "device.kernels.gemm.memory").value == 0.9388
    assert mine.device.launch_s.value == 9e-6
    assert mine.host.memory_bytes.value == 3e12
    assert mine.links[0].bandwidth("ring_shift").value == 1e11


def test_correlations_are_of_what_is_taken(written: Written) -> None:
    # a100: compute, memory, exposed, launch_s of matrix products; without compute three are left.
    held = load_profile("a100").correlations[0]
    assert load_profile(written(text())).correlations[0] == held
    fewer = load_profile(written(text(OWN | {"device.kernels.gemm.compute": 0.5}))).correlations[0]
    assert fewer.of == held.of[1:]
    assert fewer.matrix == tuple(row[1:] for row in held.matrix[1:])


def test_correlations_of_a_link_follow_it(written: Written) -> None:
    first = LINK.replace('"NVLink 9"', '"Bridge"') + "devices = 2\n"
    mine = load_profile(written(text(links=first + LINK)))
    of = [correlation.of for correlation in mine.correlations if correlation.of[0].startswith("links")]
    assert [keys[0] for keys in of] == ["links[0].latency_s", "links[1].latency_s"]
    assert len(of[0]) == len(of[1]) == 9


def test_a_link_may_be_like_one_of_another_profile(written: Written) -> None:
    links = LINK.replace('"a100", link = "NVLink"', '"l40s", link = "PCIe 4.0 x16"').replace("600e9", "62e9")
    mine = load_profile(written(text(links=links)))
    assert mine.links[0].bytes_per_s.value == pytest.approx(2 * 20.7e9)
    assert mine.links[0].bytes_per_s.source.startswith("the same share of the line rate (x 2), as l40s: ")


@pytest.mark.parametrize("key", OWN)
def test_what_does_not_carry_over_is_asked_for(written: Written, key: str) -> None:
    own = {other: value for other, value in OWN.items() if other != key}
    path = key.replace(".bf16_dense", "")
    with pytest.raises(InputError, match=rf"mine\.toml: {path}: no value.* does not carry over from a100 and must be"):
        load_profile(written(text(own)))


def test_all_that_is_missing_is_named(written: Written) -> None:
    with pytest.raises(InputError) as caught:
        load_profile(written(HEAD + LIKE))
    for key in (*OWN, "links"):
        assert key.replace(".bf16_dense", "") in str(caught.value)


def test_a_cache_is_asked_for_where_the_other_device_has_one(written: Written) -> None:
    with pytest.raises(InputError, match=r"device\.cache_bytes: no value.*so must device\.cache_bytes_per_s$"):
        load_profile(written(text(like=LIKE.replace("a100", "rtx4090"))))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (LIKE, LIKE.replace("a100", "a10O"), "like.profile: 'a10O' is not valid: known: a10, a100"),
        (
            LIKE,
            LIKE.replace("another", "other"),
            "like.die: 'other' is not valid: must be one of same, binned, another",
        ),
        (LIKE, 'like = "a100"\n', "like: 'a100' is not valid: must be a table"),
        (LIKE, 'like = { profile = "a100" }\n', "like.die: no value is not valid: this key is required"),
        (LIKE, LIKE.replace("die", "dye"), "did you mean 'die'?"),
        ('"a100", link', '"a10O", link', "links[0].like.profile: 'a10O' is not valid: known: a10, a100"),
        ('link = "NVLink"', 'lnk = "NVLink"', "links[0].like.lnk"),
        ("value = 600e9", "value = 600", "links[0].peak_bytes_per_s.value: 600 is not valid: must be 1e+06 to 1e+14"),
        ("value = 600e9", 'value = "600"', "links[0].peak_bytes_per_s.value: what is there is not valid"),
        ("value = 600e9", "value = -1", "the link's rates are in proportion to it"),
        ("value = 4000000000000.0", "value = 4000", "device.memory_bytes_per_s.value: 4000 is not valid: must be"),
        ("value = 216.0", "value = 0", "device.kernels.attention.fill.value: 0 is not valid"),
        ('device.name = "Double"', "", "device.name: no value is not valid: this key is required"),
    ],
)
def test_message(written: Written, old: str, new: str, message: str) -> None:
    assert old in text()
    with pytest.raises(InputError) as caught:
        load_profile(written(text().replace(old, new, 1)))
    assert "mine.toml" in str(caught.value)
    assert message in str(caught.value)


def test_unknown_link_lists_those_that_there_are(written: Written) -> None:
    with pytest.raises(
        InputError, match=r"links\[0\]\.like\.link: 'NVlink' .* of a100: NVLink, InfiniBand; did you mean 'N"
    ):
        load_profile(written(text(links=LINK.replace('link = "NVLink"', 'link = "NVlink"'))))


def test_a_users_file_from_a_users_file(written: Written) -> None:
    written(text(), "first.toml")
    second = text(like=LIKE.replace("a100", "./first.toml")).replace('"mine"', '"second"')
    found = load_profile(written(second, "second.toml"))
    assert found.device.kernels.gemm.memory.source.startswith("as mine: as a100: fit to 33")
    assert parse_cluster(f"8x{written(second, 'second.toml')}").devices == 8


@pytest.mark.parametrize("names", [["one"], ["one", "two"], ["one", "two", "three"]])
def test_a_circle_is_found(written: Written, names: list[str]) -> None:
    paths = [
        written(text(like=LIKE.replace("a100", f"./{following}.toml")), f"{name}.toml")
        for name, following in zip(names, [*names[1:], names[0]], strict=True)
    ]
    with pytest.raises(InputError, match=r"like\.profile: '\./one\.toml' is not valid: leads back to itself"):
        load_profile(paths[0])


def test_only_a_profile_and_its_parents_are_read() -> None:
    _built_in.cache_clear()
    load_profile("a800")
    assert _built_in.cache_info().currsize == 2  # a800 and a100


# Those that ship ------------------------------------------------------------------------------------------------------


SHIPPED = [profile for profile in map(load_profile, profiles()) if profile.like]


@pytest.mark.parametrize("profile", SHIPPED, ids=[profile.name for profile in SHIPPED])
def test_a_profile_like_another_is_less_certain(profile: Profile) -> None:
    assert profile.like
    assert not profile.calibrated
    parent = load_profile(profile.like.profile)
    for family, kernel in profile.device.kernels.items():
        held = parent.device.kernels[family].spread
        assert kernel.spread
        assert kernel.spread.hi >= FURTHER[f"{profile.like.die} die"] * (1 - 1e-9), family
        assert kernel.spread.hi > (held.hi if held else 1), family


@pytest.mark.parametrize("profile", SHIPPED, ids=[profile.name for profile in SHIPPED])
def test_every_number_of_the_device_is_its_own_or_says_whose(profile: Profile) -> None:
    assert profile.like
    parent = load_profile(profile.like.profile)
    held = dict(numbers(parent))
    for key, quantity in numbers(profile):
        taken = f"as {profile.like.profile}" in quantity.source
        if key.startswith("device") and not taken:
            assert "http" in quantity.source or quantity.kind != "datasheet", key
        elif key.startswith("device") and not key.endswith("spread"):
            assert quantity.value == held[key].value, key


# TFLOP/s in bf16 or, on V100, fp16; GB/s of memory; GB/s one way of the innermost link: datasheets, by hand.
SAID = {
    "a800": (312, 2000, 200),
    "a100_40gb": (312, 1555, 300),
    "a100_pcie": (312, 1935, 31),
    "h800": (989, 3350, 200),
    "h20": (148, 4000, 450),
    "h100_pcie": (756, 2000, 64),
    "l40": (181.05, 864, 31),
    "l4": (121, 300, 31),
    "rtx6000_ada": (360, 960, 31),
    "rtx_a6000": (154.8, 768, 31),
    "a10": (125, 600, 31),
    "a10g": (70, 600, 31),
    "mi300x": (1300, 5300, 448),
    "rtx3090": (71, 936, 31),
    "rtx5090": (209.6, 1792, 63),
    "v100": (125, 900, 150),
    "v100_16gb": (125, 900, 150),
}


@pytest.mark.parametrize("name", SAID)
def test_datasheets(name: str) -> None:
    profile = load_profile(name)
    found = (
        profile.device.peak("fp16").value / 1e12,
        profile.device.memory_bytes_per_s.value / 1e9,
        profile.links[0].peak_bytes_per_s.value / 1e9,
    )
    assert found == pytest.approx(SAID[name])


def test_all_that_ship_are_held_to_a_datasheet() -> None:
    assert {profile.name for profile in SHIPPED} == set(SAID)
