"""No file makes the reader raise anything but an InputError."""

import json
import math
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from costmodel.errors import InputError
from costmodel.huggingface import read_config
from tests.model.configs import EXAMPLES, FAMILIES, Config, config
from tests.model.test_hybrids import HYBRIDS

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.integers(-3, 70),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["full_attention", "sliding_attention", "bfloat16", "auto", *FAMILIES, *HYBRIDS]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)
FIELDS = {key for values in (*map(config, FAMILIES), *HYBRIDS.values()) for key in values}
KNOWN = sorted(FIELDS | {"text_config", "layer_types", "torch_dtype"})
MUTABLE = [config(name) for name in FAMILIES] + [values | {"model_type": name} for name, values in HYBRIDS.items()]
MUTABLE += [json.loads(p.read_text()) for p in sorted(EXAMPLES.glob("*.json"))]
RELAXED = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def model_or_refusal(folder: Path, content: bytes) -> None:
    path = folder / "config.json"
    path.write_bytes(content)
    try:
        model = read_config(path)
    except InputError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert message.startswith(str(path))
    else:
        assert model.parameters() > 0
        assert sum(count for _, count in model.groups()) == len(model.layers)


@st.composite
def mutated(draw: st.DrawFn) -> Config:
    """A valid config with a few fields deleted, negated, retyped or made huge, in text_config too."""
    values: Config = json.loads(json.dumps(draw(st.sampled_from(MUTABLE))))
    inner = values.get("text_config")
    target = inner if isinstance(inner, dict) and draw(st.booleans()) else values
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(sorted(target) or ["model_type"]))
        value = target.get(key)
        change = draw(st.sampled_from(["delete", "negate", "huge", "text", "float", "any"]))
        if change == "delete":
            target.pop(key, None)
        elif change == "negate" and isinstance(value, int):
            target[key] = -value
        elif change == "huge" and isinstance(value, int):
            target[key] = value * 10**18
        elif change == "text":
            target[key] = str(value)
        elif change == "float" and isinstance(value, int):
            target[key] = value + draw(st.sampled_from([0.0, 0.5, math.nan, math.inf]))
        else:
            target[key] = draw(VALUES)
    return values


@RELAXED
@given(content=st.binary(max_size=60))
@example(content=b'{"model_type": "llama", "\\ud800": 1}')
@example(content=b'{"model_type": [], "text_config": {}}')
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    model_or_refusal(tmp_path, content)


@RELAXED
@given(values=VALUES | st.dictionaries(st.sampled_from(KNOWN), VALUES, max_size=12))
def test_any_json(tmp_path: Path, values: object) -> None:
    model_or_refusal(tmp_path, json.dumps(values).encode())


@RELAXED
@given(values=mutated())
def test_mutated_configs(tmp_path: Path, values: Config) -> None:
    model_or_refusal(tmp_path, json.dumps(values).encode())


@RELAXED
@given(
    values=st.sampled_from(MUTABLE),
    changes=st.dictionaries(st.sampled_from(KNOWN), st.integers(1, 70) | SCALARS, max_size=4),
)
def test_configs_with_other_values(tmp_path: Path, values: Config, changes: Config) -> None:
    model_or_refusal(tmp_path, json.dumps(values | changes).encode())
