"""Long convolutions by products with DFT matrices, against Fourier transforms and counts made by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from costmodel.arrangement import Way
from costmodel.candidates import meshes, refusals
from costmodel.carries.monarch import FACTORS, KERNELS, LONGEST, Monarch, long_convolution
from costmodel.formulas import layer_formulas
from costmodel.hardware import parse_cluster
from costmodel.plan import rank
from costmodel.recurrences.diagonal import DiagonalFilter
from costmodel.strategy import strategies
from costmodel.subject import from_mixer
from costmodel.workload import Workload
from validate.executor import Executor

WHOLE = strategies.get("whole")


@pytest.mark.parametrize(
    ("numbers", "factors", "sides"),
    [(4096, 3, (16, 16, 16)), (5000, 3, (32, 16, 16)), (1, 3, (1, 1, 1)), (2**20, 4, (32, 32, 32, 32))],
)
def test_sides_are_powers_of_two_as_equal_as_can_be(numbers: int, factors: int, sides: tuple[int, ...]) -> None:
    assert Monarch.of(Executor(torch.float64), numbers, factors).sides == sides


def test_bins_are_those_of_the_fourier_transform() -> None:
    """With k = k1 + n_1 (k2 + n_2 k3), bins lie in the order of k1, k2, k3."""
    ops = Executor(torch.float64)
    z = torch.randn(1, 1, 64, 2, dtype=torch.float64)
    transform = Monarch.of(ops, 64, 3)
    bins = torch.view_as_complex(transform.forward(ops, z, 0))[0, 0]
    expected = torch.fft.fft(torch.view_as_complex(z))[0, 0].reshape(4, 4, 4).permute(2, 1, 0).flatten()
    torch.testing.assert_close(bins, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(transform.back(ops, transform.forward(ops, z, 0), 0), z, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kernel", FACTORS)
@pytest.mark.parametrize("tokens", [1, 6, 200])
def test_kernels_agree(kernel: str, tokens: int) -> None:
    random = torch.Generator().manual_seed(tokens)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    taps = DiagonalFilter((drawn(3), drawn(3, 2), drawn(3, 2), drawn(3, 2, 2)))
    x, ops = drawn(2, 3, tokens, 1), Executor(torch.float64)
    expected, found = (long_convolution(x, taps, name, ()).whole(ops) for name in (KERNELS[0], kernel))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kernel", "tokens", "sides"), [("monarch", 4096, 3 * 16), ("monarch-outer", 2**20, 4 * 32)])
def test_products_by_hand(kernel: str, tokens: int, sides: int) -> None:
    """8 N sum(n_i) FLOP a transform: of the channels of each sequence there and back, of the filters once."""
    formulas = layer_formulas("s4d", Way(WHOLE, kernel, False), Workload(tokens)).formulas
    products = next(f.value for f in formulas if (f.part, f.name) == ("flop", "contraction"))
    batch, width = 3, 5
    transforms = (2 * batch + 1) * width * 8 * tokens * sides
    projections = 2 * 2 * batch * tokens * width**2
    counted = products.evaluate({"B": batch, "L": tokens, "D": width, "P_d": 1})
    assert counted == transforms + projections


def test_no_sequence_longer_than_fits_on_chip() -> None:
    subject, mesh = from_mixer("s4d"), meshes(1)
    way = Way(WHOLE, "monarch", False)
    assert refusals(subject.layers[0], way, Workload(LONGEST["monarch"]), mesh)[1] == []
    [reason] = refusals(subject.layers[0], way, Workload(LONGEST["monarch"] + 1), mesh)[1]
    assert reason == "the monarch kernel is for sequences of at most 32768 tokens, not 32769"


def test_longest_sequence_of_a_kernel() -> None:
    ranking = rank(from_mixer("s4d"), Workload(1024), parse_cluster("1xh100"), kernels=("monarch",))
    assert ranking.longest_of_all[0] == LONGEST["monarch"]
