"""The nouns: parameter counts by hand, groups, hashing, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.errors import InputError, UnknownNameError
from costmodel.model import LayerSpec, MixerSpec, MlpSpec, Model

ATTENTION = {"heads": 4, "kv_heads": 2, "head_dim": 8}
LATENT = {"heads": 2, "q_rank": 0, "kv_rank": 5, "nope_dim": 3, "rope_dim": 2, "value_dim": 4}


def small(**changes: object) -> Model:
    layer = LayerSpec(MixerSpec("attention", ATTENTION), MlpSpec(20))
    values: dict[str, object] = {
        "name": "small",
        "width": 16,
        "vocabulary": 100,
        "layers": (layer,),
        **changes,
    }
    return Model(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        # width 16: query 16*32, key and value 2*16*16, output 32*16
        ({}, 512 + 512 + 512),
        ({"window": 7}, 1536),
        ({"bias": True}, 1536 + 32 + 2 * 16),
        ({"out_bias": True}, 1536 + 16),
        ({"qk_norm": True}, 1536 + 2 * 8),
        ({"sinks": True}, 1536 + 4),
        ({"bias": False, "qk_norm": False}, 1536),
    ],
)
def test_attention_parameters(flags: dict[str, int], expected: int) -> None:
    assert MixerSpec("attention", ATTENTION | flags).parameters(16) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # width 16. Query 16*2*5 = 160; down 16*(5+2) = 112; norm 5; up 5*2*(3+4) = 70; output 2*4*16 = 128
        ({}, 160 + 112 + 5 + 70 + 128),
        # query through rank 6: 16*6 + norm 6 + 6*2*5 = 162 instead of 160
        ({"q_rank": 6}, 477),
        # biases on the key-value down-projection (7), the query's (6) and the output (16)
        ({"q_rank": 6, "bias": True}, 477 + 7 + 6 + 16),
    ],
)
def test_latent_attention_parameters(changes: dict[str, int], expected: int) -> None:
    assert MixerSpec("mla", LATENT | changes).parameters(16) == expected


@pytest.mark.parametrize(
    ("mlp", "expected"),
    [
        (MlpSpec(20), 3 * 16 * 20),
        (MlpSpec(20, gated=False), 2 * 16 * 20),
        (MlpSpec(20, bias=True), 3 * 16 * 20 + 20 + 20 + 16),
        (MlpSpec(20, gated=False, bias=True), 2 * 16 * 20 + 20 + 16),
        (MlpSpec(20, experts=4, active=2), 4 * 960 + 4 * 16),
        (MlpSpec(20, experts=4, active=2, router_bias=True), 4 * 960 + 4 * 16 + 4),
        (MlpSpec(20, experts=4, active=2, shared=2), 6 * 960 + 4 * 16),
        (MlpSpec(20, experts=4, active=2, shared=1, shared_hidden=10), 4 * 960 + 480 + 4 * 16),
    ],
)
def test_mlp_parameters(mlp: MlpSpec, expected: int) -> None:
    assert mlp.parameters(16) == expected


def test_a_model_counts_embeddings_head_and_final_norm() -> None:
    layer = 1536 + 960 + 2 * 16
    assert small().parameters() == layer + 16 + 2 * 100 * 16
    assert small(tied_embeddings=True).parameters() == layer + 16 + 100 * 16


def test_groups_keep_the_order_of_first_appearance() -> None:
    full = LayerSpec(MixerSpec("attention", ATTENTION), MlpSpec(20))
    local = LayerSpec(full.mixer.replace(window=3), MlpSpec(20))
    model = small(layers=(local, full, local, local))
    assert model.groups() == ((local, 3), (full, 1))


def test_specs_are_equal_whatever_the_order_and_cannot_be_changed_from_outside() -> None:
    params = dict(ATTENTION)
    spec = MixerSpec("attention", params)
    assert spec == MixerSpec("attention", dict(reversed(ATTENTION.items())))
    assert hash(spec) == hash(MixerSpec("attention", dict(reversed(ATTENTION.items()))))
    params["heads"] = 8
    assert spec.params["heads"] == 4
    assert repr(spec.params) == "{'head_dim': 8, 'heads': 4, 'kv_heads': 2}"
    assert dict(spec.params) == ATTENTION


def test_shared_experts_default_to_the_size_of_the_routed() -> None:
    assert MlpSpec(20, experts=2, shared=1) == MlpSpec(20, experts=2, shared=1, shared_hidden=20)
    assert MlpSpec(20, shared_hidden=7) == MlpSpec(20)


def test_other_mixers_have_the_weights_that_they_state() -> None:
    sizes = {"heads": 2, "head_dim": 3, "value_dim": 5, "chunk": 64}
    # Queries and keys 2 x 16 x 6, values and output 2 x 16 x 10.
    assert MixerSpec("linear-attention", sizes).parameters(16) == 2 * 16 * 6 + 2 * 16 * 10
    # Queries and output 2 x 16 x 12, keys and values 2 x 16 x 6, and a gate for each head and branch 16 x 4 x 3.
    native = {"heads": 4, "kv_heads": 2, "head_dim": 3, "block": 2, "chosen": 4, "near": 5}
    assert MixerSpec("nsa", native).parameters(16) == 2 * 16 * 12 + 2 * 16 * 6 + 16 * 4 * 3
    with pytest.raises(InputError, match="linear-attention chunk: None is not valid: is required"):
        MixerSpec("linear-attention", {"heads": 2, "head_dim": 3, "value_dim": 5}).parameters(16)
    with pytest.raises(UnknownNameError, match="no mixer named 'linear'"):
        MixerSpec("linear", sizes).parameters(16)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("attention", {"heads": 4, "kv_heads": 2}, "attention head_dim: None is not valid: is required"),
        (
            "attention",
            ATTENTION | {"kv_heads": 3},
            "attention kv_heads: 3 is not valid: must divide the 4 heads",
        ),
        ("attention", ATTENTION | {"heads": 0}, "attention heads: 0 is not valid"),
        ("attention", ATTENTION | {"heads": True}, "attention heads: True is not valid"),
        (
            "attention",
            ATTENTION | {"heads": 4.0},
            "attention heads: 4.0 is not valid: must be a whole number",
        ),
        ("attention", ATTENTION | {"window": 0}, "attention window: 0 is not valid"),
        ("attention", ATTENTION | {"bias": 2}, "attention bias: 2 is not valid: must be true or false"),
        ("attention", ATTENTION | {"qknorm": True}, "Did you mean 'qk_norm'?"),
        ("mla", LATENT | {"q_rank": -1}, "mla q_rank: -1 is not valid: must be a whole number of at least 0"),
    ],
)
def test_mixers_refuse(name: str, params: dict[str, int], message: str) -> None:
    with pytest.raises(InputError) as caught:
        MixerSpec(name, params)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 0}, "mlp hidden: 0 is not valid"),
        ({"experts": 2, "active": 3}, "mlp active: 3 is not valid: must be at most the 2 experts"),
        ({"shared": -1}, "mlp shared: -1 is not valid"),
    ],
)
def test_mlps_refuse(changes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError) as caught:
        MlpSpec(**{"hidden": 20, **changes})  # type: ignore[arg-type]
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "model width: 0 is not valid"),
        ({"vocabulary": 1.5}, "model vocabulary: 1.5 is not valid"),
        ({"layers": ()}, "must be at least 1 layer"),
        ({"max_positions": 0}, "model max_positions: 0 is not valid"),
    ],
)
def test_models_refuse(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        small(**changes)
    assert message in str(caught.value)


@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 128), st.integers(1, 4096))
def test_grouped_heads_save_exactly_their_keys_and_values(kv_heads: int, group: int, head_dim: int, width: int) -> None:
    heads = kv_heads * group
    grouped = MixerSpec("attention", {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim})
    full = MixerSpec("attention", {"heads": heads, "kv_heads": heads, "head_dim": head_dim})
    saved = 2 * (heads - kv_heads) * head_dim * width
    assert full.parameters(width) - grouped.parameters(width) == saved
