"""Prefill that follows on cached tokens: the same cases and counts as without, and the source's message sizes."""

from __future__ import annotations

from fractions import Fraction

import pytest

from costmodel.errors import InputError
from costmodel.strategy import strategies
from costmodel.subject import from_mixer
from costmodel.workload import Workload
from tests.validate.cases import Case, check_case, expected
from tests.validate.drawing import refusal
from validate.launch import RankPool

(GQA,) = from_mixer("attention", 6, heads=4, kv_heads=2, head_dim=4).layers
(MLA,) = from_mixer("mla", 6, heads=2, q_rank=3, kv_rank=3, nope_dim=2, rope_dim=2, value_dim=3).layers
LAYERS = {"attention": GQA, "mla": MLA}
SPREADING = [name for name in strategies.names() if strategies.get(name).extends and strategies.get(name).axes]


def prefill(strategy: str, ranks: int, length: int, cached: int, **options: object) -> Case:
    """Of one sequence, by grouped-query attention, on so many ranks along each axis of the strategy."""
    found = strategies.get(strategy)
    spread = {"strategy": found, "mesh": dict.fromkeys(found.axes, ranks)}
    return Case(**{"layer": GQA, "length": length, "cached": cached, "phase": "prefill", **spread, **options})


@pytest.mark.slow
@pytest.mark.parametrize("mixer", LAYERS)
@pytest.mark.parametrize("strategy", SPREADING)
def test_values_and_counts(pool: RankPool, mixer: str, strategy: str) -> None:
    axes = len(strategies.get(strategy).axes)
    sizes = [(2, 8, 12)] if axes == 2 else [(2, 4, 6)] if "ulysses" in strategy else [(2, 4, 6), (3, 12, 3)]
    for ranks, length, cached in sizes:
        case = prefill(strategy, ranks, length, cached, layer=LAYERS[mixer], dtype="bf16", batch=2)
        check_case(pool, case)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["fused", "vanilla"])
def test_on_one_rank(pool: RankPool, kernel: str) -> None:
    case = prefill("whole", 1, 3, 5, kernel=kernel)
    check_case(pool, Case(case.layer, case.strategy, {}, 3, kernel=kernel, phase="prefill", cached=5))


def sent_bytes(strategy: str, length: int, cached: int, ranks: int = 4, **options: object) -> int:
    """What a rank sends in bf16, along all axes."""
    sent = expected(prefill(strategy, ranks, length, cached, dtype="bf16", **options)).sent(0)
    return sum(traffic.bytes for traffic in sent.values())


def test_message_sizes() -> None:
    # Yang et al., section 3.2: of Q, T D e; of K and V, 2 (T + P) D e H_kv / H; each rank sends its 4th 3 times.
    # Here T = 8 new, P = 24 cached, D = H d = 4 x 4, H_kv / H = 2 / 4, e = 2.
    for strategy in ("zigzag", "all-gather"):
        assert sent_bytes(strategy, 8, 24) == 3 * 2 * (8 + 24) * 16 * 2 // 2 // 4
    # Partial outputs and 4-byte log-sum-exps come back by all-to-all: (N - 1) (D + H) T / N (appendix C).
    assert sent_bytes("pass-q", 8, 24) == 3 * (8 * 16 * 2 + 8 * 16 * 2 + 8 * 4 * 4) // 4
    # Of 2 ranks, each has half of the tokens and keeps half of their heads: of Q, of K and V, and of the output.
    assert sent_bytes("ulysses", 8, 24, ranks=2) == (2 * 8 * 16 + 2 * (8 + 24) * 16 // 2) * 2 // 4


@pytest.mark.parametrize(("length", "cached"), [(8, 0), (8, 8), (8, 16), (8, 24), (8, 56)])
def test_the_smaller_message_by_the_rate_of_cache_hits(length: int, cached: int) -> None:
    # Equation 1: queries are the smaller message where T / (T + P) <= 2 H_kv / H, which here is 1 / 4.
    (layer,) = from_mixer("attention", 8, heads=8, kv_heads=1, head_dim=2).layers
    queries, keys = (
        expected(prefill(name, 2, length, cached, layer=layer, dtype="bf16")).sent(0)["context"].bytes
        for name in ("pass-q", "ring")
    )
    returned = length * 8 * (2 * 2 + 4) // 2
    assert (queries - returned <= keys) == (Fraction(length, length + cached) <= Fraction(1, 4))


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (prefill("ring", 2, 4, 3), "3 cached tokens do not divide over 2 x 1 ranks"),
        (prefill("ulysses-ring", 2, 4, 6), "6 cached tokens do not divide over 2 x 2 ranks"),
        (prefill("all-gather-latent", 2, 4, 4, layer=MLA), "it does not spread cached tokens"),
        (prefill("ring", 2, 4, 4, causal=False), "cached tokens do not see new ones"),
        (prefill("state-gather", 2, 128, 4, layer=from_mixer("linear-attention").layers[0]), "from its first token on"),
    ],
)
def test_refusals(case: Case, reason: str) -> None:
    assert reason in str(refusal(case))


@pytest.mark.parametrize("phase", ["forward", "train", "decode"])
def test_only_a_prefill_has_cached_tokens(phase: str) -> None:
    with pytest.raises(InputError, match="only a prefill adds to a cache"):
        Workload(8, phase=phase, cached=8)  # type: ignore[arg-type]
