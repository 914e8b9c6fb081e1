"""Every mixer, spread by every strategy, on real ranks: values, gradients, FLOPs, bytes and memory, all exact."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.mixer import Mixer, mixers
from costmodel.strategy import Strategy, strategies
from costmodel.subject import from_mixer
from tests.validate.cases import Case, check_case
from tests.validate.drawing import cases, refusal
from validate.launch import RankPool


def applies(mixer: Mixer, strategy: Strategy) -> bool:
    """Whether the strategy knows the mixer's carry, and has heads to cut or a window to look into if it needs them."""
    (layer,) = from_mixer(mixer.name).layers
    one_head = mixer.query_heads(layer.sizes)[0] == 1
    known = any(issubclass(mixer.carry_for(causal), strategy.carries) for causal in (True, False))
    no_window = "window" not in mixer.sizes and strategy.windowed
    return known and not no_window and not (one_head and strategy.cuts_heads)


PAIRS = [
    (mixer, strategy)
    for mixer in mixers.names()
    for strategy in strategies.names()
    if applies(mixers.get(mixer), strategies.get(strategy))
]


def few() -> set[tuple[str, str]]:
    """Pairs with each mixer once and each strategy at least once: for each mixer the strategy that has the fewest."""
    count = dict.fromkeys(sorted({strategy for _, strategy in PAIRS}), 0)
    chosen = set()
    for mixer in dict.fromkeys(mixer for mixer, _ in PAIRS):
        strategy = min((strategy for other, strategy in PAIRS if other == mixer), key=lambda name: count[name])
        chosen.add((mixer, strategy))
        count[strategy] += 1
    left = [strategy for strategy, times in count.items() if times == 0]
    return chosen | {next(pair for pair in PAIRS if pair[1] == strategy) for strategy in left}


FEW = few()


@pytest.mark.parametrize(
    ("mixer", "strategy"), [pytest.param(*pair, marks=[] if pair in FEW else pytest.mark.slow) for pair in PAIRS]
)
def test_run_equals_template_and_formulas(pool: RankPool, mixer: str, strategy: str) -> None:
    @settings(max_examples=3)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        check_case(pool, data.draw(cases(mixers.get(mixer), strategies.get(strategy))))

    check()


@pytest.mark.parametrize("length", [29, 32])
def test_longnet_decodes_where_a_branch_has_the_turn_of_no_head(pool: RankPool, length: int) -> None:
    """Two heads, of which a branch that sees every fourth token has the first two turns of four."""
    sizes = {"heads": 2, "head_dim": 4, "kept": 2, "branches": 3, "dilation": 2, "growth": 2}
    (layer,) = from_mixer("longnet", 5, **sizes).layers
    for mesh in ({}, {"tensor": 2}):
        check_case(pool, Case(layer, strategies.get("whole"), mesh, length, phase="decode"))


@pytest.mark.parametrize(
    ("mixer", "sizes", "least", "piece"),
    [
        ("bigbird", {"heads": 2, "head_dim": 2, "block": 2, "random": 3}, 16, 2),
        ("longformer", {"heads": 2, "head_dim": 2, "side": 3, "globals": 2}, 5, 1),
    ],
)
def test_ranks_hold_as_many_tokens_as_a_pattern_names_and_no_fewer(
    pool: RankPool, mixer: str, sizes: dict[str, int], least: int, piece: int
) -> None:
    """Blocks of BigBird see 5 + n_r others; global tokens of Longformer are not in the window of the next rank."""
    (layer,) = from_mixer(mixer, 3, **sizes).layers
    case = Case(layer, strategies.get("pattern-exchange"), {"context": 2}, 2 * least, causal=False)
    check_case(pool, case)
    assert str(least) in str(refusal(replace(case, length=2 * (least - piece))))
