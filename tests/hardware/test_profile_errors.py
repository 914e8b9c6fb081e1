"""Whatever is in a profile, the answer is a profile or an `InputError` that names the key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from costmodel.errors import InputError, UnknownNameError
from costmodel.hardware import load_profile
from costmodel.hardware.profile import read_profile
from costmodel.hardware.quantity import ALLOWED

#: What a fit writes beside numbers: tables of sizes, and correlations.
FITTED = re.compile(r"\[[\w.]+\.measured\]\n(?:\w.*\n)+\n?|\[\[correlations\]\]\n(?:.+\n)+\n?")
H200 = FITTED.sub("", (resources.files("costmodel.hardware") / "profiles" / "h200.toml").read_text())
OPTIONAL = {"low", "high", "tile", "devices"}
NUMBERS = {"value", "low", "high"}


def numbered_keys(text: str) -> Iterator[tuple[int, str, str]]:
    """Line number, path of the table and key of each single-line ``key = value``."""
    table, link = "", -1
    for number, line in enumerate(text.splitlines()):
        if line == "[[links]]":
            link += 1
            table = f"links[{link}]"
        elif header := re.fullmatch(r"\[([a-z].*)\]", line):
            table = header[1].replace("links.", f"links[{link}].", 1)
        elif (pair := re.match(r"(\w+) = (?!\"\"\")", line)) is not None:
            yield number, table, pair[1]


KEYS = list(numbered_keys(H200))


def mutant(number: int, line: str) -> str:
    """Message for the H200 profile with one line replaced, or "" where it is still a valid profile."""
    lines = H200.splitlines()
    lines[number] = line
    try:
        read_profile("\n".join(lines).encode(), "mutant.toml")
    except InputError as error:
        return str(error)
    return ""


def replaced(old: str, new: str) -> str:
    assert H200.count(old) >= 1
    with pytest.raises(InputError) as caught:
        read_profile(H200.replace(old, new, 1).encode(), "h200.toml")
    return str(caught.value)


def test_the_walk_over_keys_finds_known_ones() -> None:
    found = {f"{table}.{key}" for _, table, key in KEYS}
    assert {"device.peak_flop_per_s.bf16_dense.value", "links[1].latency_s.low", "links[0].devices"} <= found


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "value = 989e12",
            "value = -1",
            "h200.toml: device.peak_flop_per_s.bf16_dense.value: -1 is not valid: must be > 0",
        ),
        (
            "value = 989e12",
            "value = 989",
            "989 is not valid: must be 1e+08 to 1e+17 FLOP/s; for example 165.2e12",
        ),
        ("value = 989e12", "value = nan", "bf16_dense.value: nan is not valid: must be a finite number"),
        ("value = 989e12", "value = inf", "bf16_dense.value: inf is not valid: must be a finite number"),
        ("value = 989e12", "value = true", "bf16_dense.value: true is not valid: must be a number of FLOP/s"),
        ("value = 989e12\n", "", "bf16_dense.value: no value is not valid: this key is required"),
        ("value = 4.8e12", "value = 3.35", "device.memory_bytes_per_s.value: 3.35 is not valid: must be"),
        ("value = 4.8e12", "value = 3350", "device.memory_bytes_per_s.value: 3350 is not valid: must be"),
        (
            "value = 151.4e9",
            'value = "80 GB"',
            "device.memory_bytes.value: '80 GB' is not valid: must be a number of bytes; for example 80e9",
        ),
        (
            "[device.memory_bytes]",
            "[device.memory_gb]",
            "device.memory_gb: a table is not valid: there is no such key",
        ),
        ("[device.memory_bytes]", "[device.memory_gb]", "did you mean 'memory_bytes'?"),
        ("[device.kernels.copy.memory]", "[device.kernels.copy.mem]", "did you mean 'memory'?"),
        (
            'kind = "datasheet"',
            'kind = "guess"',
            "must be one of datasheet, cited, measured, derived, assumed",
        ),
        ("schema = 1", "schema = 2", "schema: 2 is not valid: must be 1"),
        ("schema = 1\n", "", "schema: no value is not valid: this key is required"),
        ("devices = 8", "devices = 0", "links[0].devices: 0 is not valid: must be at least 1"),
        ("devices = 8", "devices = 8.0", "links[0].devices: 8.0 is not valid: must be a whole number"),
        (
            "value = 450e9",
            "value = 300e9",
            "links[0].bytes_per_s.value: 3.48e+11 is not valid: must be at most 3e+11",
        ),
        ("tile = 128", "tile = 0", "device.kernels.attention.tile: 0 is not valid: must be 1 to 4096 tokens"),
        ("calibrated = true", 'calibrated = "no"', "calibrated: 'no' is not valid: must be true or false"),
        ("schema = 1", "schema = ", "h200.toml: the text is not valid: must be TOML"),
        ("schema = 1", "schema = " + "9" * 5000, "h200.toml: the text is not valid: must be TOML"),
        ("value = 989e12", "value = " + "9" * 500, "must be a number of FLOP/s"),
        ("schema = 1", "x = " + "[" * 20000 + "]" * 20000, "nested too deeply"),
    ],
)
def test_message(old: str, new: str, message: str) -> None:
    assert message in replaced(old, new)


def test_bare_number_shows_how_to_write_a_quantity() -> None:
    table = H200[H200.index("[device.memory_bytes]") : H200.index("[device.memory_bytes_per_s]")]
    text = H200.replace(table, "").replace("[device]\n", "[device]\nmemory_bytes = 80e9\n")
    with pytest.raises(InputError, match=r"device\.memory_bytes: 8.*must be a table; write \{ value = 80e9, source"):
        read_profile(text.encode(), "h200.toml")


def test_no_rate_at_all() -> None:
    start, end = H200.index("[device.peak_flop_per_s.bf16_dense]"), H200.index("[device.vector_flop_per_s]")
    text = f"{H200[:start]}[device.peak_flop_per_s]\n{H200[end:]}"
    with pytest.raises(InputError, match=r"device\.peak_flop_per_s: .* must hold at least one rate"):
        read_profile(text.encode(), "h200.toml")


@pytest.mark.parametrize(
    ("link", "key", "other"), [(0, "uplink", "shared"), (1, "shared", "uplink")], ids=["inner", "outer"]
)
def test_totals_belong_to_their_level(link: int, key: str, other: str) -> None:
    head = f'\n[links.{key}_bytes_per_s]\nvalue = 1e9\nkind = "assumed"\nsource = "test"\n\n'
    parts = H200.split("[[links]]\n")
    first, rest = parts[1 + link].split("\n\n", 1)
    parts[1 + link] = first + "\n" + head + rest
    with pytest.raises(InputError, match=rf"links\[{link}\].{key}_bytes_per_s.value.*use {other}_bytes_per_s"):
        read_profile("[[links]]\n".join(parts).encode(), "h200.toml")


def test_only_an_all_reduce_may_pass_the_line_rate() -> None:
    # H200 measured 482 GB/s of bus bandwidth on 450 GB/s links, since the switch does the sum.
    assert "bytes_per_s.high: 4.6e+11" in replaced("high = 348e9", "high = 460e9")
    assert "collectives.all_reduce.high: 9.1e+11" in replaced("high = 370e9", "high = 910e9")


@pytest.mark.parametrize("name", ["h10O", "", "toml", "/", "H100", "../profiles/h100"])
def test_unknown_name(name: str) -> None:
    with pytest.raises(UnknownNameError, match=r"Known: a10, a100, a100_40gb, .*h100, .*rtx4090"):
        load_profile(name)


def test_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'h100'"):
        load_profile("h10O")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "latin.toml").write_bytes(b"title = '\xff'")
    (tmp_path / "huge.toml").write_bytes(b"#" * 1_000_001)
    for name, reason in [
        ("folder", "is a directory"),
        ("missing", "no such file"),
        ("nul\0", "null byte"),
        ("x" * 5000, "too long"),
        ("latin", "must be UTF-8"),
        ("huge", "larger than 1,000,000 bytes"),
    ]:
        with pytest.raises(InputError, match=reason) as caught:
            load_profile(f"{tmp_path}/{name}.toml")
        assert name[:50].rstrip("\0") in str(caught.value)


def test_a_users_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(H200.replace('name = "h200"', 'name = "mine"'))
    assert load_profile(path).name == load_profile(str(path)).name == "mine"


@given(st.binary(max_size=300))
@example(b"\xef\xbb\xbfschema = 1")
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(InputError, match=r"fuzz\.toml"):
        read_profile(data, "fuzz.toml")


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["value", "x"]), inner, max_size=2),
    max_leaves=4,
)


def toml(value: object) -> str:
    """TOML for a value of `VALUES`, where None becomes a date."""
    if value is None:
        return "2026-01-01"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08x}" for c in value if not 0xD800 <= ord(c) < 0xE000) + '"'
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + " }"
    return repr(value)


@given(st.sampled_from(KEYS), VALUES)
def test_any_value_of_a_key(where: tuple[int, str, str], value: object) -> None:
    number, table, key = where
    message = mutant(number, f"{key} = {toml(value)}")
    assert not message or message.startswith("mutant.toml: ")
    if not isinstance(value, str | int | float):  # a number or a name may happen to be valid
        assert f"{table}.{key}:".lstrip(".") in message


@pytest.mark.parametrize(("number", "table", "key"), KEYS)
def test_deleted_key(number: int, table: str, key: str) -> None:
    message = mutant(number, "")
    if key in OPTIONAL and (table, key) != ("links[0]", "devices"):
        assert not message
    else:
        assert f"mutant.toml: {table}.{key}: ".replace(" .", " ") in message
        assert "required" in message or key == "devices"


@pytest.mark.parametrize(("number", "table", "key"), [k for k in KEYS if k[2] in NUMBERS])
def test_numbers_that_are_none(number: int, table: str, key: str) -> None:
    line = H200.splitlines()[number]
    for value, rule in [
        (f"-{line.split()[-1]}", "must be > 0"),
        ("nan", "must be a finite number"),
        ("-inf", "must be a finite number"),
        (f'"{line.split()[-1]}"', "must be a number"),
        ("1e40", "is not valid"),
    ]:
        message = mutant(number, f"{key} = {value}")
        assert f"mutant.toml: {table}." in message, value
        assert rule in message, value
        assert f"{table}.{key}: " in message or value == "1e40"  # which may be at odds with low or high first


@pytest.mark.parametrize(("number", "table", "key"), KEYS)
def test_renamed_key(number: int, table: str, key: str) -> None:
    line = H200.splitlines()[number].replace(key, f"{key}_x", 1)
    message = mutant(number, line)
    assert f"mutant.toml: {table}.{key}_x: ".replace(" .", " ") in message or f"{table}.{key}: no value" in message
    assert f"did you mean '{key}'?" in message or "this key is required" in message


def test_every_quantity_key_has_a_range_that_holds_its_example() -> None:
    for key, allowed in ALLOWED.items():
        assert allowed.fault(float(allowed.example)) is None, key
        assert allowed.low < allowed.high, key


@pytest.mark.parametrize(
    ("key", "slip"),
    [
        ("memory_bytes", 80),  # GB
        ("memory_bytes", 81920),  # MiB
        ("memory_bytes_per_s", 3350),  # GB/s
        ("bf16_dense", 989),  # TFLOP/s
        ("bf16_dense", 989e3),  # GFLOP/s
        ("bytes_per_s", 450),  # GB/s
        ("bytes_per_s", 25000),  # MB/s
        ("launch_s", 3),  # microseconds
        ("latency_s", 5.7),  # microseconds
        ("compute", 82),  # percent
        ("memory", 91),  # percent
        ("reserved_bytes", 761),  # MB
    ],
)
def test_a_unit_slip_is_out_of_range(key: str, slip: float) -> None:
    assert ALLOWED[key].fault(slip) is not None


def test_a_fault_in_a_kernel_by_itself_names_the_key(tmp_path: Path) -> None:
    text = (resources.files("costmodel.hardware") / "profiles" / "cpu.toml").read_text()
    whole = '\n[device.single.cos]\ncompute = { value = 0.01, source = "x", kind = "measured" }\n'
    whole += 'memory = { value = 0.2, source = "x", kind = "measured" }\n'
    path = tmp_path / "mine.toml"
    path.write_text(text.replace("[[links]]", whole + "[[links]]", 1))
    assert load_profile(str(path)).device.single["cos"].memory.value == 0.2
    for old, new, told in (
        ("memory = { value = 0.2", "memery = { value = 0.2", "device.single.*memery.*did you mean 'memory'"),
        ("value = 0.01", "value = 100.0", "device.single.cos.compute.value: 100"),
    ):
        path.write_text(text.replace("[[links]]", whole.replace(old, new) + "[[links]]", 1))
        with pytest.raises(InputError, match=told):
            load_profile(str(path))
