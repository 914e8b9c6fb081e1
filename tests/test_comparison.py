"""Mixers side by side: exact costs, the best plans, and where the order changes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from costmodel.comparison import EXACT, METRICS, Contender, Setting, compare, crossings
from costmodel.errors import InputError
from costmodel.hardware import parse_cluster
from costmodel.mixer import mixers
from costmodel.plan import rank
from costmodel.subject import at_width

LENGTHS = [2**power for power in range(8, 19)]
DEVICE = Setting(parse_cluster("1xh100"), 4096)
CLUSTER = Setting(parse_cluster("4xh100"), 2048)
NAMES = st.sampled_from(mixers.names())


def contender(name: str, setting: Setting) -> Contender:
    try:
        return Contender(name, setting)
    except InputError:
        assume(False)
        raise


@settings(max_examples=40)
@given(one=NAMES, other=NAMES, metric=st.sampled_from(EXACT))
def test_the_order_changes_at_a_crossing_and_not_just_before(one: str, other: str, metric: str) -> None:
    first, second = contender(one, DEVICE), contender(other, DEVICE)
    found = crossings(first, second, metric, LENGTHS)
    for before, change in pairwise(found):
        assert before.cheaper != change.cheaper
        assert before.length < change.length <= LENGTHS[-1]
        step = max(first.grain(metric), second.grain(metric))
        at = [change.length - step, change.length] if step < change.length else [change.length]
        costs = zip(first.values(metric, at), second.values(metric, at), strict=True)
        order = [a < b for a, b in costs if a is not None and b is not None]
        assert order == [before.cheaper, change.cheaper][-len(at) :]


def test_a_crossing_of_straight_lines_is_where_algebra_says() -> None:
    """States: 4 e d H bytes of RetNet against 2 x 2 d H L of attention, both at model width 4096."""
    found = crossings(Contender("retnet", DEVICE), Contender("attention", DEVICE), "state", LENGTHS)
    state = 4 * 16 * 256 * 512
    assert [change.cheaper for change in found] == [False, True]
    assert found[1].length - 64 <= state / (2 * 2 * 4096) < found[1].length


@pytest.mark.parametrize("name", ["attention", "mamba2"])
def test_the_time_is_of_the_plan_that_planning_finds(name: str) -> None:
    one = Contender(name, CLUSTER)
    lengths = [2**13, 2**17]
    for length, plan in zip(lengths, one.plans(lengths), strict=True):
        best = rank(one.subject, one.workload(length, "forward"), CLUSTER.cluster).best(1)[0]
        assert plan is not None
        assert plan.seconds == best.seconds
        assert (plan.arrangement, plan.mesh, plan.memory) == (best.arrangement, best.mesh, best.memory)
    assert one.values("time", lengths) == [plan.seconds for plan in one.plans(lengths) if plan]


def test_what_does_not_fit_has_no_plan() -> None:
    (sample,) = Contender("attention", Setting(parse_cluster("1xrtx4090"), 4096)).samples([2**22])
    assert sample.plan is None
    assert sample.memory > 24e9


def test_a_width_scales_heads() -> None:
    sizes = at_width("attention", 2048).layers[0].sizes
    usual = at_width("attention", 4096).layers[0].sizes
    assert (sizes["D"], 2 * sizes["H"], sizes["d"]) == (2048, usual["H"], usual["d"])


def test_a_width_that_heads_cannot_give_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"multiples of 128; nearest: 4096") as refused:
        at_width("attention", 4100)
    at_width("attention", int(str(refused.value).rpartition(" ")[2]))


def test_a_mixer_that_cannot_have_the_width_is_left_out() -> None:
    setting = Setting(parse_cluster("1xh100"), 128)
    found = compare(["attention", "mla", "mamba2"], "attention", setting, [2**12], lambda name: None)
    assert set(found.samples) | set(found.left_out) == {"attention", "mla", "mamba2"}
    assert "mamba2" in found.left_out
    assert all(set(by) == set(METRICS) for by in found.crossings.values())
