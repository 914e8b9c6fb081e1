"""Every mixer side by side: its formulas where one rank has whole sequences, where they are spread, and its state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from costmodel.arrangement import Way
from costmodel.errors import InputError
from costmodel.formulas import Formula, LayerFormulas, layer_formulas, symbols_of
from costmodel.mixer import Mixer, mixers
from costmodel.ops.primitive import Reading
from costmodel.strategy import Strategy, strategies
from costmodel.subject import from_mixer
from costmodel.symbols import MEANING
from costmodel.workload import Workload


@dataclass(frozen=True)
class Entry:
    """One mixer of a survey; formulas are of a forward pass of one layer on one rank, without data parallelism.

    Attributes:
        causal: under a causal mask, as it is wherever the mixer allows it.
        whole: where one rank has whole sequences: useful FLOP by class, weights, peak of activations.
        strategy: the first, by name, that spreads a sequence of it over ranks; ``None`` where none does.
        spread: with that strategy: the same, and what a rank sends.
        state: what decoding keeps; ``None`` for a mixer without a causal mask, which does not decode.
        numbers: hyperparameters that are numbers in the formulas, by symbol.
    """

    mixer: Mixer
    causal: bool
    whole: tuple[Formula, ...]
    strategy: Strategy | None
    spread: tuple[Formula, ...]
    state: Formula | None
    numbers: dict[str, int]

    @property
    def formulas(self) -> tuple[Formula, ...]:
        """All of them."""
        return (*self.whole, *self.spread, *((self.state,) if self.state else ()))

    @property
    def main(self) -> Formula:
        """FLOP of contractions where one rank has whole sequences, or of the first class where there are none."""
        flop = {formula.name: formula for formula in self.whole if formula.part == "flop"}
        return flop.get("contraction") or next(iter(flop.values()))


def survey() -> tuple[Entry, ...]:
    """Every known mixer, by name."""
    return tuple(_entry(mixers.get(name)) for name in mixers.names())


def common_symbols(entries: tuple[Entry, ...]) -> dict[str, str]:
    """Symbols that are no mixer's own hyperparameters, and what they mean."""
    used = set().union(*(symbols_of(entry.formulas) for entry in entries))
    own = {size.symbol for entry in entries for size in entry.mixer.sizes.values()}
    return {name: meaning for name, meaning in MEANING.items() if name in used - own}


def _entry(mixer: Mixer) -> Entry:
    causal = from_mixer(mixer.name).causal
    forward, prefill = (Workload(1, 1, phase, causal) for phase in ("forward", "prefill"))
    alone = _run(mixer, strategies.get("whole"), forward)
    strategy, spread = next(_spread(mixer, forward), (None, None))
    kept = _run(mixer, strategies.get("whole"), prefill).formulas if causal else ()
    state = next((_one_replica(formula) for formula in kept if formula.name == "cache"), None)
    return Entry(
        mixer, causal, _selected(alone), strategy, _selected(spread) if spread else (), state, dict(alone.numbers)
    )


def _run(mixer: Mixer, strategy: Strategy, workload: Workload) -> LayerFormulas:
    return layer_formulas(mixer.name, Way(strategy, mixer.kernels[0], False), workload)


def _spread(mixer: Mixer, workload: Workload) -> Iterator[tuple[Strategy, LayerFormulas]]:
    """The strategies that spread a sequence of the mixer over ranks, by name."""
    for name in strategies.names():
        strategy = strategies.get(name)
        if strategy.axes:
            try:
                found = _run(mixer, strategy, workload)
            except InputError:  # it does not apply
                continue
            yield strategy, found


def _selected(found: LayerFormulas) -> tuple[Formula, ...]:
    """The formulas that a survey shows."""
    return tuple(
        _one_replica(formula)
        for formula in found.formulas
        if formula.part in ("wire", "memory") or (formula.part == "flop" and Reading.USEFUL.value in formula.detail)
    )


def _one_replica(formula: Formula) -> Formula:
    """The formula without data parallelism, P_d = 1; of FLOP, as the useful ones."""
    detail = Reading.USEFUL.value if formula.part == "flop" else formula.detail
    return replace(formula, detail=detail, value=formula.value.substitute({"P_d": 1}))
