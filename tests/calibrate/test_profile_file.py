"""Fitted numbers in a profile's file, and the command that puts them there."""

from __future__ import annotations

import json
from importlib import resources
from itertools import product
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from calibrate.measurement import Measurement, write_measurements
from calibrate.profile_file import Changes, profile_text, read, rewritten
from costmodel.cli.main import main
from costmodel.errors import InputError, UnknownNameError
from costmodel.hardware import Quantity, load_profile, profiles
from costmodel.hardware.profile import Correlation, Measured, look_up, placed

COMPUTE, MEMORY = "device.kernels.gemm.compute", "device.kernels.gemm.memory"


def number(value: float) -> Quantity:
    return Quantity(value, "fit to 3 published runs (a source with a long name), " * 4 + "2026", "cited", low=value / 2)


NUMBERS = {
    COMPUTE: number(0.5),
    "device.kernels.gemm.exposed": number(0.25),
    "device.kernels.attention.launch_s": number(4e-6),
    "device.cache_bytes": number(5e7),
    "links[0].start_s": number(7e-6),
    "links[0].collectives.all_reduce": number(1e10),
    "links[1].spread": number(1.0),
}


@pytest.mark.parametrize("name", [name for name in profiles() if name != "cpu"])
def test_what_is_written_is_read(name: str) -> None:
    text = profile_text(name)[0]
    correlations = (Correlation((COMPUTE, MEMORY), ((1.0, -0.25), (-0.25, 1.0))),)
    measured = Measured((1e6, 2.5e12), (64.0, 1e9))
    found = read(rewritten(text, Changes({**NUMBERS, "device.kernels.gemm.measured": measured}, correlations)), name)
    kept = [one for one in load_profile(name).correlations if not set(one.of) & set(NUMBERS)]
    expected = msgspec.structs.replace(
        placed(load_profile(name), {**NUMBERS, "device.kernels.gemm.measured": measured}),
        correlations=(*kept, *correlations),
        calibrated=True,
        like=None,
    )
    assert found == expected


def test_comments_and_other_numbers_stay_as_they_were() -> None:
    text = profile_text("rtx4090")[0]
    written = rewritten(text, Changes({"device.kernels.attention.compute": number(0.5)}, ()))
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert [line for line in written.splitlines() if line.startswith("#")] == comments
    assert "[device.step_s]" in written


def test_a_number_is_taken_out() -> None:
    text = rewritten(profile_text("h100")[0], Changes({"device.kernels.gemm.exposed": number(0.3)}, ()))
    assert look_up(read(text, "x"), "device.kernels.gemm.exposed") == number(0.3)
    without = rewritten(text, Changes({"device.kernels.gemm.exposed": None}, ()))
    assert look_up(read(without, "x"), "device.kernels.gemm.exposed") is None


@pytest.mark.parametrize("name", ["a800", "l40", "v100"])
def test_a_profile_like_another_is_written_out(name: str) -> None:
    text = profile_text(name)[0]
    assert "like" not in text.replace("alike", "").partition("[device]")[0]
    assert read(text, "x") == msgspec.structs.replace(load_profile(name), like=None)
    key = "device.kernels.gemm.exposed"  # taken from the other profile, and found by a fit not to be there
    assert look_up(read(rewritten(text, Changes({key: None}, ())), "x"), key) is None


def test_texts_of_profiles(tmp_path: Path) -> None:
    assert profile_text("h100")[0] == (resources.files("costmodel.hardware") / "profiles" / "h100.toml").read_text()
    with pytest.raises(UnknownNameError, match="Did you mean 'h100'"):
        profile_text("h10")
    with pytest.raises(InputError, match="cannot be read"):
        profile_text(str(tmp_path / "none.toml"))
    (tmp_path / "bad.toml").write_bytes(b"\xff")
    with pytest.raises(InputError, match="must be UTF-8"):
        profile_text(str(tmp_path / "bad.toml"))


def runs(path: Path, device: str = "h100") -> str:
    """Matrix products at 400 TFLOP/s."""
    rows = []
    for n, source in product((4096.0, 8192.0, 12288.0, 16384.0), ("one", "two")):
        sizes, seconds = {"M": n, "K": n, "N": n}, 2 * n**3 / 4e14
        rows.append(Measurement(device, "gemm", "", "bf16", sizes, seconds, "time", "", source, "", "", "", "fit", ""))
    write_measurements(path, rows)
    return str(path)


def test_the_command_writes_a_profile_that_predicts_the_runs(tmp_path: Path) -> None:
    output = tmp_path / "mine.toml"
    arguments = ["calibrate", "--from", runs(tmp_path / "runs.csv"), "--block", "gemm", "--output", str(output)]
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    (block,) = json.loads(done.stdout)["blocks"]
    profile = load_profile(output)
    assert profile.calibrated
    held = look_up(profile, COMPUTE)
    assert isinstance(held, Quantity)
    assert held.value == pytest.approx(block["numbers"][COMPUTE]["value"], rel=1e-3)
    assert held.value * 989e12 == pytest.approx(4e14, rel=0.03)
    assert "costmodel calibrate --from" in held.source
    assert block["shapes_left_out"]["median_error"] < 0.03
    table = tmp_path / "table.csv"
    page = CliRunner().invoke(main, [*arguments, "--csv", str(table)])
    assert len(table.read_text().splitlines()) == 1 + block["runs"]
    assert "predictions of runs that the fit has not seen" in page.output and "Written to" in page.output


def test_a_fitted_profile_is_fitted_again(tmp_path: Path) -> None:
    # The card's matrix products were fitted with terms and correlations, of which large products say nothing.
    output = tmp_path / "mine.toml"
    arguments = ["calibrate", "--from", runs(tmp_path / "runs.csv"), "--onto", "rtx4090", "--block", "gemm"]
    done = CliRunner().invoke(main, [*arguments, "--output", str(output)])
    assert done.exit_code == 0, done.output
    refitted, before = load_profile(output), load_profile("rtx4090")
    assert len(refitted.correlations) == len(before.correlations) - 1
    assert refitted.device.kernels.attention == before.device.kernels.attention


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--from", "published/rtx409"],
            "no device with published measurements named 'rtx409'. Did you mean 'rtx4090'",
        ),
        (["--from", "none.csv"], "cannot be read"),
        (["--from", "published/rtx4090", "--block", "gem"], "no block of numbers named 'gem'"),
        (["--from", "published/rtx4090", "--onto", "h10"], "no hardware profile named 'h10'"),
    ],
)
def test_bad_input_is_told(arguments: list[str], told: str) -> None:
    done = CliRunner().invoke(main, ["calibrate", *arguments])
    assert done.exit_code == 2
    assert told in " ".join(done.output.split())


def test_runs_of_two_devices_need_a_profile(tmp_path: Path) -> None:
    first, second = Path(runs(tmp_path / "a.csv")), Path(runs(tmp_path / "b.csv", "a100"))
    first.write_text(first.read_text() + "".join(second.read_text().splitlines(keepends=True)[1:]))
    done = CliRunner().invoke(main, ["calibrate", "--from", str(first)])
    assert done.exit_code == 2
    assert "has runs of a100, h100" in " ".join(done.output.split())
