"""Runs made up from known numbers, and how often a fit's intervals hold the numbers.

python -m calibrate.synthetic [SEEDS [FORM ...]]    of these forms or of all, so many sets of runs (400 unless given)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from msgspec import structs

from calibrate.block import BLOCKS, Block
from calibrate.fit import fit_keys
from calibrate.fitted import Fit
from calibrate.measurement import Measurement
from calibrate.predictor import Predictor
from calibrate.profile_numbers import HALF_90, started
from costmodel.hardware import Profile, load_profile
from costmodel.hardware.profile import look_up, placed
from costmodel.uncertainty import moved

Shape = Mapping[str, float]


@dataclass(frozen=True)
class Form:
    """A functional form with known numbers.

    Attributes:
        truth: the numbers, by their keys.
        shapes: sizes of the runs of each source, by kernel.
        between, within: standard deviations of logarithms of sources and of runs.
    """

    block: Block
    truth: Mapping[str, float]
    shapes: Mapping[str, Sequence[Shape]]
    between: float = 0.03
    within: float = 0.05

    def runs(self, seed: int, sources: int = 6) -> list[Measurement]:
        """Runs of some sources, with the times that the numbers predict, and errors."""
        rows = [
            Measurement("h200", kernel, "", "bf16", sizes, 1.0, "time", "", f"source {source}", "", "", "", "fit", "")
            for source in range(sources)
            for kernel, shapes in self.shapes.items()
            for sizes in shapes
        ]
        profile = moved(started(base(), self.truth), self.truth)
        random = np.random.default_rng(seed)
        offsets = np.repeat(random.normal(0, self.between, sources), len(rows) // sources)
        seconds = Predictor(rows, profile)(profile) * np.exp(offsets + random.normal(0, self.within, len(rows)))
        return [replace(row, seconds=float(value)) for row, value in zip(rows, seconds, strict=True)]

    def fit(self, seed: int, sources: int = 6) -> Fit:
        """The numbers fitted to such runs."""
        return fit_keys(self.block, self.runs(seed, sources), base(), tuple(self.truth))

    def inside(self, found: Fit) -> Iterator[bool]:
        """Whether the 90 % interval of each number contains it."""
        for key, true in self.truth.items():
            yield bool(abs(np.log(found.values[key] / true)) <= HALF_90 * found.error(key))


def base() -> Profile:
    """Where fits start: a profile without terms and correlations that a fit found."""
    profile = structs.replace(load_profile("h200"), correlations=())
    terms = (key for block in BLOCKS for term in block.terms for key in term)
    return placed(profile, {key: None for key in terms if look_up(profile, key) is not None})


def _block(name: str) -> Block:
    return next(block for block in BLOCKS if block.name == name)


def _kernel(family: str, **numbers: float) -> dict[str, float]:
    return {f"device.kernels.{family}.{name}": value for name, value in numbers.items()}


def _heads(lengths: Sequence[int]) -> list[Shape]:
    return [
        {"B": 1.0, "H": 16.0, "H_kv": 16.0, "n_q": float(n), "n_k": float(n), "d": d, "causal": causal}
        for n, d, causal in product(lengths, (64.0, 128.0), (0.0, 1.0))
    ]


FORMS = {
    "gemm": Form(
        _block("gemm"),
        _kernel("gemm", compute=0.8, memory=0.7, exposed=0.3, launch_s=5e-6),
        {
            "gemm": [
                {"M": float(m), "K": 4096.0, "N": float(n)} for m, n in product((1, 128, 256, 1024), (64, 2048, 8192))
            ]
        },
    ),
    "memory": Form(
        _block("memory"),
        {"device.launch_s": 3e-6}
        | _kernel("elementwise", memory=0.8)
        | {"device.cache_bytes": 4e7, "device.cache_bytes_per_s": 6e12},
        {"scale": [{"n": float(2**power)} for power in range(12, 30)]},
    ),
    "attention": Form(
        _block("attention"),
        _kernel("attention", compute=0.45, ramp=150.0, exposed=0.5, uneven=0.2),
        {"attention": _heads((512, 1024, 4096, 16384))},
    ),
    "link": Form(
        _block("link"),
        {
            "links[0].latency_s": 6e-6,
            "links[0].collectives.all_reduce": 3.6e11,
            "links[0].collectives.all_gather": 3.6e11,
            "links[0].switch_bytes_per_s": 2.5e11,
            "links[0].start_s": 9e-6,
            "links[0].small_latency_s": 1.2e-6,
            "links[0].small_cost": 2.5,
        },
        {
            kernel: [{"P": float(p), "bytes": float(2**n)} for p, n in product((2, 4, 8), range(10, 30, 2))]
            for kernel in ("all_reduce", "all_gather")
        },
    ),
}


def main(seeds: int, names: Sequence[str]) -> None:
    for name in names or FORMS:
        form = FORMS[name]
        inside = [list(form.inside(form.fit(seed))) for seed in range(seeds)]
        each = ", ".join(
            f"{key.rpartition('.')[2]} {part:.0%}"
            for key, part in zip(form.truth, np.mean(inside, axis=0), strict=True)
        )
        sys.stdout.write(f"{name:10} {np.mean(inside):.1%} of numbers in their 90% interval ({each})\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400, sys.argv[2:])
