"""What a profile's formulas say of measured runs, and how that changes with its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibrate.cases import axis, program
from calibrate.measurement import Measurement
from calibrate.profile_numbers import values
from costmodel.compiled import Compiled
from costmodel.expression import Expression, lift
from costmodel.hardware.cluster import Cluster
from costmodel.hardware.profile import Profile
from costmodel.masks import Tile
from costmodel.rates import Rates
from costmodel.timing import times
from costmodel.uncertainty import moved

Floats = NDArray[np.float64]


@lru_cache(maxsize=8192)
def _seconds(row: Measurement, tile: Tile) -> Expression:
    """The formula of a run's time; a fit asks for it many times."""
    run = program(row, tile)
    return lift(times(run.forward).total + times(run.backward).total)


def _groups(row: Measurement) -> tuple[int, int]:
    """Ranks of a group that communicates, and how many groups do so at once."""
    return int(row.sizes["P"]), int(row.sizes.get("groups", 1))


def _cluster(profile: Profile, ranks: int, groups: int) -> Cluster:
    """The devices of a run; several groups are measured in one unit, of more devices than the profile's if need be."""
    devices = ranks * groups
    if groups > 1 and 0 < profile.links[0].devices < devices:
        inner = msgspec.structs.replace(profile.links[0], devices=devices)
        profile = msgspec.structs.replace(profile, links=(inner, *profile.links[1:]))
    return Cluster(profile, devices)


class Predictor:
    """Seconds of measured runs by a profile."""

    def __init__(self, measurements: Sequence[Measurement], profile: Profile) -> None:
        self.measurements = tuple(measurements)
        tile = profile.device.attention_tile
        by_dtype: dict[str, dict[str, Expression]] = {}
        for number, row in enumerate(self.measurements):
            by_dtype.setdefault(row.dtype, {})[str(number)] = _seconds(row, tile)
        self._compiled = {dtype: Compiled(formulas) for dtype, formulas in by_dtype.items()}
        self._groups = sorted({_groups(row) for row in self.measurements if "P" in row.sizes})

    def __call__(self, profile: Profile) -> Floats:
        """Seconds of each run."""
        found = np.empty(len(self.measurements))
        for dtype, compiled in self._compiled.items():
            values = Rates(Cluster(profile, 1), dtype).device(compiled.symbols)
            for ranks, groups in self._groups:
                name = axis(ranks, groups)
                symbols = [symbol for symbol in compiled.symbols if symbol.split(":")[1:2] == [name]]
                cluster, one = _cluster(profile, ranks, groups), np.ones(1)
                values |= Rates(cluster, dtype).links(symbols, {name: ranks * one}, {name: one})
            for number, seconds in compiled(values).items():
                found[int(number)] = seconds[0]
        return found


def slopes(predictor: Predictor, profile: Profile, keys: Sequence[str], step: float = 1e-5) -> Floats:
    """Derivatives of logarithms of seconds by logarithms of numbers."""
    here = np.log(predictor(profile))
    columns = []
    for key, value in values(profile, keys).items():
        there = np.log(predictor(moved(profile, {key: value * np.exp(-step)})))
        columns.append((here - there) / step)
    return np.stack(columns, axis=1) if columns else np.zeros((len(predictor.measurements), 0))
