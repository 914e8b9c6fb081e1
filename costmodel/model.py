"""A decoder-only language model as nouns: its layers, each a token mixer and a feed-forward, and their sizes.

Sizes are counts (heads, channels, tokens), never bytes. Nothing here knows how long anything takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from costmodel.errors import InputError, UnknownNameError
from costmodel.mixer import SWITCHES, mixers


class _Params(Mapping[str, int]):
    """A read-only mapping that can be hashed, so that equal layers can be grouped."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, int]) -> None:
        self._values = dict(sorted(values.items()))

    def __getitem__(self, key: str) -> int:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __repr__(self) -> str:
        return repr(self._values)


@dataclass(frozen=True)
class MixerSpec:
    """Which token mixer a layer has, and its hyperparameters in the field's names.

    ``attention`` (softmax attention with multi-head, grouped or multi-query heads) takes

    - ``heads``, ``kv_heads`` (divides ``heads``), ``head_dim`` (channels of one head);
    - ``window``: keys a query sees, itself included; absent means all of them;
    - ``bias``, ``out_bias``: biases on the query, key and value projections, and on the output projection;
    - ``qk_norm``: an RMSNorm over each query and key head; ``gate``: a gate on each head's values;
    - ``sinks``: one learned sink logit per head;
    - ``doubled``: its input is twice as wide as its output, as in a shared layer (see ``LayerSpec``); ``adapter``: rank
      of an addition to queries, keys and values that every use of a shared layer has of its own.

    ``mla`` (multi-head latent attention, DeepSeek-V2, arXiv:2405.04434, section 2.1) takes ``heads``,
    ``q_rank`` (0 means that queries are not compressed), ``kv_rank``, ``nope_dim`` and ``rope_dim`` (channels
    of one query or key head without and with rotary positions), ``value_dim``, and ``bias`` (on the two
    down-projections and the output projection).

    Any other name is kept as given, for a mixer defined elsewhere. Flags that are absent are off.
    Mixers side by side on the same input, whose outputs are added, are made by ``beside``.

    Raises ``InputError`` for a hyperparameter that is missing, not a whole number, or too small, and
    ``UnknownNameError`` for one that ``attention`` or ``mla`` does not have.

    >>> MixerSpec("attention", {"heads": 32, "kv_heads": 8, "head_dim": 128}).params["kv_heads"]
    8
    """

    name: str
    params: Mapping[str, int | bool]

    def __post_init__(self) -> None:
        for key, value in self.params.items():
            if not isinstance(value, int):
                raise InputError(f"{self.name} {key}", value, "must be a whole number or a flag")
        if self.name in _MIXERS:
            _check_params(self.name, self.params, _MIXERS[self.name])
        _ = self.parts  # each checks its own
        object.__setattr__(self, "params", _Params(self.params))

    def replace(self, **changes: int) -> MixerSpec:
        """The same mixer with some hyperparameters set.

        >>> spec = MixerSpec("attention", {"heads": 2, "kv_heads": 1, "head_dim": 8})
        >>> spec.replace(window=16).params["window"]
        16
        """
        return MixerSpec(self.name, {**self.params, **changes})

    @classmethod
    def beside(cls, *specs: MixerSpec) -> MixerSpec:
        """A mixture: ``attention+mamba2`` with hyperparameters as ``mamba2.heads``; one ``window`` for all.

        >>> attention = MixerSpec("attention", {"heads": 2, "kv_heads": 1, "head_dim": 8})
        >>> conv = MixerSpec("shortconv", {"channels": 16, "taps": 3})
        >>> both = MixerSpec.beside(attention, conv)
        >>> both.name, both.params["shortconv.taps"]
        ('attention+shortconv', 3)
        >>> both.parameters(16) == attention.parameters(16) + conv.parameters(16)
        True
        """
        params = {
            key if key == "window" else f"{spec.name}.{key}": value
            for spec in specs
            for key, value in spec.params.items()
        }
        return cls("+".join(spec.name for spec in specs), params)

    @property
    def parts(self) -> tuple[MixerSpec, ...]:
        """The mixers of a mixture, without the window; none of any other."""
        names = self.name.split("+") if "+" in self.name and ".py:" not in self.name else []
        own = [(*key.rpartition("."), value) for key, value in self.params.items()]
        return tuple(MixerSpec(name, {key: value for part, _, key, value in own if part == name}) for name in names)

    def parameters(self, width: int) -> int:
        """Learned parameters of the mixer's projections, biases and norms, for ``width`` channels in and out.

        Of other mixers than ``attention`` and ``mla``, of the weights that the mixer states.

        Raises ``UnknownNameError`` for a mixer that does not exist, and ``InputError`` for a missing hyperparameter.
        """
        if self.parts:
            return sum(part.parameters(width) for part in self.parts)
        if self.name in _MIXERS:
            return _MIXERS[self.name].parameters(self.params, width)
        mixer = mixers.get(self.name)
        missing = [key for key in mixer.sizes if key not in self.params]
        if missing:
            raise InputError(f"{self.name} {missing[0]}", None, "is required", f"give {', '.join(mixer.sizes)}")
        sizes = {size.symbol: self.params[key] for key, size in mixer.sizes.items()}
        sizes |= {switch: self.params[switch] for switch in SWITCHES if switch in self.params}
        return sum(math.prod(shape) for shape in mixer.weights({"D": width, **sizes}).values())


@dataclass(frozen=True)
class MlpSpec:
    """The feed-forward of a layer: one dense network, or several experts behind a router.

    ``hidden``: channels inside one expert. ``gated``: three matrices (as in SwiGLU) instead of two.
    ``experts``: routed experts, of which each token takes ``active``; there is a router when ``experts > 1``.
    ``shared``: experts that every token takes besides, of ``shared_hidden`` channels (0 means ``hidden``).
    ``bias``: every expert's matrices have a bias. ``router_bias``: so has each expert's routing score.
    ``adapter``: rank of an addition to the first matrices that every use of a shared layer has of its own.

    Raises ``InputError`` for sizes below 1 and for more active experts than there are.

    >>> MlpSpec(hidden=14336).parameters(width=4096) == 3 * 4096 * 14336
    True
    """

    hidden: int
    gated: bool = True
    experts: int = 1
    active: int = 1
    shared: int = 0
    shared_hidden: int = 0
    bias: bool = False
    router_bias: bool = False
    adapter: int = 0

    def __post_init__(self) -> None:
        least = {"hidden": 1, "experts": 1, "active": 1, "shared": 0, "shared_hidden": 0, "adapter": 0}
        for field, low in least.items():
            _check_size(f"mlp {field}", getattr(self, field), low)
        if self.active > self.experts:
            raise InputError("mlp active", self.active, f"must be at most the {self.experts} experts")
        if not self.shared:
            object.__setattr__(self, "shared_hidden", 0)
        elif not self.shared_hidden:
            object.__setattr__(self, "shared_hidden", self.hidden)

    def parameters(self, width: int) -> int:
        """Learned parameters of all experts and the router, for ``width`` channels in and out."""
        router = self.experts * (width + self.router_bias) if self.experts > 1 else 0
        shared = self.shared * self._one_expert(width, self.shared_hidden)
        return self.experts * self._one_expert(width, self.hidden) + shared + router + self.adapter_parameters(width)

    def adapter_parameters(self, width: int) -> int:
        """Those of the adapter, ``width`` x rank and rank x ``hidden`` for each first matrix."""
        return self.adapter * (width + self._inward * self.hidden)

    @property
    def _inward(self) -> int:
        return 2 if self.gated else 1

    def _one_expert(self, width: int, hidden: int) -> int:
        biases = self._inward * hidden + width if self.bias else 0
        return (self._inward + 1) * width * hidden + biases


@dataclass(frozen=True)
class LayerSpec:
    """One layer: a token mixer, then a feed-forward if it has one, each with its residual.

    ``norms``: RMSNorms of the model's width: one before each of the two, and with twice as many one after each too.

    ``shared``: 0, or so many blocks that all layers like this take in turn, as Zamba2 does (Glorioso et al. 2024, arXiv
    2411.15242, figure 2). A block reads the layer's input beside the model's embeddings of the same tokens, both behind
    one norm; its feed-forward follows on its mixer without residuals; and a matrix that each use has of its own, like
    the adapters, takes its output to what is added to the layer's input.

    Raises ``InputError`` for another number of norms, and for a shared layer whose parts are not such.

    >>> attention = MixerSpec("attention", {"heads": 2, "kv_heads": 2, "head_dim": 4})
    >>> LayerSpec(attention, MlpSpec(hidden=32)).parameters(width=8)  # 4*8*8 + 3*8*32 + 2*8
    1040
    """

    mixer: MixerSpec
    mlp: MlpSpec | None
    norms: int = 2
    shared: int = 0

    def __post_init__(self) -> None:
        _check_size("layer shared", self.shared, 0)
        doubled = bool(self.mixer.params.get("doubled"))
        if doubled != bool(self.shared) or (self.shared and (self.mlp is None or self.mlp.experts > 1)):
            rule = "a mixer with a doubled input and a feed-forward without experts go with it, and only with it"
            raise InputError("layer shared", self.shared, rule)
        allowed = (1, 2) if self.mlp is None else (2,) if self.shared else (2, 4)
        if self.norms not in allowed:
            beside = "without an mlp" if self.mlp is None else "with an mlp"
            raise InputError("layer norms", self.norms, f"must be {' or '.join(map(str, allowed))} {beside}")

    def parameters(self, width: int) -> int:
        """Learned parameters of the layer at a model width of ``width`` channels."""
        mlp = 0 if self.mlp is None else self.mlp.parameters(width)
        shared = (width + 1) * width if self.shared else 0  # the matrix of this use, and a norm twice as wide
        return self.mixer.parameters(width) + mlp + self.norms * width + shared

    def own_parameters(self, width: int) -> int:
        """Those of them that no other use of the layer has: all, unless it is shared."""
        if not self.shared or self.mlp is None:
            return self.parameters(width)
        adapter = self.mixer.parameters(width) - self.mixer.replace(adapter=0).parameters(width)
        return width * width + adapter + self.mlp.adapter_parameters(width)


@dataclass(frozen=True)
class Model:
    """A decoder-only language model.

    ``width``: channels of the residual stream (D). ``vocabulary``: tokens. ``tied_embeddings``: the output
    head reuses the embedding matrix. ``max_positions``: tokens the model was made for, if stated.
    ``dtype``: how the weights are stored, in torch's names (``"bfloat16"``).

    Raises ``InputError`` for a size below 1 or a model without layers.

    >>> attention = MixerSpec("attention", {"heads": 32, "kv_heads": 8, "head_dim": 128})
    >>> layer = LayerSpec(attention, MlpSpec(hidden=14336))
    >>> Model("llama-3-8b", 4096, 128256, (layer,) * 32, False, 8192, "bfloat16").parameters()
    8030261248
    """

    name: str
    width: int
    vocabulary: int
    layers: tuple[LayerSpec, ...]
    tied_embeddings: bool = False
    max_positions: int | None = None
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        _check_size("model width", self.width, 1)
        _check_size("model vocabulary", self.vocabulary, 1)
        if self.max_positions is not None:
            _check_size("model max_positions", self.max_positions, 1)
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers:
            raise InputError("model layers", len(self.layers), "must be at least 1 layer")

    def groups(self) -> tuple[tuple[LayerSpec, int], ...]:
        """The distinct layers with how often each occurs, in order of first appearance."""
        counts: dict[LayerSpec, int] = {}
        for layer in self.layers:
            counts[layer] = counts.get(layer, 0) + 1
        return tuple(counts.items())

    def parameters(self) -> int:
        """Exact count of learned parameters: layers, final norm, embeddings, and the head unless tied."""
        layers = 0
        for layer, count in self.groups():
            own = layer.own_parameters(self.width)
            layers += count * own + min(count, layer.shared) * (layer.parameters(self.width) - own)
        matrices = 1 if self.tied_embeddings else 2
        return layers + self.width + matrices * self.vocabulary * self.width


def _check_size(field: str, value: object, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise InputError(field, value, f"must be a whole number of at least {low}")


@dataclass(frozen=True)
class _KnownMixer:
    """What a known mixer takes: the least value of each hyperparameter, its flags, its parameter count."""

    required: Mapping[str, int]
    optional: Mapping[str, int]
    flags: frozenset[str]
    parameters: Callable[[Mapping[str, int], int], int]


def _check_params(name: str, params: Mapping[str, int], known: _KnownMixer) -> None:
    for key, value in params.items():
        if key in known.flags:
            if value not in (0, 1):
                raise InputError(f"{name} {key}", value, "must be true or false")
        elif key in known.required or key in known.optional:
            _check_size(f"{name} {key}", value, {**known.required, **known.optional}[key])
        else:
            raise UnknownNameError(f"{name} hyperparameter", key, {*known.required, *known.optional, *known.flags})
    for key in known.required:
        if key not in params:
            raise InputError(f"{name} {key}", None, "is required", f"give {', '.join(known.required)}")
    if params["heads"] % params.get("kv_heads", 1):
        rule = f"must divide the {params['heads']} heads"
        raise InputError(f"{name} kv_heads", params["kv_heads"], rule)


def _attention_parameters(params: Mapping[str, int], width: int) -> int:
    queries = params["heads"] * params["head_dim"]
    keys = params["kv_heads"] * params["head_dim"]
    projected = queries + 2 * keys
    biases = projected * params.get("bias", 0) + width * params.get("out_bias", 0)
    norms = 2 * params["head_dim"] * params.get("qk_norm", 0)
    inputs = width * (2 if params.get("doubled") else 1)
    gates = queries * inputs * params.get("gate", 0)
    adapters = params.get("adapter", 0) * (3 * inputs + projected)
    sinks = params["heads"] * params.get("sinks", 0)
    return projected * inputs + queries * width + gates + adapters + biases + norms + sinks


def _mla_parameters(params: Mapping[str, int], width: int) -> int:
    heads, q_rank, kv_rank = params["heads"], params["q_rank"], params["kv_rank"]
    query_key = params["nope_dim"] + params["rope_dim"]
    down = kv_rank + params["rope_dim"] + q_rank  # latents, and the rotary key that all heads share
    up = kv_rank * heads * (params["nope_dim"] + params["value_dim"])
    queries = (q_rank or width) * heads * query_key
    out = heads * params["value_dim"] * width
    norms = kv_rank + q_rank
    return width * down + up + queries + out + norms + (down + width) * params.get("bias", 0)


_MIXERS: dict[str, _KnownMixer] = {
    "attention": _KnownMixer(
        required={"heads": 1, "kv_heads": 1, "head_dim": 1},
        optional={"window": 1, "adapter": 0},
        flags=frozenset({"bias", "out_bias", "qk_norm", "gate", "sinks", "doubled"}),
        parameters=_attention_parameters,
    ),
    "mla": _KnownMixer(
        required={"heads": 1, "q_rank": 0, "kv_rank": 1, "nope_dim": 1, "rope_dim": 1, "value_dim": 1},
        optional={},
        flags=frozenset({"bias"}),
        parameters=_mla_parameters,
    ),
}
