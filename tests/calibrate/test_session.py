"""A session spends its time, and goes on where the one before it ended."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from calibrate.host import HostCopy, host_copies
from calibrate.measure import VISITS, Session, expected_s
from calibrate.method import Clock, Sample, Timing
from calibrate.shapes import Shape, bytes_of
from calibrate.store import Environment, Store, key, read
from tests.calibrate.test_store import ENVIRONMENT


class Steady(Clock):
    """Every call takes a millisecond; time passes only then."""

    name = "steady"

    def __init__(self) -> None:
        self.time = 0.0

    def sample(self, work, calls: int) -> Sample:
        self.time += 1e-3 * calls
        return Sample(1e-3)

    def now(self) -> float:
        return self.time


class Maker:
    def __init__(self) -> None:
        self.made: list[Shape] = []

    def work(self, shape: Shape):
        self.made.append(shape)
        return lambda: None

    def reference(self):
        return lambda: None

    def copy(self, copy: HostCopy):
        return lambda: None


class Wire:
    """Long messages take a second, others a millisecond."""

    def __init__(self, clock: Steady) -> None:
        self.clock = clock

    def messages(self) -> Iterator[Shape]:
        sent = (("ring_shift", 1024), ("broadcast", 1024), ("ring_shift", 2**20))
        return (Shape(kernel, "fp32", {"P": 2, "bytes": size}) for kernel, size in sent)

    overlaps = messages

    def timed(self, message: Shape, budget_s: float) -> Timing:
        self.clock.time += budget_s
        return Timing.of([Sample(1.0 if message.sizes["bytes"] > 1024 else 1e-3)] * 7, 1)

    def beside(self, message: Shape, budget_s: float) -> tuple[float, float, float]:
        self.clock.time += budget_s
        return 1.0, 1.0, 1.5


def session(path: Path, budget_s: float, name: str = "a1") -> Session:
    values = {field: getattr(ENVIRONMENT, field) for field in ENVIRONMENT.__struct_fields__}
    environment = Environment(**values | {"id": name})
    return Session(Store(path, environment), environment, "cpu", budget_s, Maker(), Steady(), lambda *_: None)


def test_kernels_are_measured_until_their_time_is_spent(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    made = session(path, 2.0)
    with made.store:
        made.kernels(("fp32",), 0.5)
    found = read(path)
    assert 1.0 <= made.spent_s < 1.06  # one shape takes at most 0.05 s
    visits = Counter(key(run.measurement) for run in found.runs)
    assert len(visits) > 50 and set(visits.values()) == {1, 2}  # a round again, and its beginning once more
    times = {name: [run.at_s for run in found.runs if key(run.measurement) == name] for name in visits}
    assert min(seconds[-1] - seconds[0] for seconds in times.values() if len(seconds) > 1) > 0.4
    assert found.spent_s == made.spent_s
    assert found.drift[0].ratio == 1.0
    kernels = {run.measurement.kernel for run in found.runs}
    assert {"gemm", "exp", "softmax"} <= kernels


def test_a_session_goes_on_where_the_one_before_ended(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    once = session(whole, 4.0)
    with once.store:
        once.kernels(("fp32",), 1.0)
    for number in range(4):
        part = session(parts, 1.0 + number, f"part {number}")
        assert part.spent_s >= number
        with part.store:
            part.kernels(("fp32",), 1.0)
    shapes = [run.measurement.sizes for run in read(whole).runs]
    again = [run.measurement.sizes for run in read(parts).runs]
    shorter = min(len(shapes), len(again))
    assert again[:shorter] == shapes[:shorter]
    assert shorter > 0.8 * len(shapes)


def test_collectives_are_visited_several_times_and_long_ones_once(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    made = session(path, 60.0)
    with made.store:
        made.collectives(Wire(made.clock), 0.1, 1.0)
    runs = [(run.measurement.kernel, run.measurement.sizes["bytes"], run.measurement.use) for run in read(path).runs]
    short = [("ring_shift", 1024, "fit"), ("broadcast", 1024, "check")]
    assert runs == [*short, ("ring_shift", 2**20, "fit"), *short * (VISITS - 1)]


def test_overlaps_and_copies_are_measured_once_each(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    for name in ("a1", "a2"):
        made = session(path, 60.0, name)
        with made.store:
            made.overlaps(Wire(made.clock), 0.1, 1.0)
            made.copies(made.maker, 0.1, 1.0)
    found = read(path)
    pairs = [(pair.what, pair.bytes, pair.hidden) for pair in found.overlaps]
    assert pairs == [("ring_shift", 1024, 0.5), ("broadcast", 1024, 0.5), ("ring_shift", 2**20, 0.5)]
    copies = [HostCopy(copied.way, copied.pinned, copied.bytes) for copied in found.copies]
    assert copies == list(host_copies())


def test_launches_are_measured_once(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    for name in ("a1", "a2"):
        made = session(path, 60.0, name)
        with made.store:
            made.launches(Steady())
    (launched,) = read(path).launches
    assert (launched.environment, launched.timing.seconds) == ("a1", 1e-3)


def test_each_part_ends_when_its_time_is_spent(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    made = session(path, 24.0)  # of which one visit to a message has 24 / 240 s, one to a copy 24 / 60 s at most
    with made.store:
        made.collectives(Wire(made.clock), 1.0, 0.02)
        assert 0.02 * 24 <= made.spent_s < 0.02 * 24 + 0.11
        before = len(read(path).copies)
        made.copies(made.maker, 1.0, 0.02)
    assert before == len(read(path).copies) == 0


def test_what_takes_too_long_or_too_much_memory_is_not_measured(tmp_path: Path) -> None:
    made = session(tmp_path / "runs.jsonl", 10.0)
    with made.store:
        made.kernels(("fp32",), 1.0)
    shapes = random.Random(0).sample(made.maker.made, 40)
    assert all(expected_s(shape) <= 0.05 for shape in shapes)
    assert all(bytes_of(shape) <= 2**29 for shape in shapes)
