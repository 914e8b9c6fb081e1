"""Rates of a cluster behind the symbols of time formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from msgspec import structs

from costmodel.compiled import Compiled, Tape
from costmodel.expression import symbol_named
from costmodel.hardware import Cluster, Profile, Quantity, load_profile, parse_cluster
from costmodel.hardware.profile import Kernel, Peaks, placed
from costmodel.hardware.provenance import numbers
from costmodel.moved_rates import KnownRates
from costmodel.rates import Rates, absent


def number(value: float) -> Quantity:
    return Quantity(value, "for the test", "assumed")


def plain() -> Profile:
    """An H200 without the numbers that a profile may leave out."""
    terms = [f"device.kernels.{kernel}" for kernel in ("gemm.exposed", "attention.ramp", "attention.exposed")]
    terms += [f"links[0].{name}" for name in ("start_s", "small_latency_s", "small_cost", "own_bytes_per_s")]
    return placed(structs.replace(load_profile("h200"), correlations=()), dict.fromkeys(terms))


def machine(**numbers: float) -> Profile:
    """The same with some numbers more; ``__`` stands for a dot."""
    paths = {key.replace("__", ".").replace("links.", "links[0]."): number(value) for key, value in numbers.items()}
    return placed(plain(), paths)


def device(profile: Profile, symbol: str) -> float:
    return float(np.asarray(Rates(Cluster(profile, 8), "bf16").device([symbol])[symbol]))


def link(profile: Profile, symbol: str) -> float:
    one = {"context": np.array([8.0])}, {"context": np.array([1.0])}
    return float(np.asarray(Rates(Cluster(profile, 8), "bf16").links([symbol], *one)[symbol])[0])


def test_a_family_has_its_own_launch_or_the_devices() -> None:
    profile = machine(device__kernels__gemm__launch_s=7e-6)
    assert device(profile, "launch:gemm") == 7e-6
    assert device(profile, "launch:attention") == profile.device.launch_s.value


def test_a_kernel_measured_by_itself_has_its_own_numbers() -> None:
    plain = machine()
    own = Kernel(number(0.01), number(0.3), launch_s=number(9e-6))
    profile = placed(plain, {"device.single.exp": own})
    # 67e12 FLOP/s outside matrix units, of which special functions have a part here too.
    rates = {"vector": 0.67e12, "special": 0.67e12, "memory": 0.3 * 4.8e12, "launch": 9e-6}
    for kind, rate in rates.items():
        assert device(profile, f"{kind}:elementwise:exp") == pytest.approx(rate)
        assert device(profile, f"{kind}:elementwise:add") == device(plain, f"{kind}:elementwise")
    assert dict(numbers(profile))["device.single.exp.memory"].value == 0.3
    assert hash(profile) != hash(plain)
    changed = placed(profile, {"device.single.exp.memory": number(0.4)})
    assert device(changed, "memory:elementwise:exp") == pytest.approx(0.4 * 4.8e12)


def test_a_kernel_that_widens_a_dtype_has_a_rate_of_its_own_for_it() -> None:
    plain = machine()
    widens = placed(plain, {"device.kernels.attention.flop_per_s": Peaks(bf16_dense=number(6e13))})
    assert device(widens, "matrix:attention") == 6e13
    assert device(widens, "matrix:gemm") == device(plain, "matrix:gemm")
    other = Rates(Cluster(widens, 8), "fp16").device(["matrix:attention"])["matrix:attention"]
    assert float(np.asarray(other)) == device(plain, "matrix:attention")  # both have the same peak on this machine
    moved = placed(widens, {"device.kernels.attention.flop_per_s.bf16_dense": number(7e13)})
    assert device(moved, "matrix:attention") == 7e13


def test_scores_are_all_that_is_not_products() -> None:
    core = machine(device__kernels__attention__scores_per_s=1e9)
    assert device(core, "scores:attention") == 1e-9
    assert device(core, "vector:attention") == device(core, "special:attention") == math.inf
    assert device(core, "matrix:attention") == device(machine(), "matrix:attention")


def test_spread_stretches_every_time_of_its_family() -> None:
    plain, slow = machine(), machine(device__kernels__gemm__spread=2.0)
    for rate in ("matrix", "vector", "special", "memory"):
        assert device(slow, f"{rate}:gemm") == pytest.approx(device(plain, f"{rate}:gemm") / 2)
        assert device(slow, f"{rate}:copy") == device(plain, f"{rate}:copy")
    assert device(slow, "launch:gemm") == 2 * device(plain, "launch:gemm")


def test_what_the_cache_saves() -> None:
    # 1 / (3.35e12 x 0.5) - 1 / 6.7e12 = 4 / 6.7e12 - 1 / 6.7e12 seconds a byte.
    profile = machine(device__kernels__copy__memory=0.5, device__cache_bytes=4e7, device__cache_bytes_per_s=6.7e12)
    assert device(profile, "cache") == 4e7
    assert device(profile, "saved:copy") == pytest.approx(3 / 6.7e12)
    slower = machine(device__kernels__copy__memory=0.5, device__cache_bytes=4e7, device__cache_bytes_per_s=1e12)
    assert device(slower, "saved:copy") == 0


def test_rates_of_a_link() -> None:
    profile = machine(links__start_s=8e-6, links__small_latency_s=1e-6, links__small_cost=2.5, links__latency_s=5e-6)
    assert link(profile, "start:context") == 8e-6
    assert link(profile, "sooner:context") == pytest.approx(4e-6)
    assert link(profile, "dearer:context") == pytest.approx(1.5)
    slow = machine(links__spread=2.0)
    for symbol in ("latency:context:all_gather", "tree:context", "seconds_per_byte:context:all_gather"):
        assert link(slow, symbol) == pytest.approx(2 * link(machine(), symbol))
    assert (
        link(machine(), "own:context")
        == link(machine(), "start:context")
        == link(machine(), "sooner:context")
        == link(machine(), "dearer:context")
        == 0
    )


def test_rates_that_a_profile_does_not_have_are_left_out_of_formulas() -> None:
    symbols = ["exposed:gemm", "ramp:attention", "cache", "saved:copy", "start:context", "matrix:gemm", "L"]
    assert absent(plain(), symbols) == frozenset(symbols[:5])
    assert absent(load_profile("rtx4090"), symbols) == {"start:context"}
    x, zero = symbol_named("x"), symbol_named("exposed:gemm")
    formula = x * x + zero * x + 1
    compiled = Compiled({"y": formula}, Tape(zero=lambda name: name == "exposed:gemm"))
    assert compiled.symbols == {"x"}
    assert compiled({"x": np.array([2.0, 3.0])})["y"].tolist() == [5.0, 10.0]


def test_rates_known_for_every_span_are_those_looked_up_for_one() -> None:
    cluster = parse_cluster("16xh100")
    sizes, strides = {"context": np.array([4.0, 8.0])}, {"context": np.array([4.0, 1.0])}
    symbols = ["latency:context:all_gather", "seconds_per_byte:context:ring_shift", "start:context"]
    found = KnownRates(cluster, "bf16").links(symbols, (sizes, strides))
    for symbol, expected in Rates(cluster, "bf16").links(symbols, sizes, strides).items():
        assert found[symbol].tolist() == np.asarray(expected).tolist()
    with pytest.raises(ValueError, match="mesh of 16 devices"):
        KnownRates(cluster, "bf16").links(symbols, ({"context": np.array([3.0])}, {"context": np.array([1.0])}))
