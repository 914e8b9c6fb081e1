"""What comparisons with implementations by others share, and which mixers have one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from costmodel.strategies.whole import whole
from costmodel.subject import from_mixer
from tests.validate.cases import Case
from validate.template import written

LENGTH, BATCH = 12, 2
Weights = dict[str, Tensor]
Test = TypeVar("Test", bound=Callable[..., Any])

#: Of each mixer, what its definition is compared with.
COMPARED: dict[str, set[str]] = {}


def against(implementation: str, *mixers: str) -> Callable[[Test], Test]:
    """A test that compares these mixers with an implementation by others."""

    def registered(test: Test) -> Test:
        for mixer in mixers:
            COMPARED.setdefault(mixer, set()).add(implementation)
        return test

    return registered


# Our side ------------------------------------------------------------------------------------------------------------


def layer_of(name: str, width: int, **sizes: int) -> tuple[Any, Weights, Tensor]:
    """A layer with random weights, and an input."""
    (layer,) = from_mixer(name, width, **sizes).layers
    case = Case(layer, whole, {}, LENGTH, BATCH, kernel=layer.mixer.kernels[0])
    return layer, case.weights(case.on(0).whole_shapes), case.tokens()[0]


def output(layer: Any, x: Tensor, w: Weights, causal: bool = True) -> Tensor:
    found: Tensor = written(layer, x, w, causal).output
    return found


def close(actual: Tensor, expected: Tensor, limit: float = 1e-5) -> None:
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=limit * max(1.0, float(expected.abs().max())))


# Their side ----------------------------------------------------------------------------------------------------------


def heads(x: Tensor, w: Weights, names: Sequence[str] = ("w_q", "w_k", "w_v")) -> list[Tensor]:
    """Products [B, H, n, d] of an input [B, n, D] with weights [D, H, d]."""
    products = (nn.functional.linear(x, w[name].flatten(1).T) for name in names)
    return [y.unflatten(2, w[name].shape[1:]).transpose(1, 2) for y, name in zip(products, names, strict=True)]


def joined(mixed: Tensor, w: Weights) -> Tensor:
    """The output projection [B, n, D] of heads [B, H, n, e]."""
    return nn.functional.linear(mixed.double().transpose(1, 2).flatten(2), w["w_o"].flatten(0, 1).T)


def rotated(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys [B, H, n, d] with the rotary positions of Llama."""
    config = LlamaConfig(hidden_size=q.shape[3], num_attention_heads=1)
    tables = LlamaRotaryEmbedding(config)(q, torch.arange(q.shape[2])[None])
    turned: tuple[Tensor, Tensor] = apply_rotary_pos_emb(q, k, *tables)
    return turned


def give(module: nn.Module, **weights: Tensor) -> None:
    """Set parameters by name; all of the module's must be given."""
    own = dict(module.named_parameters())
    assert own.keys() == {name.replace("__", ".") for name in weights}
    for name, value in weights.items():
        own[name.replace("__", ".")].data = value.reshape(own[name.replace("__", ".")].shape).clone()


def rows(*weights: Tensor) -> Tensor:
    """Weights [D, ...] one after the other as those of a linear layer [out, D]."""
    return torch.cat([w.flatten(1) for w in weights], 1).T


def causal_mask() -> Tensor:
    """What is added to scores [1, 1, n, n]."""
    return torch.full((LENGTH, LENGTH), -torch.inf, dtype=torch.float64).triu(1)[None, None]


def module_of(**members: Any) -> ModuleType:
    """A module that stands in for one that is not installed."""
    made = ModuleType("stand-in")
    vars(made).update(members)
    return made


def fla(name: str, needs: Mapping[str, ModuleType] | None = None, mended: Mapping[str, str] | None = None) -> Any:
    """A file of flash-linear-attention's core, such as ``ops/gla/naive``.

    The package itself cannot be imported without Triton, so that the file is run by itself.

    Args:
        needs: what stands in for modules that the file imports and that need Triton or a GPU.
        mended: lines of it, and what is to stand in their place.
    """
    path = Path(str(distribution("fla-core").locate_file(f"fla/{name}.py")))
    source = path.read_text()
    for line, instead in (mended or {}).items():
        assert line in source
        source = source.replace(line, instead)
    made = ModuleType(f"fla_{name.replace('/', '_')}")
    with pytest.MonkeyPatch.context() as patch:
        for needed, module in (needs or {}).items():
            patch.setitem(sys.modules, needed, module)
        exec(compile(source, str(path), "exec"), vars(made))
    return made
