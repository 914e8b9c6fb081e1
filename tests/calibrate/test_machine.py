"""A machine's own runs become a profile; runs made up from known numbers give these back."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import calibrate
from calibrate.additive import costs
from calibrate.against import BEYOND, against
from calibrate.cases import case
from calibrate.held_out import Errors
from calibrate.machine import parts, singles, started_text, stretch
from calibrate.measurement import Measurement
from calibrate.method import Timing
from calibrate.predictor import Predictor
from calibrate.profile_file import Changes, plain, profile_text, read, rewritten
from calibrate.shapes import SWEEPS
from calibrate.store import Run, Store
from calibrate.store import read as read_store
from calibrate.whole import check, predicted_s, print_check
from costmodel.arrangement import Way
from costmodel.cli.main import main
from costmodel.hardware import Profile, Quantity, load_profile
from costmodel.hardware.profile import Kernel, Measured, placed
from costmodel.strategy import strategies
from costmodel.subject import at_width
from costmodel.workload import Workload
from tests.calibrate.test_store import ENVIRONMENT

DATA = Path(calibrate.__file__).parent / "data"

#: Of the last-level cache, what kernels find their operands in: a half of the environment's.
CACHE = 2.0**24

TRUTH = {
    "exp": (9e-6, 0.01, 0.6),
    "add": (6e-6, 0.9, 0.5),
    "Sum": (8e-6, 0.05, 0.9),
    "Softmax": (30e-6, 0.004, 0.3),
}


def number(value: float) -> Quantity:
    return Quantity(value, "made up", "assumed")


def by_families() -> Profile:
    """The CPU's profile without numbers of single kernels."""
    return read(plain(profile_text("cpu")[0]), "cpu")


def truth() -> Profile:
    own = {
        f"device.single.{name}": Kernel(
            number(compute), number(memory), launch_s=number(launch), exposed=number(1.0), cached=number(3.0)
        )
        for name, (launch, compute, memory) in TRUTH.items()
    }
    gemm = {"device.kernels.gemm.compute": number(0.8), "device.kernels.gemm.launch_s": number(12e-6)}
    gemm["device.kernels.gemm.exposed"] = number(1.0)
    copies = {f"device.kernels.gemm.{side}_bytes_per_s": number(1e10) for side in ("left", "right")}
    return placed(by_families(), {**own, **gemm, **copies, "device.cache_bytes": number(CACHE)})


def made_up(noise: float = 0.02) -> list[Measurement]:
    """Runs of some kernels as the true profile predicts them, with errors."""
    rows = []
    for sweep in SWEEPS:
        if sweep.kernel in ("exp", "add", "sum", "softmax", "gemm"):
            for _, sizes in zip(range(24), sweep.points(), strict=False):
                small = {name: float(size) for name, size in sizes.items()}
                row = ("cpu", sweep.kernel, "torch", "fp32", small, 1.0, "time", "", "a CPU", "", "2026", "", "fit", "")
                rows.append(Measurement(*row))
    seconds = Predictor(rows, truth())(truth()) * np.exp(np.random.default_rng(0).normal(0, noise, len(rows)))
    fields = Measurement.__dataclass_fields__
    return [
        Measurement(**{name: getattr(row, name) for name in fields} | {"seconds": float(value)})
        for row, value in zip(rows, seconds, strict=True)
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("machine") / "runs.jsonl"
    with Store(path, ENVIRONMENT) as store:
        for row in made_up():
            store.add(Run("a1", 1.0, row, Timing(row.seconds, 0.01, (row.seconds,), (), (), 1)))
    return path


def test_peaks_are_the_fastest_runs(runs: Path) -> None:
    rows = made_up(0.0)
    profile = read(started_text(profile_text("cpu")[0], ENVIRONMENT, rows, "mine"), "mine")
    products = [row for row in rows if row.kernel == "gemm"]
    fastest = max(2 * math.prod(row.sizes.values()) / row.seconds for row in products)
    assert profile.device.peak("fp32").value == pytest.approx(fastest, rel=1e-3)
    assert profile.device.memory_bytes.value == pytest.approx(ENVIRONMENT.memory_bytes / 2, rel=1e-3)
    assert profile.device.cache_bytes is not None
    assert profile.device.cache_bytes.value == pytest.approx(CACHE, rel=1e-3)
    assert (profile.name, profile.device.name) == ("mine", "a CPU")
    assert {"scan", "recurrence", "fft", "sort", "convolution"} <= set(profile.device.kernels.keys())


def test_a_ring_shift_has_the_rate_of_the_link_that_is_fitted() -> None:
    sizes = {"P": 2.0, "bytes": 2.0**20}
    row = Measurement("cpu", "ring_shift", "", "fp32", sizes, 1e-3, "time", "", "a CPU", "", "", "", "fit", "")
    text = rewritten(profile_text("cpu")[0], Changes({"links[0].collectives.ring_shift": number(1e9)}, ()))
    for rows, own in (([row], False), ([], True)):
        link = read(started_text(text, ENVIRONMENT, rows, "mine"), "mine").links[0]
        assert (link.collectives.ring_shift is not None) is own
        assert link.collectives.all_gather is not None


def test_what_its_own_runs_do_not_tell_a_kernel_costs_as_others_do() -> None:
    each = [{"launch": 1.0, "memory": size} for size in (1e6, 2e6, 4e6)]
    seconds = np.array([1e-3, 2e-3, 4e-3])
    assert costs(each, seconds) == pytest.approx({"memory": 1e-9})
    known = costs(each, seconds, {"launch": 5e-6, "memory": 2e-9, "beyond": 1e-9})
    assert known["launch"] == pytest.approx(5e-6, rel=0.5)  # at most a half of a hundredth of any of these runs
    assert known["memory"] == pytest.approx(1e-9, rel=0.01)
    beyond = costs([row | {"beyond": 0.0} for row in each], seconds, {"beyond": 1e-9})
    assert beyond["beyond"] == 1e-9


def test_intervals_are_as_wide_as_nine_in_ten_further_runs_need() -> None:
    ratios = np.arange(1, 20) / 10  # 0.1 to 1.9: of twenty with one beyond, 18 are at most 1.8
    assert stretch(Errors(ratios * 0.5, np.full(19, 0.5))) == pytest.approx(1.8)
    assert stretch(Errors(np.array([-0.3]), np.array([0.1]))) == pytest.approx(3.0)
    assert stretch(Errors(np.empty(0), np.empty(0))) == 1


def test_runs_larger_than_those_fitted_are_told() -> None:
    profile = placed(truth(), {"device.kernels.gemm.measured": Measured((1e3, 1e9), (1e3, 1e9))})
    rows = [row for row in made_up() if row.kernel == "gemm"]
    large = [row for row in rows if not 1e3 <= 2 * math.prod(row.sizes.values()) <= 1e9]
    found = against(profile, rows)
    assert 0 < len(large) <= len(found[BEYOND]) < len(rows) == len(found["gemm"])
    assert set(large) <= set(found[BEYOND].runs)


def test_kernels_of_one_family_are_told_apart() -> None:
    rows = made_up()
    assert set(singles(parts(rows, 256))) == set(TRUTH)  # products are all of their family


@pytest.mark.slow
def test_the_command_finds_the_numbers_again(runs: Path, tmp_path: Path) -> None:
    output = tmp_path / "mine.toml"
    arguments = ["calibrate", "--from", str(runs), "--profile", str(output)]
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    for family in ("gemm", "elementwise", "reduction"):
        assert found["shapes_left_out"][family]["median_error"] < 0.03
    profile, known = load_profile(str(output)), truth()
    assert profile.calibrated
    assert set(profile.device.single) == set(TRUTH)
    rows = made_up(0.0)
    there, here = Predictor(rows, profile)(profile), np.array([row.seconds for row in rows])
    assert np.median(np.abs(np.log(there / here))) < 0.02
    for kernel in (profile.device.kernels.gemm, *profile.device.single.values()):
        assert kernel.exposed is not None
        assert kernel.exposed.value == 1  # or the longer of arithmetic and traffic would hide the other
    launch = profile.device.single["exp"].launch_s
    assert launch is not None
    assert launch.value == pytest.approx(known.device.single["exp"].launch_s.value, rel=0.05)
    assert launch.kind == "measured"
    assert launch.lo <= 9e-6 <= launch.hi
    judged = CliRunner().invoke(main, ["calibrate", "--check", str(output), "--from", str(runs), "--json"])
    assert judged.exit_code == 0, judged.output
    for family in ("gemm", "elementwise", "reduction"):
        found = json.loads(judged.stdout)["families"][family]
        assert found["median_error"] < 0.03
        assert 0.85 <= found["coverage"] <= 1
    planned = CliRunner().invoke(
        main, ["plan", "--mixer", "attention", "--seq", "4Ki", "--cluster", f"2x{output}", "--dtype", "fp32"]
    )
    assert planned.exit_code == 0, planned.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give one of them"),
        (["--into", "a.jsonl", "--from", "published/h100"], "give one of them"),
        (["--into", "a.jsonl", "--budget", "1s"], "must be between 20 seconds and a day"),
        (["--into", "a.jsonl", "--budget", "soon"], "--budget"),
        (["--into", "no folder/a.jsonl"], "cannot be written"),
        (["--into", "a.jsonl", "--block", "gemm"], "--block: 'gemm' is not valid: is for --from, not for --into"),
        (["--into", "notes.txt"], "no measurement"),
        (["--from", "none.jsonl"], "there is no such file"),
        (["--check", "none.toml"], "cannot be read"),
        (["--check", "cpu", "--from", "published/h100"], "must be a file of runs"),
        (["--check", "cpu", "--from", "none.jsonl"], "holds no runs"),
        (["--check", "cpu", "--into", "a.jsonl"], "or --check with --from"),
        (["--check", "cpuu"], "Did you mean 'cpu'"),
    ],
)
def test_bad_input_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("dear diary\n")
    done = CliRunner().invoke(main, ["calibrate", *arguments])
    assert done.exit_code == 2, done.output
    assert told in " ".join(done.output.split())
    assert not Path("a.jsonl").exists()


def test_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibrate.command.find_spec", lambda name: None if name == "torch" else find_spec(name))
    for arguments in (["--into", "a.jsonl"], ["--check", "cpu"]):
        done = CliRunner().invoke(main, ["calibrate", *arguments])
        assert done.exit_code == 2
        assert "pip install 'costmodel[validate]'" in done.output


def test_a_damaged_line_is_told_and_the_rest_is_used(runs: Path, tmp_path: Path) -> None:
    lines = runs.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b"fp32", b"fp23", 1)
    path = tmp_path / "damaged.jsonl"
    path.write_bytes(b"".join(lines[:1] + lines[3:4]))
    done = CliRunner().invoke(main, ["calibrate", "--from", str(path)])
    assert done.exit_code == 2
    assert "line 2 is damaged and not used" in done.output


def test_the_cpu_profile_is_that_of_the_runs_that_are_kept_with_it() -> None:
    found, profile = read_store(DATA / "cpu.jsonl.xz"), load_profile("cpu")
    rows = [
        row for row in found.measurements if row.use == "fit" and row.dtype == "fp32" and case(row).family != "link"
    ]
    errors = np.abs(np.log(Predictor(rows, profile)(profile)) - np.log([row.seconds for row in rows]))
    assert np.median(errors) < 0.05
    for family in {case(row).family for row in rows}:
        assert np.median([e for e, row in zip(errors, rows, strict=True) if case(row).family == family]) < 0.15, family


# Whole mixers ---------------------------------------------------------------------------------------------------------


def test_whole_mixers_are_run_and_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    found = check("cpu", "0.2s", ("poolformer", "fnet"), 64)
    assert [(one.mixer, one.phase) for one in found] == [
        ("poolformer", "forward"), ("poolformer", "train"), ("fnet", "forward"), ("fnet", "train"),
    ]  # fmt: skip
    assert all(one.predicted_s > 0 and one.measured_s > 0 for one in found)
    print_check(found, "cpu", as_json=False)
    assert "Error: median" in capsys.readouterr().out
    print_check(found, "cpu", as_json=True)
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 4


def test_what_is_not_fused_takes_the_launch_of_each_primitive() -> None:
    # 1 s a launch and nothing else: poolformer's layer is three running sums and differences of them.
    profile = by_families()
    launches = {f"device.kernels.{family}.launch_s": number(1e-2) for family in profile.device.kernels}
    slow = placed(profile, {**launches, "device.launch_s": number(1e-2)})
    subject, way = at_width("attention", 512), Way(strategies.get("whole"), "fused", False)
    seconds = predicted_s(slow, subject, way, Workload(64, 1, "forward", True, "fp32"))
    # Four projections, attention, and rotary positions of q and k: four products, a difference, a sum and a join each.
    assert seconds == pytest.approx((4 + 1 + 2 * 7) * 1e-2, rel=0.05)
