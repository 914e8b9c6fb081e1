"""Whatever is typed, the answer is an answer, that nothing fits, or one message that says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
LLAMA = ROOT / "examples" / "llama-3-8b.json"
H100 = ROOT / "costmodel" / "hardware" / "profiles" / "h100.toml"
PLAN = ["plan", "--mixer", "attention", "--seq", "64Ki", "--cluster", "8xh100"]


def changed(**options: str) -> list[str]:
    """``PLAN`` with other values of some options."""
    arguments = list(PLAN)
    for option, value in options.items():
        arguments[arguments.index(f"--{option}") + 1] = value
    return arguments


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (changed(mixer="atention"), "no mixer named 'atention'. Did you mean 'attention'?"),
        (changed(seq="0"), "--seq: '0' is not valid: must be between 1 and 1Ti"),
        (changed(seq="1e30"), "--seq: '1e30' is not valid: must be between 1 and 1Ti"),
        (changed(seq="12K"), "did you mean 12k?"),
        (changed(seq="1.5"), "must be a whole number; try 1 or 2"),
        (changed(cluster="8xh10"), "no hardware profile named 'h10'. Did you mean 'h100'?"),
        (changed(cluster="0xh100"), "at least 1"),
        (changed(cluster="8x./none.toml"), "none.toml"),
        ([*PLAN, "--set", "heads"], "must be a name and a number"),
        ([*PLAN, "--set", "heads=-1"], "--set heads: '-1' is not valid"),
        ([*PLAN, "--set", "heads=0"], "must be at least 1"),
        ([*PLAN, "--set", "headz=8"], "Did you mean 'heads'?"),
        ([*PLAN, "--set", "heads=8", "--set", "heads=9"], "heads is given twice"),
        ([*PLAN, "--set", "heads=6", "--set", "kv_heads=4"], "must divide the 6 heads"),
        ([*PLAN, "--batch", "x"], "--batch: 'x' is not valid"),
        ([*PLAN, "--cache-bytes", "nan"], "must be a number from 0.125 to 16"),
        ([*PLAN, "--pass", "sideways"], "'sideways' is not one of"),
        ([*PLAN, "--dtype", "fp99"], "'fp99' is not one of"),
        ([*PLAN, "--model", str(LLAMA)], "give one of the two"),
        (["plan", "--seq", "1k", "--cluster", "h100"], "give one of the two"),
        (["plan", "--model", "nowhere.json", "--seq", "1k", "--cluster", "h100"], "nowhere.json"),
        (["plan", "--model", str(LLAMA), "--width", "8", "--seq", "1k", "--cluster", "h100"], "is for --mixer"),
        (["plan", "--mixer", "none.py:x", "--seq", "1k", "--cluster", "h100"], "there is no such file"),
        (["predict", *PLAN[1:]], "give one of the two"),
        (["predict", *PLAN[1:], "--strategy", "rin"], "Did you mean 'ring'?"),
        (["predict", *PLAN[1:], "--strategy", "ring", "--context", "3"], "has 3 ranks and the cluster 8 devices"),
        (["predict", *PLAN[1:], "--strategy", "ring", "--ulysses", "2"], "ring has no such axis"),
        (["predict", *PLAN[1:], "--strategy", "ring", "--context", "1", "--tensor", "8"], "needs at least 2 ranks"),
        (["predict", *PLAN[1:], "--strategy", "ring", "--sharing", "zero-1"], "only training has"),
        (["predict", *PLAN[1:], "--strategy", "ring", "--sharing", "zero-2"], "no sharing named 'zero-2'"),
        (["predict", *PLAN[1:], "--strategy", "ring", "--kernel", "fast"], "no kernel of attention named 'fast'"),
        (["predict", *PLAN[1:], "--strategy", "halo"], "does not know what crosses"),
        (["predict", *PLAN[1:], "--all", "--kernel", "fused"], "--all: '--kernel' is not valid: these are of one plan"),
        (["formulas", "--mixer", "attention", "--json", "--latex"], "give one of the two"),
        (["formulas", "--mixer", "attention", "--cached", "T"], "--cached: 'T' is not valid: only a prefill"),
        (changed(mixer="examples/mine.py"), "give examples/mine.py:NAME"),
        (changed(cluster="h100x8"), "the number of devices comes first; write 8xh100"),
        (
            ["compare", *PLAN[3:], "--csv", "/nowhere/a.csv"],
            "'/nowhere/a.csv' is not valid: there is no directory",
        ),
        (["compare", *PLAN[3:], "--csv", ""], "--csv: '' is not valid: it is a directory"),
        (["compare", *PLAN[3:], "--plot", "/tmp/a.doc"], "has no known format; formats: pdf"),
        (["formulas", "--mixer", "atention"], "Did you mean 'attention'?"),
        (["list", "profiles", "h10"], "Did you mean 'h100'?"),
        (["plam"], "No such command"),
    ],
)
def test_bad_arguments_are_refused_with_one_message(run, arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stdout == ""


def test_seven_devices_for_eight_heads(run) -> None:
    layer = ["--mixer", "attention", "--set", "heads=8", "--seq", "1Mi", "--cluster", "7xh100"]
    done = run("predict", *layer, "--strategy", "ulysses")
    assert done.exit_code == 2
    assert "8 heads cannot be cut 1 x 7 ways; it is valid on 4 and 8 devices" in done.stderr
    done = run("plan", *layer, "--pass", "forward", "--json")  # a ring pads the sequence
    assert done.exit_code == 0
    done = run("plan", *layer, "--pass", "decode")  # a cache has the tokens that it has
    assert done.exit_code == 2
    assert "8 heads cannot be cut 7 ways" in done.stderr
    assert "the nearest numbers of devices with a valid plan: 4 and 8" in done.stderr


def test_a_config_without_heads(run, tmp_path: Path) -> None:
    config = json.loads(LLAMA.read_text())
    del config["num_attention_heads"]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    done = run("plan", "--model", str(path), "--seq", "1k", "--cluster", "h100")
    assert done.exit_code == 2
    assert "num_attention_heads" in done.stderr and str(path) in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[device.launch_s]\nvalue = ", "[device.launch_s]\nvalue = -", "device.launch_s"),
        ("[device.memory_bytes_per_s]", "[device.memory_speed]", "memory_bytes_per_s"),
        ("value = 989e12", "value = 989", "device.peak_flop_per_s.bf16_dense.value"),
        ("schema = 1", "schema = 2", "schema"),
        ("schema = 1", "schema = ", "mine.toml"),
    ],
)
def test_a_profile_with_a_missing_negative_or_misread_number(
    run, tmp_path: Path, old: str, new: str, said: str
) -> None:
    text = H100.read_text()
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new))
    for command in (changed(cluster=f"8x{path}"), ["list", "profiles", str(path)]):
        done = run(*command)
        assert done.exit_code == 2
        assert said in done.stderr and "mine.toml" in done.stderr


COUNTS = st.sampled_from(
    ["1", "7", "8", "64", "1k", "1Mi", "3Mi", "0", "-1", "1e30", "1.5", "", "x", "12K", "∞", "1:4"]
)
VALUES = {
    "--mixer": st.sampled_from(["attention", "mla", "linear-attention", "Attention", "", "a.py:b", "x" * 300]),
    "--model": st.sampled_from([str(LLAMA), "", ".", "no.json", str(H100)]),
    "--seq": COUNTS,
    "--cluster": st.sampled_from(["h100", "4xrtx4090", "7xh100", "6xcpu", "0xh100", "x", "8x", "8x.toml", "1e9xa100"]),
    "--batch": COUNTS,
    "--width": COUNTS,
    "--set": st.sampled_from(["heads=8", "kv_heads=3", "head_dim=1", "window=5", "heads=0", "=", "x=y", "heads=1Ti"]),
    "--pass": st.sampled_from(["forward", "train", "prefill", "decode", "x"]),
    "--dtype": st.sampled_from(["bf16", "fp8", "fp32", "x"]),
    "--cache-bytes": st.sampled_from(["1", "0.5", "nan", "-inf", "x"]),
    "--top": COUNTS,
    "--strategy": st.sampled_from(["ring", "ulysses", "ulysses-zigzag", "whole", "halo", "state-gather", "x"]),
    "--context": COUNTS,
    "--ulysses": COUNTS,
    "--tensor": COUNTS,
    "--kernel": st.sampled_from(["fused", "vanilla", "chunked", "x"]),
    "--sharing": st.sampled_from(["replicated", "zero-1", "zero-3", "x"]),
}
FLAGS = ("--json", "--verbose", "--full", "--all", "--recompute", "--context-inside", "--latex", "--help")


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command with mostly sensible options, some of them left out, doubled or nonsense."""
    command = draw(st.sampled_from(["plan", "predict", "formulas", "list"]))
    good = {"plan": PLAN[1:], "predict": [*PLAN[1:], "--strategy", "ring"], "formulas": PLAN[1:3], "list": ["mixers"]}
    arguments = good[command] if draw(st.integers(0, 4)) else []
    for option in draw(st.lists(st.sampled_from(list(VALUES)), max_size=4)):
        arguments = [*arguments, option, draw(VALUES[option])]
    return [command, *arguments, *draw(st.lists(st.sampled_from(FLAGS), max_size=2))]


@given(arguments=command_lines())
@settings(max_examples=120)
def test_no_command_line_ends_in_a_traceback(run, arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.exit_code in (0, 1, 2)
    assert (done.stderr == "") == (done.exit_code < 2)
    assert "Traceback" not in done.output


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2**70), st.floats(), st.text(max_size=5), st.just([]), st.just({"a": 1})
)


@given(changes=st.dictionaries(st.sampled_from(sorted(json.loads(LLAMA.read_text()))), JUNK, min_size=1, max_size=3))
@settings(max_examples=60)
def test_no_config_ends_in_a_traceback(run, tmp_path_factory, changes: dict[str, object]) -> None:
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(json.dumps(json.loads(LLAMA.read_text()) | changes))
    done = run("plan", "--model", str(path), "--seq", "4Ki", "--cluster", "8xh100", "--pass", "decode")
    assert done.exit_code in (0, 1, 2)
    assert (done.stderr == "") == (done.exit_code < 2)


@given(
    line=st.integers(0, H100.read_text().count("\n")),
    text=st.sampled_from(
        ["", "value = -1", "value = 1e400", "value = 'x'", "kind = 'guessed'", "[device]", "devices = 3"]
    ),
)
@settings(max_examples=60)
def test_no_profile_ends_in_a_traceback(run, tmp_path_factory, line: int, text: str) -> None:
    lines = H100.read_text().splitlines()
    lines[line - 1] = text
    path = tmp_path_factory.mktemp("profile") / "mine.toml"
    path.write_text("\n".join(lines))
    done = run(*changed(cluster=f"8x{path}"), "--pass", "forward")
    assert done.exit_code in (0, 1, 2)
    assert (done.stderr == "") == (done.exit_code < 2)
