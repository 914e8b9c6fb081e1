"""Mixers side by side: their names, sizes and strategies, and what is refused."""

from __future__ import annotations

import pickle

import pytest

from costmodel.arrangement import Way
from costmodel.candidates import parts, ways
from costmodel.errors import InputError, UnknownNameError
from costmodel.formulas import Formula, layer_formulas
from costmodel.hardware import parse_cluster
from costmodel.mixer import mixers
from costmodel.model import LayerSpec, MixerSpec, Model
from costmodel.plan import rank
from costmodel.strategy import strategies
from costmodel.subject import from_mixer, from_model
from costmodel.workload import Workload

BOTH = "attention+mamba2"


def test_sizes_are_those_of_the_parts() -> None:
    (layer,) = from_mixer(BOTH, 64, **{"attention.heads": 4, "attention.kv_heads": 2, "mamba2.heads": 8}).layers
    assert (layer.sizes["H_attention"], layer.sizes["H_kv_attention"], layer.sizes["H_mamba2"]) == (4, 2, 8)
    attention, mamba2 = layer.mixers_alone
    assert (attention.sizes["H"], mamba2.sizes["H"], attention.sizes["D"], mamba2.sizes["D"]) == (4, 8, 64, 64)


def test_one_window_for_all() -> None:
    (layer,) = from_mixer(BOTH, 64, window=16).layers
    assert [part.window for part in layer.mixers_alone] == [16, None]


def test_weights_and_cache_are_those_of_the_parts_together() -> None:
    mixer, (layer,) = mixers.get(BOTH), from_mixer(BOTH, 64).layers
    own = [part.mixer.weights(part.sizes) for part in layer.mixers_alone]
    assert list(mixer.weights(layer.sizes).values()) == [shape for each in own for shape in each.values()]
    caches = [part.mixer.cache(part.sizes, 32) for part in layer.mixers_alone]
    assert mixer.cache(layer.sizes, 32) == caches[0] + caches[1]


def test_flops_are_the_sum_of_the_parts_and_of_their_outputs() -> None:
    """Adding two outputs [B, L, D] is B L D more."""
    workload = Workload(1024, 1, "forward")

    def flops(name: str, strategy: str, kernel: str) -> dict[str, object]:
        fixed = {key: size.usual for key, size in mixers.get(name).sizes.items() if size.usual}
        found = layer_formulas(name, Way(strategies.get(strategy), kernel, False), workload, fixed).formulas
        return {f.name: _at(f) for f in found if f.part == "flop" and "useful" in f.detail}

    def _at(formula: Formula) -> object:
        values = {"B": 1, "L": 1024, "D": 512, "P_d": 1, "t": 1}
        return formula.value.evaluate({name: values[name] for name in formula.value.symbols()})

    together = flops(BOTH, "whole", "fused+chunked")
    alone = [flops("attention", "whole", "fused"), flops("mamba2", "whole", "chunked")]
    for kind in together:
        extra = 1024 * 512 if kind == "elementwise" else 0
        assert together[kind] == sum(each.get(kind, 0) for each in alone) + extra  # type: ignore[misc]


def test_every_part_has_a_strategy_of_its_own() -> None:
    (layer,) = from_mixer(BOTH).layers
    found = {way.strategy.name for way in ways(layer, True, ("context",), False, None)}
    assert {"ring+state-gather", "ring+state-pipeline"} <= found
    assert not any(name.startswith("zigzag") for name in found)  # states are passed in order
    way = Way(strategies.get("ring+state-gather"), "fused+recurrent", False)
    run = [(part.mixer.name, own.strategy.name, own.kernel) for part, own in parts(layer, way)]
    assert run == [("attention", "ring", "fused"), ("mamba2", "state-gather", "recurrent")]
    assert {way.strategy.name for way in ways(layer, True, ("ulysses",), False, None)} == {"ulysses"}


def test_it_is_sent_to_other_processes() -> None:
    strategy = pickle.loads(pickle.dumps(strategies.get("ring+state-gather")))
    assert (strategy.name, pickle.loads(pickle.dumps(mixers.get(BOTH))).name) == ("ring+state-gather", BOTH)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("attention+attention", "has each mixer once"),
        ("mamba2+fnet", "some of these are causal"),
        ("attention+cross-attention", "reads a second sequence"),
        ("attention+linformer", "linformer has weights for every token"),
        ("attention+mla", "rotary positions in more than one part"),
    ],
)
def test_mixtures_that_are_none(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_mixer(name)


def test_unknown_parts_and_sizes() -> None:
    with pytest.raises(UnknownNameError, match="mamba2"):
        from_mixer("attention+mamba")
    with pytest.raises(UnknownNameError, match=r"attention\.heads"):
        from_mixer(BOTH, **{"attention.head": 4})
    with pytest.raises(InputError, match="must divide the 32 heads"):
        from_mixer(BOTH, **{"attention.kv_heads": 3})
    with pytest.raises(UnknownNameError, match="'qknorm'"):
        MixerSpec("attention+shortconv", {"attention.qknorm": 1, "attention.heads": 1})


@pytest.mark.parametrize(
    ("name", "rule"),
    [("ring+ulysses", "do not spread the sequence"), ("zigzag+state-gather", "do not spread the sequence")],
)
def test_strategies_that_do_not_go_together(name: str, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        strategies.get(name)


def test_a_model_of_mixtures_is_planned() -> None:
    attention = MixerSpec("attention", {"heads": 8, "kv_heads": 8, "head_dim": 64, "qk_norm": True, "window": 1024})
    conv = MixerSpec("shortconv", {"channels": 512, "taps": 3})
    layer = LayerSpec(MixerSpec.beside(attention, conv), None, 1)
    subject = from_model(Model("small", 512, 1000, (layer, layer)))
    assert subject.layers[0].sizes["qk_norm_attention"] == 1
    ranking = rank(subject, Workload(65536, 4, "train"), parse_cluster("4xh100"))
    names = {str(way) for number in range(len(ranking.places)) for way in ranking.plan(number).arrangement.ways}
    assert "window-halo+halo (fused+direct kernel)" in names
