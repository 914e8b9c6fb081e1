"""Formulas of modules that know nothing of this project, against formulas by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner, Result
from torch import Tensor, nn

from costmodel.cli.main import main
from costmodel.errors import InputError
from costmodel.expression import exact_call
from costmodel.expression import symbol_named as symbol
from examples.transformer_block import Block
from validate.counting import FlopCounter
from validate.interpolation import HeldOutError, NotPolynomialError, interpolate
from validate.module_trace import Input, Question, load_module, parse_size, trace_module

ROOT = Path(__file__).resolve().parents[2]
B, D, FF, H, L, T, V, d, n = (symbol(name) for name in ("B", "D", "F", "H", "L", "T", "V", "d", "n"))


def formulas(make, init: Mapping[str, object], *inputs: str, dtype=torch.float32, backward=False) -> dict[str, Any]:
    """By part and name; sizes as text."""
    arguments = {key: parse_size(x, key) if isinstance(x, str) else x for key, x in init.items()}
    shapes = [tuple(parse_size(size, "--input") for size in shape.split(",")) for shape in inputs]
    asked = Question("here.py:it", make, arguments, tuple(Input(shape, dtype) for shape in shapes), backward)
    return {f"{formula.part} {formula.name}": formula.value for formula in trace_module(asked).formulas}


def test_a_linear_layer_forward_and_backward() -> None:
    found = formulas(nn.Linear, {"in_features": "D", "out_features": "F"}, "B,L,D", backward=True)
    assert found == {
        "forward contraction": 2 * B * L * D * FF,
        "forward elementwise": B * L * FF,  # the bias
        "backward contraction": 4 * B * L * D * FF,
        "backward reduction": B * L * FF,
        "memory parameters": (D + 1) * FF,
        "memory bytes saved for backward": 4 * B * L * D,  # x in float32
    }


def test_cross_attention_of_torch() -> None:
    width = H * d
    found = formulas(
        nn.MultiheadAttention, {"embed_dim": "H*d", "num_heads": "H", "batch_first": True}, "B,L,H*d", *["B,T,H*d"] * 2
    )
    assert found["forward contraction"] == 4 * B * (L + T) * width * width + 4 * B * L * T * width
    assert found["memory parameters"] == 4 * width * (width + 1)
    # one exponential and a sum and a maximum for every score; the average over heads is a sum more
    assert found["forward special"] == B * H * L * T
    assert found["forward reduction"] == 3 * B * H * L * T


class Softmax(nn.Module):
    """Attention of one head, written out."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ((q / 8) @ k.mT).softmax(-1) @ v


def test_attention_written_out_keeps_its_scores() -> None:
    found = formulas(Softmax, {}, "B,L,d", "B,T,d", "B,T,n", backward=True)
    pairs = B * L * T
    assert found["forward contraction"] == 2 * pairs * (d + n)
    assert found["backward contraction"] == 4 * pairs * (d + n)
    assert found["forward elementwise"] == B * L * d + 2 * pairs  # scale; subtract, divide
    assert found["memory bytes saved for backward"] == 4 * (B * L * d + B * T * (d + n) + pairs)


class Recall(nn.Module):
    """Each token attends to all before it, one token after the other: 2 (t + 1) D FLOP for scores, as many to mix."""

    def forward(self, x: Tensor) -> Tensor:
        rows = []
        for t in range(x.shape[1]):
            seen = x[:, : t + 1]
            rows.append((seen @ x[:, t, :, None]).mT @ seen)
        return torch.cat(rows, 1)


def test_a_loop_over_the_sequence_is_run() -> None:
    assert formulas(Recall, {}, "2,L,5")["forward contraction"] == 2 * 2 * 5 * L * (L + 1)


class Steps(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for token in x.unbind(1):
            state = self.cell(token, state)
        return state[0]


@pytest.mark.parametrize(
    ("make", "init", "gates"),
    [
        (nn.LSTM, {"input_size": "D", "hidden_size": 5, "batch_first": True}, 4),
        (nn.GRU, {"input_size": "D", "hidden_size": 5, "batch_first": True}, 3),
        (Steps, {"width": "D", "hidden": 5}, 4),
    ],
)
def test_recurrent_cells(make, init, gates: int) -> None:
    found = formulas(make, init, "2,L,D")
    assert found["forward contraction"] == 2 * gates * 2 * L * 5 * (D + 5)
    assert found["memory parameters"] == gates * 5 * (D + 5 + 2)


def test_a_depthwise_convolution_takes_twice_its_flop_backward() -> None:
    init = {"in_channels": "D", "out_channels": "D", "kernel_size": 4, "groups": "D", "padding": 3}
    found = formulas(nn.Conv1d, init, "B,D,L", backward=True)
    outputs = B * D * (L + 3)
    assert found["forward elementwise"] == 2 * 4 * outputs + outputs  # four taps, and the bias
    assert found["backward elementwise"] == 2 * 2 * 4 * outputs
    assert not any("contraction" in name for name in found)


@pytest.mark.parametrize("make", [nn.Conv1d, nn.ConvTranspose1d])
def test_a_grouped_convolution_takes_twice_its_flop_backward(make) -> None:
    init = {"in_channels": "3*D", "out_channels": "3*F", "kernel_size": 5, "groups": 3, "padding": 2, "bias": False}
    found = formulas(make, init, "B,3*D,L", backward=True)
    assert found["forward contraction"] == 2 * 5 * B * L * 3 * D * FF
    assert found["backward contraction"] == 2 * found["forward contraction"]


class LongConvolution(nn.Module):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        n = 2 * x.shape[-1]
        return torch.fft.irfft(torch.fft.rfft(x, n) * torch.fft.rfft(h, n), n)


def test_fourier_transforms_have_logarithms() -> None:
    found = formulas(LongConvolution, {}, "B,D,L", "D,L")
    assert found["forward fft"] == 5 * L * (2 * B * D + D) * exact_call("log2", 2 * L)
    assert found["forward elementwise"] == 6 * B * D * (L + 1)  # complex products of half the spectrum


class Mixing(nn.Module):
    """FNet's, with a transform of length 48 of real numbers beside it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(x).real + torch.fft.fft(x[..., :1], 48)[..., :1].real


def test_a_transform_of_two_axes_and_of_a_number() -> None:
    found = formulas(Mixing, {}, "B,L,D")["forward fft"]
    assert found == 5 * B * L * D * exact_call("log2", L * D) + Fraction(5, 2) * 48 * B * L * exact_call("log2", 48)


def test_sorts_have_logarithms() -> None:
    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sort(-1).values + x.topk(4, -1).values.sum(-1, keepdim=True)

    assert formulas(Sorted, {}, "B,L")["forward sort"] == B * L * exact_call("log2", L) + 3 * B * L


def test_complex_products_are_four_real_ones() -> None:
    class Product(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x @ y

    found = formulas(Product, {}, "B,L,D", "B,D,T", dtype=torch.complex64, backward=True)
    assert found["forward contraction"] == 8 * B * L * D * T
    assert found["backward contraction"] == 16 * B * L * D * T


def test_tokens_and_a_loss() -> None:
    class Model(nn.Module):
        def __init__(self, tokens: int, dim: int) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(tokens, dim), nn.Linear(dim, tokens, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return F.cross_entropy(self.head(self.embed(tokens)).flatten(0, 1), tokens.flatten())

    found = formulas(Model, {"tokens": "V", "dim": "D"}, "B,L", dtype=torch.int64, backward=True)
    assert found["forward contraction"] == 2 * B * L * D * V
    assert found["backward contraction"] == 4 * B * L * D * V
    assert found["memory parameters"] == V * D  # shared, once


@pytest.mark.parametrize(("b", "length", "heads", "dim"), [(2, 33, 4, 16), (5, 8, 2, 24)])
def test_a_transformer_block_counts_what_torch_counts(b: int, length: int, heads: int, dim: int) -> None:
    found = formulas(Block, {"dim": "H*d", "heads": "H"}, "B,L,H*d", backward=True)
    width = H * d
    assert found["forward contraction"] == 24 * B * L * width * width + 4 * B * L * L * width
    assert found["memory parameters"] == 12 * width * width + 13 * width
    module, x = Block(heads * dim, heads), torch.zeros(b, length, heads * dim, requires_grad=True)
    with FlopCounter() as counter:
        module(x).sum().backward()
    both = found["forward contraction"] + found["backward contraction"]
    assert both.evaluate({"B": b, "L": length, "H": heads, "d": dim}) == counter.total


class Stochastic(nn.Module):
    """Its constructor asks for values of a tensor, and it has tied weights, a recurrent cell and a buffer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.rates = [rate.item() for rate in torch.linspace(0, 0.5, 3)]
        self.one, self.other, self.cell = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.GRU(dim, dim)
        self.other.weight = self.one.weight
        self.register_buffer("scale", torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(self.other(self.one(x * self.scale)) * self.rates[1])[0]


def test_a_constructor_may_ask_for_values() -> None:
    found = formulas(Stochastic, {"dim": "D"}, "3,D")
    assert found["forward contraction"] == 3 * (4 + 12) * D * D
    assert found["memory parameters"] == 7 * D * D + 8 * D


# What is refused ----------------------------------------------------------------------------------------------------


class Chunked(nn.Module):
    """Sums of 16 tokens, the last ones filled up."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, -x.shape[-1] % 16)).unflatten(-1, (-1, 16)).exp().sum(-1)


class Long(nn.Module):
    """Takes another way from 30 tokens on."""

    def forward(self, x: Tensor) -> Tensor:
        return x.exp() if x.shape[-1] < 30 else x


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, ::2].exp()


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp() if x.sum() > 0 else x


class Thrice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(x.shape[-1]):
            x = torch.fft.fft(x).real
        return x


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.qr(x).R


@pytest.mark.parametrize(
    ("make", "shape", "told"),
    [
        (
            Chunked,
            "B,L",
            ["symbol: 'L'", "at B = 3, L = ", "by the formula of other sizes", "give 16*n in place of L"],
        ),
        (
            Halves,
            "B,L",
            ["symbol: 'L'", "at L = 10, 11, 12, 13, 14, 15, 16 is 60, 72, 72,", "16*n in place of L"],
        ),
        (Long, "B,L", ["symbol: 'L'", "at B = 3, L = ", " is 0, but", "branches on a size"]),
        (Decides, "B,L", ["values of tensors", "_local_scalar_dense"]),
        (Thrice, "B,L", ["symbol: 'L'", "10 transforms and sorts at B = 3, L = 10, but 11 at", "give a number"]),
        (Unknown, "B,L", ["aten.linalg_qr.default", "not known"]),
    ],
)
def test_what_no_formula_says_is_refused(make, shape: str, told: list[str]) -> None:
    with pytest.raises(InputError) as error:
        formulas(make, {}, shape)
    assert [part for part in told if part not in str(error.value)] == []


def test_pieces_that_are_said_have_formulas() -> None:
    assert formulas(Chunked, {}, "B,16*n")["forward special"] == 16 * B * n


def test_sizes_that_must_divide_are_refused_until_they_are_products() -> None:
    with pytest.raises(InputError, match=r"fails at D = 3, H = 10.*heads do not divide.*dim=H\*d"):
        formulas(Block, {"dim": "D", "heads": "H"}, "B,L,D")


def test_a_kernel_longer_than_the_smallest_sequence_is_no_obstacle() -> None:
    init = {"in_channels": "D", "out_channels": "F", "kernel_size": 20, "bias": False}
    assert formulas(nn.Conv1d, init, "B,D,L")["forward contraction"] == 40 * B * D * FF * (L - 19)


def test_interpolation_refuses_what_is_no_polynomial() -> None:
    with pytest.raises(NotPolynomialError):
        interpolate(lambda at: {"steps": at["L"] // 2}, ["L"], 3)
    with pytest.raises(NotPolynomialError):
        interpolate(lambda at: {"high": at["L"] ** 5}, ["L"], 3)
    with pytest.raises(HeldOutError):
        interpolate(lambda at: {"most": max(at["L"], at["T"])}, ["L", "T"], 3)


# The command line ---------------------------------------------------------------------------------------------------

FILE = str(ROOT / "examples" / "transformer_block.py")


def run(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "80"}).invoke(main, ["trace", *arguments])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([f"{FILE}:Block", "--input", "B,L,D"], "missing a required argument: 'dim'"),
        ([f"{FILE}:Block", "--init", "width=D", "--input", "B,L,D"], "the constructor takes (dim: "),
        ([f"{FILE}:Block", "--init", "dim", "--input", "B,L,D"], "must be a name and a value"),
        ([f"{FILE}:Block", "--init", "dim=D", "--init", "dim=D", "--input", "B,L,D"], "dim is given twice"),
        ([f"{FILE}:Block", "--init", "dim=64", "--init", "heads=4", "--input", "B,L,H+1"], "'H+1' is not valid"),
        ([f"{FILE}:Block", "--init", "dim=64", "--init", "heads=4"], "the shape of every tensor"),
        ([f"{FILE}:Block", "--init", "dim=64", "--init", "heads=4", *["--input", "B,L,64"] * 2], "forward takes"),
        ([f"{FILE}:Block", "--init", "dim=64", "--init", "heads=4", "--input", "B,L,63"], "Given normalized_shape"),
        ([f"{FILE}:Block", "--input", "B", "--input-dtype", "int46"], "no dtype named 'int46'"),
        ([f"{FILE}:Blocks", "--input", "B"], "Did you mean 'Block'"),
        (["nowhere.py:Block", "--input", "B"], "there is no such file"),
        (["Block", "--input", "B"], "must be a file and a name"),
    ],
)
def test_bad_input_is_told_without_a_traceback(arguments: list[str], told: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert told in result.output
    assert "Traceback" not in result.output


def test_without_torch_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    result = run(f"{FILE}:Block", "--input", "B,L,D")
    assert (result.exit_code, "pip install 'costmodel[validate]'" in result.output) == (2, True)


def test_every_notation_has_the_same_formulas() -> None:
    arguments = [f"{FILE}:Block", "--init", "dim=64", "--init", "heads=4", "--input", "B,L,64"]
    document = json.loads(run(*arguments, "--json").stdout)
    assert document["schema"] == "costmodel.trace/1"
    assert document["symbols"] == {"B": "axis 0 of x", "L": "axis 1 of x"}
    (contraction,) = (x for x in document["formulas"] if x["name"] == "contraction")
    assert eval(contraction["python"], {"B": 2, "L": 10}) == 24 * 2 * 10 * 64**2 + 4 * 2 * 10**2 * 64
    for style in ("--latex", "--markdown"):
        assert contraction["latex"] in run(*arguments, style).stdout
    assert "256·B·L·(L + 384)" in run(*arguments).stdout


def test_what_a_module_prints_is_kept_out_of_the_answer(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(
        "import torch\nclass Loud(torch.nn.ReLU):\n def forward(self, x):\n  print(1); return x"
    )
    assert json.loads(run(f"{tmp_path}/loud.py:Loud", "--input", "B", "--json").stdout)["module"] == "Loud"


def test_a_factory_is_as_good_as_a_class(tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text("import torch\ndef make(dim): return torch.nn.Linear(dim, 3)")
    assert load_module(f"{tmp_path}/made.py:make")(dim=2).in_features == 2
    (tmp_path / "none.py").write_text("def make(dim): return dim")
    assert (
        "makes a int, no torch.nn.Module" in run(f"{tmp_path}/none.py:make", "--init", "dim=D", "--input", "D").output
    )
