"""What a workload runs: a whole model, or one layer of a token mixer alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from costmodel.dims import Dim, minimum
from costmodel.errors import InputError, UnknownNameError
from costmodel.mixer import SWITCHES, Mixer, mixers
from costmodel.mixture import Mixture
from costmodel.model import MlpSpec, Model


@dataclass(frozen=True)
class Layer:
    """A layer and how often it occurs.

    Attributes:
        sizes: the mixer's hyperparameters by symbol, of the whole layer (not of one rank).
        window: keys a query sees, or ``None``.
        mlp: ``None`` where there is no feed-forward.
        norms: of the model's width: one before the mixer and one before the feed-forward, each with its residual;
            twice as many where one comes after each, too; 0 for the mixer alone, without a residual.
        shared: blocks of weights that its uses take in turn; 0 where each has its own.
    """

    mixer: Mixer
    sizes: Mapping[str, int]
    window: int | None
    mlp: MlpSpec | None
    count: int
    norms: int = 0
    shared: int = 0

    def kept(self, length: Dim) -> Dim:
        """Tokens of which a cache along tokens holds keys and values, of a sequence's: of a second one where one is
        read, or at most a window's.
        """
        memory = self.mixer.memory(self.sizes)
        if memory is not None:
            return memory.tokens
        return length if self.window is None else minimum(length, self.window)

    @property
    def mixers_alone(self) -> list[Layer]:
        """Each mixer of a mixture as a layer of its own; of any other layer, the layer."""
        if not isinstance(self.mixer, Mixture):
            return [self]
        return [
            Layer(part.mixer, part.sizes(self.sizes), self.window if "window" in part.mixer.sizes else None, None, 1)
            for part in self.mixer.parts
        ]

    def check_mask(self, causal: bool) -> None:
        """Whether the mixer is defined under a mask.

        Raises:
            InputError: where it is not.
        """
        allowed = self.mixer.causality
        if allowed not in ("either", "causal" if causal else "full"):
            option = "--causal" if causal else "--full"
            rule = f"{self.mixer.name} is defined {MASKED[allowed]} only"
            raise InputError("the mask", option, rule, f"leave {option} out, or choose another mixer")


#: What a mixer's ``causality`` means.
MASKED = {"either": "with and without a causal mask", "causal": "with a causal mask", "full": "without a causal mask"}


@dataclass(frozen=True)
class Subject:
    """Layers of one width; ``vocabulary`` is 0 where there is no embedding and no head."""

    name: str
    width: int
    layers: tuple[Layer, ...]
    vocabulary: int = 0
    tied: bool = False

    @property
    def causal(self) -> bool:
        """Whether a token sees only earlier ones unless asked otherwise: wherever the mixers can be masked so."""
        return all(layer.mixer.causality != "full" for layer in self.layers)


def from_model(model: Model) -> Subject:
    """All layers of a model, alike ones together."""
    layers = tuple(
        replace(
            _layer(spec.mixer.name, spec.mixer.params, model.width),
            mlp=spec.mlp,
            norms=spec.norms,
            count=count,
            shared=spec.shared,
        )
        for spec, count in model.groups()
    )
    return Subject(model.name, model.width, layers, model.vocabulary, model.tied_embeddings)


def from_mixer(name: str, width: int | None = None, **sizes: int) -> Subject:
    """One layer of a mixer, without norms, residuals and feed-forward; sizes not given are the usual ones.

    Raises:
        UnknownNameError: for a mixer or a hyperparameter that does not exist.
        InputError: for a size below 1.
    """
    mixer = mixers.get(name)
    for given in sizes:
        if given not in mixer.sizes:
            raise UnknownNameError(f"hyperparameter of {mixer.name}", given, mixer.sizes)
    usual = {key: parameter.usual for key, parameter in mixer.sizes.items()}
    if "heads" in sizes and usual.get("kv_heads") == usual.get("heads"):
        usual["kv_heads"] = sizes["heads"]
    chosen = usual | sizes
    layer = _layer(name, chosen, width or mixer.usual_width(chosen))
    return Subject(f"one layer of {mixer.name}", layer.sizes["D"], (layer,))


def at_width(name: str, width: int) -> Subject:
    """One layer of a mixer at a model width, with its usual sizes but as many heads (or channels) as give that width.

    Raises:
        UnknownNameError: for a mixer that does not exist.
        InputError: where no whole number of heads gives it.
    """
    mixer = mixers.get(name)
    usual = {key: size.usual for key, size in mixer.sizes.items()}
    reached = mixer.usual_width(usual)
    scaled = {key: Fraction(size.usual * width, reached) for key, size in mixer.sizes.items() if size.cut}
    if any(value.denominator > 1 for value in scaled.values()):
        pieces = math.gcd(*(size.usual for size in mixer.sizes.values() if size.cut))
        step = reached // math.gcd(reached, pieces)
        nearest = max(step, round(width / step) * step)
        raise InputError("--width", width, f"{name} has widths that are multiples of {step}", f"nearest: {nearest}")
    return from_mixer(name, width, **{key: int(value) for key, value in scaled.items()})


def _layer(name: str, params: Mapping[str, int], width: int) -> Layer:
    """A mixer alone, once."""
    mixer = mixers.get(name)
    sizes = {"D": width}
    for key, parameter in mixer.sizes.items():
        value = params.get(key, 0)
        if value < parameter.least:
            rule = f"must be at least {parameter.least}"
            raise InputError(f"{name}.{key}", value, rule, f"usual: {parameter.usual}")
        sizes[parameter.symbol] = value
    sizes |= {symbol: int(params[key]) for key, symbol in _switches(mixer).items() if params.get(key)}
    layer = Layer(mixer, sizes, sizes.pop("w", 0) or None, None, 1)
    for alone in layer.mixers_alone:
        _check_heads(alone)
        _check_turning(alone)
    if isinstance(mixer, Mixture):
        mixer.check(layer.sizes)
    return layer


def _switches(mixer: Mixer) -> dict[str, str]:
    """Symbols of what a config may switch on, by the names that it has in a model."""
    if not isinstance(mixer, Mixture):
        return {switch: switch for switch in SWITCHES}
    return {f"{part.mixer.name}.{switch}": part.symbol(switch) for part in mixer.parts for switch in SWITCHES}


def _check_heads(layer: Layer) -> None:
    mixer, sizes = layer.mixer, layer.sizes
    if sizes.get("H_kv") and sizes["H"] % sizes["H_kv"]:
        raise InputError(f"{mixer.name}.kv_heads", sizes["H_kv"], f"must divide the {sizes['H']} heads")


def _check_turning(layer: Layer) -> None:
    mixer, sizes = layer.mixer, layer.sizes
    turning = mixer.rotary(sizes)
    if turning % 2:
        key = next(key for key, parameter in mixer.sizes.items() if sizes[parameter.symbol] == turning)
        raise InputError(
            f"{mixer.name}.{key}", turning, "must be even: rotary positions turn pairs", f"nearest: {turning + 1}"
        )
