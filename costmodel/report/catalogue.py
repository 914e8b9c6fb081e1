"""The answer of ``costmodel list``: mixers, strategies and hardware profiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from costmodel.carry import Structure
from costmodel.hardware import Profile, Quantity, load_profile, profiles
from costmodel.hardware.provenance import kinds as kinds_of
from costmodel.hardware.provenance import numbers
from costmodel.hardware.quantity import ALLOWED
from costmodel.mixer import Mixer, mixers
from costmodel.report import data
from costmodel.report.page import Page
from costmodel.strategy import Strategy, strategies
from costmodel.subject import MASKED
from costmodel.units import format_bytes, format_rate, format_seconds

NAMES: dict[str, Callable[[], list[str]]] = {
    "mixers": mixers.names,
    "strategies": strategies.names,
    "profiles": profiles,
}


def names(kind: str) -> list[str]:
    """Every known name of a kind."""
    return NAMES[kind]()


def print_catalogue(kinds: Sequence[str], chosen: Sequence[str], verbose: bool) -> None:
    """A table of each kind, or all about the chosen ones."""
    tables: dict[str, Callable[[Page], None]] = {
        "mixers": _mixer_table,
        "strategies": _strategy_table,
        "profiles": _profile_table,
    }
    single: dict[str, Callable[[Page, str], None]] = {
        "mixers": _print_mixer,
        "strategies": _print_strategy,
        "profiles": _print_profile,
    }
    with Page() as page:
        for kind in kinds:
            if chosen or verbose:
                for name in chosen or names(kind):
                    single[kind](page, name)
            else:
                tables[kind](page)


# Mixers and strategies ----------------------------------------------------------------------------------------------


def _mixer_table(page: Page) -> None:
    """A table for each structure of the token-mixing matrix."""
    found = [mixers.get(name) for name in names("mixers")]
    page.line(f"{len(found)} mixers, by the structure of the matrix P in Y = P(X) V(X)", "bold")
    for structure in Structure:
        rows = [[mixer.name, mixer.title, _carry(mixer)] for mixer in found if mixer.structure is structure]
        if rows:
            page.heading(f"{structure.value[0].upper()}{structure.value[1:]}")
            page.table(["mixer", "", "what crosses a cut"], rows, whole=["mixer"])


def _print_mixer(page: Page, name: str) -> None:
    mixer = mixers.get(name)
    page.heading(mixer.name)
    page.facts(
        [
            ("What", mixer.title),
            ("Template", mixer.template),
            ("Structure", mixer.structure.value),
            ("Carry", _carry(mixer)),
            ("Defined", MASKED[mixer.causality]),
            ("Kernels", ", ".join(mixer.kernels)),
            ("Source", mixer.source),
        ]
    )
    rows = [[key, size.symbol, f"{size.usual}", size.meaning] for key, size in mixer.sizes.items()]
    page.table(["--set", "symbol", "usual", "meaning"], rows, right=["usual"])


def _carry(mixer: Mixer) -> str:
    causal, full = (mixer.carry_for(mask).kind for mask in (True, False))
    return causal if causal == full or mixer.causality != "either" else f"{causal}; without a mask: {full}"


def _strategy_table(page: Page) -> None:
    found = [strategies.get(name) for name in names("strategies")]
    rows = [
        [strategy.name, strategy.title, " x ".join(strategy.axes) or "none", _carries(strategy)] for strategy in found
    ]
    page.table(["strategy", "", "axes", "combines"], rows, whole=["strategy"])


def _print_strategy(page: Page, name: str) -> None:
    strategy = strategies.get(name)
    page.heading(strategy.name)
    page.facts(
        [
            ("What", strategy.title),
            ("Axes", " x ".join(strategy.axes) or "none: every rank has whole sequences"),
            ("Layout", strategy.layout),
            ("Combines", _carries(strategy)),
            ("Source", strategy.source),
        ]
    )


def _carries(strategy: Strategy) -> str:
    return "; ".join(getattr(carry, "kind", "anything") for carry in strategy.carries)


# Profiles -----------------------------------------------------------------------------------------------------------


def _profile_table(page: Page) -> None:
    rows = []
    for name in names("profiles"):
        profile = load_profile(name)
        said = ", ".join(f"{count} {kind}" for kind, count in kinds_of(profile).items())
        rows.append([profile.name, profile.title, _rests_on(profile), said])
    page.table(["profile", "", "calibrated", "numbers"], rows)


def _rests_on(profile: Profile) -> str:
    """Whether a profile is calibrated, or which one its kernels are from."""
    if profile.like and not profile.calibrated:
        return f"as {profile.like.profile}"
    return "yes" if profile.calibrated else "no"


def _print_profile(page: Page, name: str) -> None:
    profile = load_profile(name)
    page.heading(profile.name)
    calibrated = "fitted to measured runs" if profile.calibrated else "no: put together from the sources below"
    facts = [("What", profile.title), ("Calibrated", calibrated)]
    if profile.like:
        facts.append(("Like", f"{profile.like.profile}, {profile.like.die} die: what is not known of this device"))
    page.facts(facts)
    page.gap()
    for path, quantity in numbers(profile):
        page.line(f"{path}  {_written(path, quantity)}  ({quantity.kind})", "cyan")
        page.indented(" ".join(quantity.source.split()), 4)


def _written(path: str, quantity: Quantity) -> str:
    shown = _in_units(path, quantity.value)
    if quantity.low is None and quantity.high is None:
        return shown
    return f"{shown}, from {_in_units(path, quantity.lo)} to {_in_units(path, quantity.hi)}"


def _in_units(path: str, value: float) -> str:
    """A number of a profile with its unit, which its key decides."""
    unit = ALLOWED[path.rpartition(".")[2]].unit
    formats: dict[str, Callable[[float], str]] = {
        "bytes": format_bytes,
        "bytes/s": lambda number: format_rate(number, "B"),
        "FLOP/s": lambda number: format_rate(number, "FLOP"),
        "operations/s": lambda number: format_rate(number, "op"),
        "seconds": format_seconds,
    }
    return formats[unit](value) if unit in formats else f"{value:.3g} {unit}"


# JSON ---------------------------------------------------------------------------------------------------------------


def as_json(kinds: Iterable[str], chosen: Sequence[str]) -> str:
    """The document of ``costmodel list``."""
    entry: dict[str, Callable[[str], dict[str, Any]]] = {
        "mixers": lambda name: _mixer_data(mixers.get(name)),
        "strategies": lambda name: _strategy_data(strategies.get(name)),
        "profiles": lambda name: _profile_data(load_profile(name)),
    }
    return data.dump("list", {kind: [entry[kind](name) for name in chosen or names(kind)] for kind in kinds})


def _mixer_data(mixer: Mixer) -> dict[str, Any]:
    sizes = {
        key: {"symbol": size.symbol, "usual": size.usual, "meaning": size.meaning} for key, size in mixer.sizes.items()
    }
    return {
        "name": mixer.name,
        "title": mixer.title,
        "template": mixer.template,
        "structure": mixer.structure.value,
        "carry": mixer.carry.kind,
        "causality": mixer.causality,
        "kernels": list(mixer.kernels),
        "hyperparameters": sizes,
        "source": mixer.source,
    }


def _strategy_data(strategy: Strategy) -> dict[str, Any]:
    return {
        "name": strategy.name,
        "title": strategy.title,
        "axes": list(strategy.axes),
        "layout": strategy.layout,
        "carries": _carries(strategy),
        "source": strategy.source,
    }


def _profile_data(profile: Profile) -> dict[str, Any]:
    found = [
        {
            "key": path,
            "unit": ALLOWED[path.rpartition(".")[2]].unit,
            "value": quantity.value,
            "low": quantity.lo,
            "high": quantity.hi,
            "kind": quantity.kind,
            "source": " ".join(quantity.source.split()),
        }
        for path, quantity in numbers(profile)
    ]
    return {
        "name": profile.name,
        "title": profile.title,
        "calibrated": profile.calibrated,
        "like": msgspec.to_builtins(profile.like),
        "provenance": kinds_of(profile),
        "numbers": found,
    }
