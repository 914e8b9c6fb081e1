"""Several mixers in one layer: they read the same input side by side, and their outputs are added.

A mixture is named by its parts, ``attention+mamba2``; it has their hyperparameters as ``mamba2.heads``. Each part may
be spread by a strategy of its own, ``ring+state-gather``, and run by a kernel of its own, ``fused+chunked``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar, Self, TypeVar

from costmodel.carry import Carry
from costmodel.dims import Dim, Shape
from costmodel.documents import Documents
from costmodel.errors import InputError
from costmodel.mixer import INPUT, SWITCHES, Hyperparameter, Kept, Mixer, Site, Sizes, Weights, Written
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.registry import JOIN
from costmodel.strategy import Requirement, Situation, Strategy

T = TypeVar("T")

#: Sizes that all parts have in common; keys that a query sees are among them.
COMMON = ("D", "L", "rows", "grid_rows", "grid_columns", "grid_parts", "w")


@dataclass(frozen=True)
class Beside(Carry[T]):
    """The carries of a mixture's parts; a strategy mixes each by itself."""

    parts: tuple[Carry[T], ...]

    kind: ClassVar[str] = "what its parts have"

    def streams(self) -> tuple[T, ...]:
        return tuple(stream for part in self.parts for stream in part.streams())

    def whole(self, ops: Vocabulary[T]) -> Any:
        """The mixed values of each part."""
        return tuple(part.whole(ops) for part in self.parts)

    def of_documents(self, documents: Documents | None) -> Self:
        return replace(self, parts=tuple(part.of_documents(documents) for part in self.parts))

    def on(self, streams: Sequence[T], parameters: Sequence[T]) -> Any:
        raise TypeError("a mixture is cut part by part")


@dataclass(frozen=True)
class Part:
    """One mixer of a mixture.

    Attributes:
        place: which of the mixture's it is.
    """

    mixer: Mixer
    place: int

    def symbol(self, name: str) -> str:
        """What one of its sizes is called in the mixture."""
        return name if name in COMMON else f"{name}_{self.prefix}"

    @property
    def prefix(self) -> str:
        """What the names of its weights begin with."""
        return self.mixer.name.replace("-", "_")

    def sizes(self, m: Sizes) -> dict[str, Dim]:
        """Its own sizes among those of the mixture."""
        names = [*COMMON, *SWITCHES, *(size.symbol for size in self.mixer.sizes.values())]
        return {name: m[self.symbol(name)] for name in names if self.symbol(name) in m}

    def weights(self, w: Mapping[str, Any], m: Sizes) -> dict[str, Any]:
        """Its own weights among those of the mixture."""
        names = self.mixer.weights(self.sizes(m)) | self.mixer.decode_weights(self.sizes(m))
        return {name: w[own] for name in names if (own := f"{self.prefix}_{name}") in w}

    def site(self, at: Site[T]) -> Site[T]:
        """Where it is applied."""
        return replace(at, sizes=self.sizes(at.sizes), kernel=at.kernel.split(JOIN)[self.place])


class Mixture(Mixer):
    """The sum of its parts' outputs; made by ``mixture``."""

    parts: ClassVar[tuple[Part, ...]]
    carry: ClassVar[type[Carry[Any]]] = Beside
    template: ClassVar[str] = "Y = the sum of the outputs of its parts, which read the same X"

    def __reduce__(self) -> tuple[Any, ...]:
        return mixture, (tuple(part.mixer for part in self.parts),)

    def check(self, m: Sizes) -> None:
        """Whether the parts can be side by side.

        Raises:
            InputError: where one has weights for every token, or several have rotary positions.
        """
        for part in self.parts:
            try:
                part.mixer.weights(part.sizes(m))
            except KeyError:
                rule = f"{part.mixer.name} has weights for every token, and no mixture does"
                raise InputError("--mixer", self.name, rule) from None
        if sum(bool(part.mixer.rotary(part.sizes(m))) for part in self.parts) > 1:
            raise InputError("--mixer", self.name, "rotary positions in more than one part are not modelled")

    def weights(self, m: Sizes) -> dict[str, Shape]:
        return self._named((part, part.mixer.weights(part.sizes(m))) for part in self.parts)

    def decode_weights(self, m: Sizes) -> dict[str, Shape]:
        return self._named((part, part.mixer.decode_weights(part.sizes(m))) for part in self.parts)

    def _named(self, weights: Iterable[tuple[Part, dict[str, Shape]]]) -> dict[str, Shape]:
        return {f"{part.prefix}_{name}": shape for part, shapes in weights for name, shape in shapes.items()}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return tuple(
            name if name == INPUT else f"{part.prefix}_{name}"
            for part in self.parts
            for name in part.mixer.inputs(part.sizes(m))
        )

    def project(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> tuple[Any, tuple[T, ...]]:
        found = [
            part.mixer.project(ops, own, part.weights(w, at.sizes), part.site(at))
            for part, own in self._each_read(read, at.sizes)
        ]
        carries = tuple(carry for carry, _ in found)
        return self._beside(carries), tuple(x for _, kept in found for x in kept)

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Any:
        carries, left = [], at.cache
        for part, own in self._each_read(read, at.sizes):
            count = len(part.mixer.cache(part.sizes(at.sizes), 1))
            here, left = replace(part.site(at), cache=left[:count]), left[count:]
            carries.append(part.mixer.decode(ops, own, part.weights(w, at.sizes), here))
        return self._beside(tuple(carries))

    def finish(self, ops: Vocabulary[T], mixed: Any, w: Weights, at: Site[Any]) -> T:
        total: Any = None
        for part, own, aside in zip(self.parts, mixed, at.aside, strict=True):
            output = part.mixer.finish(ops, own, part.weights(w, at.sizes), replace(part.site(at), aside=aside))
            total = output if total is None else ops.add(total, output)
        return total  # type: ignore[no-any-return]

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        return tuple(kept for part in self.parts for kept in part.mixer.cache(part.sizes(m), tokens))

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        """As many as all parts' can be cut into; each strategy is asked about the heads of its own part."""
        counts = [part.mixer.query_heads(part.sizes(m)) for part in self.parts]
        queries, keys = (math.gcd(*(int(count) for count in each)) for each in zip(*counts, strict=True))
        return queries, keys

    def grain(self, m: Sizes) -> int:
        return math.lcm(*(part.mixer.grain(part.sizes(m)) for part in self.parts))

    def longest(self, kernel: str) -> int:
        names = kernel.split(JOIN)
        limits = [part.mixer.longest(name) for part, name in zip(self.parts, names, strict=True)]
        return min(filter(None, limits), default=0)

    def overlap(self, m: Sizes) -> Dim:
        return max(int(part.mixer.overlap(part.sizes(m))) for part in self.parts)

    def shortest(self, m: Sizes) -> int:
        return max(part.mixer.shortest(part.sizes(m)) for part in self.parts)

    def usual_width(self, sizes: Mapping[str, int]) -> int:
        first = self.parts[0].mixer
        return first.usual_width({key: sizes.get(f"{first.name}.{key}", 0) for key in first.sizes})

    def rotary(self, m: Sizes) -> Dim:
        return next((own for part in self.parts if (own := part.mixer.rotary(part.sizes(m)))), 0)

    def turns(self, m: Sizes) -> list[float]:
        found = [part.mixer.turns(part.sizes(m)) for part in self.parts]
        return next((turns for turns in found if turns), [])

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        total = 0
        for part in self.parts:
            here = replace(at, sizes=part.sizes(at.sizes))
            total = total + part.mixer.written(xp, x, part.weights(w, at.sizes), here).output
        return Written(None, None, total)

    def _each_read(self, read: tuple[T, ...], m: Sizes) -> Iterator[tuple[Part, tuple[T, ...]]]:
        """The products of the input that each part gets."""
        for part in self.parts:
            count = len(part.mixer.inputs(part.sizes(m)))
            yield part, read[:count]
            read = read[count:]

    def _beside(self, carries: tuple[Carry[T], ...]) -> Any:
        aside: Any = tuple(carry.aside for carry in carries)
        return Beside(carries, aside=aside)


@cache
def mixture(mixers: tuple[Mixer, ...]) -> Mixer:
    """Mixers side by side.

    Raises:
        InputError: for one that is there twice, for one that reads a second sequence, and for those of which some
            need a causal mask and some none.
    """
    names = [mixer.name for mixer in mixers]
    shown = JOIN.join(names)
    if len(set(names)) < len(names):
        raise InputError("--mixer", shown, "a mixture has each mixer once")
    for mixer in mixers:
        if type(mixer).memory is not Mixer.memory:
            raise InputError("--mixer", shown, f"{mixer.name} reads a second sequence, and no mixture does")
    masks = {mixer.causality for mixer in mixers} - {"either"}
    if len(masks) > 1:
        raise InputError("--mixer", shown, "some of these are causal, and others see all tokens")
    parts = tuple(Part(mixer, place) for place, mixer in enumerate(mixers))
    attributes = {
        "name": shown,
        "title": " beside ".join(mixer.title for mixer in mixers),
        "source": "; ".join(mixer.source for mixer in mixers),
        "structure": mixers[0].structure,
        "kernels": tuple(_products([mixer.kernels for mixer in mixers])),
        "causality": masks.pop() if masks else "either",
        "fixed": tuple(f"{part.prefix}_{name}" for part in parts for name in part.mixer.fixed),
        "sizes": _sizes(parts),
        "parts": parts,
    }
    made: Mixer = type("Mixture", (Mixture,), attributes)()
    return made


def _sizes(parts: tuple[Part, ...]) -> dict[str, Hyperparameter]:
    return {
        key if size.symbol == "w" else f"{part.mixer.name}.{key}": replace(size, symbol=part.symbol(size.symbol))
        for part in parts
        for key, size in part.mixer.sizes.items()
    }


def _products(choices: Sequence[Sequence[str]]) -> Iterator[str]:
    """One of each, joined; the first of each first."""
    first, *rest = choices
    for head in first:
        for tail in _products(rest) if rest else ("",):
            yield f"{head}{JOIN}{tail}" if tail else head


class Together(Strategy):
    """A strategy for each part of a mixture; made by ``together``."""

    parts: ClassVar[tuple[Strategy, ...]]
    carries = (Beside,)

    def __reduce__(self) -> tuple[Any, ...]:
        return together, (self.parts,)

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        """None: each part is asked about by itself."""
        yield from ()

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: Any) -> Any:
        return tuple(one.apply(ops, axes, part) for one, part in zip(self.parts, carry.parts, strict=True))


@cache
def together(strategies: tuple[Strategy, ...]) -> Strategy:
    """A strategy for each part of a mixture; the strategy itself where all have the same.

    Raises:
        InputError: where they do not spread the sequence over the ranks alike.
    """
    first = strategies[0]
    if all(strategy is first for strategy in strategies):
        return first
    shown = JOIN.join(strategy.name for strategy in strategies)
    if len({_spread(strategy) for strategy in strategies}) > 1:
        raise InputError("--strategy", shown, "these do not spread the sequence over the ranks alike")
    attributes = {
        "name": shown,
        "title": " beside ".join(strategy.title for strategy in strategies),
        "source": "; ".join(strategy.source for strategy in strategies),
        "axes": first.axes,
        "layout": first.layout,
        "inner_layout": first.inner_layout,
        "compressed": first.compressed,
        "deals": first.deals,
        "groups": math.lcm(*(strategy.groups for strategy in strategies)),
        "parts": strategies,
    }
    made: Strategy = type("Together", (Together,), attributes)()
    return made


def _spread(strategy: Strategy) -> tuple[object, ...]:
    """What strategies of one mixture have in common: where its tokens are, and whether its parts hand over latents."""
    return *strategy.spread, strategy.compressed


def alike(strategies: Sequence[Strategy]) -> bool:
    """Whether strategies spread a sequence over the ranks alike."""
    return len({_spread(strategy) for strategy in strategies}) == 1


def applied(strategy: Strategy, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: Any) -> Any:
    """The mixed values of a carry, or of each part of a mixture's."""
    if isinstance(carry, Beside) and not isinstance(strategy, Together):
        return tuple(strategy.apply(ops, axes, part) for part in carry.parts)
    return strategy.apply(ops, axes, carry)


def each(strategy: Strategy, parts: int) -> tuple[Strategy, ...]:
    """The strategy of each of so many parts.

    Raises:
        InputError: for another number of strategies.
    """
    found = strategy.parts if isinstance(strategy, Together) else (strategy,) * parts
    if len(found) != parts:
        raise InputError("--strategy", strategy.name, f"must be one, or one for each of {parts} parts")
    return found
