"""The built-in profiles against figures copied by hand from the documents that they cite."""

from __future__ import annotations

import pickle

import msgspec
import pytest

from costmodel.errors import InputError, UnknownNameError
from costmodel.hardware import Profile, Quantity, load_profile, profiles
from costmodel.hardware.profile import STAND_INS, Kernels

MEASURED = ["a100", "b200", "cpu", "gb200", "h100", "h200", "l40s", "rtx4090", "rtx4090_p2p"]
LIKE_OTHERS = [
    "a10", "a100_40gb", "a100_pcie", "a10g", "a800", "h100_pcie", "h20", "h800", "l4", "l40", "mi300x", "rtx3090",
    "rtx5090", "rtx6000_ada", "rtx_a6000", "v100", "v100_16gb",
]  # fmt: skip
BUILT_IN = sorted([*MEASURED, *LIKE_OTHERS])
GPUS = ["a100", "b200", "h100", "h200", "l40s", "rtx4090"]

# TFLOP/s, dense. RTX 4090: hmc-tech, rows fp16_acc32, bf16_acc32, tf32, fp8_acc32, fp32 (the rows that
# accumulate in fp16 say twice as much). The others: ml-engineering TFLOPS table, rows A100, H100, H200, B200 SXM, L40S.
DENSE = {
    "rtx4090": {"bf16": 165.2, "fp16": 165.2, "tf32": 82.58, "fp8": 330.3, "fp32": 82.58},
    "a100": {"bf16": 312, "fp16": 312, "tf32": 156, "fp32": 19.5},
    "h100": {"bf16": 989, "fp16": 989, "tf32": 494.5, "fp8": 1979, "fp32": 67},
    "h200": {"bf16": 989, "fp16": 989, "tf32": 494.5, "fp8": 1979, "fp32": 67},
    "b200": {"bf16": 2250, "fp16": 2250, "tf32": 1125, "fp8": 4500, "fp32": 80},
    "l40s": {"bf16": 362, "fp16": 362, "tf32": 183, "fp8": 733, "fp32": 91.6},
}
# GB/s: thefpsreview for the RTX 4090, ml-engineering memory table for the others (L40S: its note).
MEMORY_GB_PER_S = {"rtx4090": 1008, "l40s": 864, "a100": 2000, "h100": 3350, "h200": 4800, "b200": 8000}
# GB/s one way, ml-engineering network README: PCIe 4 x16, NVLink 3, NVLink 4; aiconfigurator: NVLink 5.
LINE_GB_PER_S = {"rtx4090": 31, "l40s": 31, "a100": 300, "h100": 450, "h200": 450, "b200": 900}
# TFLOP/s, the fastest bf16 or fp16 matrix product anybody published for the card (for H200, of the same die):
# MAMF 178.8 at 14336x4096x4096; LLMCompass 293.0334 at 8192x16384x16384; MAMF 821.2 at 6144x17920x2816, and of B200
# 1745 at 1792x16128x3072; torch-performance-test-data 269.15 of L40S.
FASTEST_GEMM = {"rtx4090": 178.8, "l40s": 269.15, "a100": 293.04, "h100": 821.2, "h200": 821.2, "b200": 1745.0}


def quantities(noun: object, path: str = "") -> list[tuple[str, Quantity]]:
    """Every quantity below a noun, with its path."""
    if isinstance(noun, Quantity):
        return [(path, noun)]
    if isinstance(noun, tuple):
        return [found for i, child in enumerate(noun) for found in quantities(child, f"{path}[{i}]")]
    if isinstance(noun, dict):
        return [found for key, child in noun.items() for found in quantities(child, f"{path}.{key}")]
    if not isinstance(noun, msgspec.Struct):
        return []
    fields = noun.__struct_fields__
    return [found for f in fields for found in quantities(getattr(noun, f), f"{path}.{f}".lstrip("."))]


@pytest.fixture(params=BUILT_IN)
def profile(request: pytest.FixtureRequest) -> Profile:
    return load_profile(request.param)


def test_built_in_profiles_are_those_listed() -> None:
    assert profiles() == BUILT_IN


@pytest.mark.parametrize("name", BUILT_IN)
def test_name_in_file_is_file_name(name: str) -> None:
    assert load_profile(name).name == name


def test_walk_finds_every_quantity() -> None:
    # Device: 7 single numbers, 2 of the cache, 5 dense rates and 11 families of 2, of which 6 state their spread,
    # matrix products a launch and a term, attention a term and decoding a launch; two links of 3, one shared, one
    # spread and one uplink total; the host's 2; 2 each of merges, long convolutions, composition and tiles.
    # 7 + 2 + 5 + 22 + 6 + 4 + 9 + 2 + 8 = 65.
    assert len(quantities(load_profile("rtx4090"))) == 65


def test_every_number_has_source_and_range(profile: Profile) -> None:
    for path, quantity in quantities(profile):
        assert len(quantity.source) >= 12, path
        assert quantity.lo <= quantity.value <= quantity.hi, path


def test_assumed_numbers_have_a_wide_range_and_name_a_reason(profile: Profile) -> None:
    for path, quantity in quantities(profile):
        if quantity.kind == "assumed" and "peak_bytes_per_s" not in path:
            assert quantity.hi / quantity.lo >= 1.2, path
            assert len(quantity.source) >= 20, path


def test_a_profile_is_calibrated_if_it_has_fitted_numbers(profile: Profile) -> None:
    fitted = [
        path
        for path, quantity in quantities(profile)
        if quantity.kind in ("cited", "measured") and "costmodel calibrate --from " in quantity.source
    ]
    assert profile.calibrated is bool(fitted)
    assert profile.calibrated is (profile.name in MEASURED)


def test_the_card_is_the_same_with_peer_to_peer_transfers() -> None:
    assert load_profile("rtx4090_p2p").device == load_profile("rtx4090").device


@pytest.mark.parametrize("name", GPUS)
def test_dense_peaks_are_the_datasheets(name: str) -> None:
    rates = {key: quantity.value / 1e12 for key, quantity in load_profile(name).device.peak_flop_per_s.items()}
    assert rates == {f"{dtype}_dense": rate for dtype, rate in DENSE[name].items()}


@pytest.mark.parametrize("name", GPUS)
def test_bandwidths_are_the_datasheets(name: str) -> None:
    profile = load_profile(name)
    assert profile.device.memory_bytes_per_s.value == MEMORY_GB_PER_S[name] * 1e9
    assert profile.links[0].peak_bytes_per_s.value == LINE_GB_PER_S[name] * 1e9


@pytest.mark.parametrize("name", GPUS)
def test_no_matrix_kernel_beats_the_fastest_measured(name: str) -> None:
    device = load_profile(name).device
    for family in ("gemm", "attention", "attention_backward"):
        # A fitted rate is that without launch and what is exposed, and its range is of cards and of runs.
        reached = device.kernels[family].compute.hi * device.peak("bf16").value
        assert reached <= 1.06 * FASTEST_GEMM[name] * 1e12, family


def test_no_kernel_beats_the_memory(profile: Profile) -> None:
    for family, kernel in profile.device.kernels.items():
        assert kernel.memory.hi <= 1, family


def test_reserved_memory_is_a_small_part(profile: Profile) -> None:
    assert profile.device.reserved_bytes.hi < 0.1 * profile.device.memory_bytes.lo


def test_si_prefixes() -> None:
    # 24 GiB, 1008 GB/s, 165.2 TFLOP/s, 18 GB/s each for 4 cards, 25.5 GB/s, microseconds.
    card = load_profile("rtx4090")
    assert round(card.device.memory_bytes.value / 2**30, 2) == 24.0
    assert card.device.memory_bytes_per_s.value == 1_008_000_000_000
    assert card.device.peak("bf16").value == 165_200_000_000_000
    assert card.links[0].shared_bytes_per_s is not None
    assert card.links[0].shared_bytes_per_s.value == 72_000_000_000
    assert card.host.bytes_per_s.value == 25_500_000_000
    assert 1e-6 < card.device.launch_s.value < 1e-5


def test_special_functions_run_at_an_eighth_of_the_lanes() -> None:
    # RTX 4090: 82.58e12 / 2 fused multiply-adds a second on 128 lanes a SM; 16 special results a SM: / 8.
    device = load_profile("rtx4090").device
    assert device.special_op_per_s.value == pytest.approx(82.58e12 / 2 / 8, rel=2e-3)


def test_a_bf16_rate_of_geforce_accumulates_in_fp32() -> None:
    device = load_profile("rtx4090").device
    assert device.peak("bf16").value == pytest.approx(2 * device.peak("tf32").value, rel=1e-3)


def test_each_family_is_reached_by_name() -> None:
    kernels = load_profile("h100").device.kernels
    families = ("gemm", "attention", "attention_backward", "elementwise", "reduction", "gather", "copy")
    assert kernels.keys()[: len(families)] == families == Kernels.__struct_fields__[: len(families)]
    assert set(STAND_INS) == set(Kernels.__struct_fields__[len(families) :])
    assert kernels.taken("scan") is kernels.scan
    assert kernels.taken("recurrence") is kernels.elementwise
    assert kernels["gemm"] is kernels.gemm
    assert "gem" not in kernels
    with pytest.raises(UnknownNameError, match="Did you mean 'gemm'"):
        kernels["gem"]


def test_unknown_dtype_lists_the_known() -> None:
    with pytest.raises(UnknownNameError, match="Known: bf16, fp16, fp32, tf32"):
        load_profile("a100").device.peak("fp8")


def test_profiles_are_values(profile: Profile) -> None:
    copy = pickle.loads(pickle.dumps(profile))
    assert copy == profile
    assert hash(copy) == hash(profile)


def test_a_quantity_alone_checks_itself() -> None:
    with pytest.raises(InputError, match="low: 3 is not valid: must be at most the value, 2"):
        Quantity(2, "x", "cited", low=3)
    with pytest.raises(InputError, match="high: 1 is not valid: must be at least the value, 2"):
        Quantity(2, "x", "cited", high=1)
    with pytest.raises(InputError, match="source: ' ' is not valid"):
        Quantity(2, " ", "cited")
