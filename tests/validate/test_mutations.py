"""The comparisons can fail: a strategy or a formula that is a little wrong is found out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from costmodel.ops.contraction import Contract
from costmodel.ops.fused_attention import Attention, AttentionBackward
from costmodel.strategies.double_ring import DoubleRing
from costmodel.strategies.ring import Part, Ring
from costmodel.strategies.striped import Striped
from costmodel.strategies.ulysses import Ulysses
from costmodel.strategies.zigzag import Zigzag
from costmodel.strategy import Strategy
from costmodel.subject import from_mixer
from tests.validate.cases import Case, Outcome, check_flops, check_kept, check_values, check_wire, expected, run_case
from validate.expected import Expected
from validate.launch import RankPool

(LAYER,) = from_mixer("attention", 6, heads=4, kv_heads=2, head_dim=4).layers
RING = Case(LAYER, Ring(), {"context": 3}, length=24)
ZIGZAG = Case(LAYER, Zigzag(), {"context": 3}, length=24)
STRIPED = Case(LAYER, Striped(), {"context": 3}, length=24)
DOUBLE = Case(LAYER, DoubleRing(), {"context": 2, "ulysses": 2}, length=24)
ULYSSES = Case(LAYER, Ulysses(), {"ulysses": 2}, length=8)


class SeesTheFuture(Ring):
    later = (Part(),)


class LosesThePast(Ring):
    earlier = (Part(keys="early"),)


class TakesAllKeys(Zigzag):
    earlier = (Part(),)


class TakesAllQueries(Zigzag):
    later = (Part(),)


class SeesOneTooMany(Striped):
    later = Striped.earlier


class TakesLaterGroups(DoubleRing):
    later = DoubleRing.earlier


class OutOfScale(Ring):
    def apply(self, ops: Any, axes: Mapping[str, Any], carry: Any) -> Any:
        return super().apply(ops, axes, replace(carry, scale=carry.scale * (1 + 1e-6)))


class MixesUpHeads(Ulysses):
    def apply(self, ops: Any, axes: Mapping[str, Any], carry: Any) -> Any:
        return super().apply(ops, axes, carry.on([carry.q, carry.v, carry.k], ()))


class WrongOnTheWayBack(Ring):
    def _backward(self, *arguments: Any) -> Any:
        ops, (dq, dk, dv) = arguments[0], super()._backward(*arguments)
        return dq, ops.scale(dk, 1 + 1e-6), dv


class Talkative(Ring):
    def apply(self, ops: Any, axes: Mapping[str, Any], carry: Any) -> Any:
        ops.all_gather(ops.slice(carry.v, 3, 0, 1), axes["context"], 2)
        return super().apply(ops, axes, carry)


class Hoarding(Ring):
    def apply(self, ops: Any, axes: Mapping[str, Any], carry: Any) -> Any:
        def forward(ops: Any, q: Any) -> tuple[Any, tuple[Any, ...]]:
            return ops.scale(q, 1), (ops.scale(q, 2),)

        def backward(ops: Any, saved: tuple[Any, ...], gradient: Any) -> tuple[Any, ...]:
            return (gradient,)

        return super().apply(ops, axes, replace(carry, q=ops.custom(forward, backward, carry.q)))


def outcomes(pool: RankPool, case: Case, strategy: Strategy | None = None) -> list[Outcome]:
    """What a case does on its ranks, with another strategy in place of its own."""
    return pool.run(run_case, replace(case, strategy=strategy or case.strategy), ranks=case.ranks)


@pytest.mark.parametrize("case", [RING, ZIGZAG, ULYSSES])
def test_unchanged_strategies_pass(pool: RankPool, case: Case) -> None:
    done, known = outcomes(pool, case), expected(case)
    check_values(case, done)
    check_flops(known, done)
    check_wire(known, done)
    check_kept(known, done)


@pytest.mark.parametrize(
    ("case", "mutant", "found"),
    [
        (RING, SeesTheFuture(), "output on rank 0"),
        (RING, LosesThePast(), "output on rank 1"),
        (ZIGZAG, TakesAllKeys(), "output on rank 1"),
        (ZIGZAG, TakesAllQueries(), "output on rank 0"),
        (STRIPED, SeesOneTooMany(), "output on rank 0"),
        (DOUBLE, TakesLaterGroups(), "output on rank 0"),
        (RING, OutOfScale(), "output on rank 0"),
        (ULYSSES, MixesUpHeads(), "output on rank 0"),
        (RING, WrongOnTheWayBack(), "gradient of x on rank 0"),
    ],
)
def test_wrong_values_are_found(pool: RankPool, case: Case, mutant: Strategy, found: str) -> None:
    with pytest.raises(AssertionError, match=found):
        check_values(case, outcomes(pool, case, mutant))


Check = Callable[[Expected, list[Outcome]], None]


@pytest.mark.parametrize(
    ("mutant", "check", "found"),
    [
        (SeesTheFuture(), check_flops, "flops on rank 0"),
        (Talkative(), check_wire, "sent on rank 0 along context"),
        (Hoarding(), check_kept, "kept on rank 0"),
    ],
)
def test_wrong_counts_are_found(pool: RankPool, mutant: Strategy, check: Check, found: str) -> None:
    with pytest.raises(AssertionError, match=found):
        check(expected(RING), outcomes(pool, RING, mutant))


@pytest.mark.parametrize("primitive", [Attention, AttentionBackward, Contract])
def test_a_wrong_coefficient_is_found(pool: RankPool, monkeypatch: pytest.MonkeyPatch, primitive: type) -> None:
    honest = primitive.flops

    def flops(self: Any, *arguments: Any) -> dict[str, Any]:
        found = honest(self, *arguments)
        return {**found, "contraction": found["contraction"] + 1}

    monkeypatch.setattr(primitive, "flops", flops)
    with pytest.raises(AssertionError, match="flops on rank 0"):
        check_flops(expected(RING), outcomes(pool, RING))
