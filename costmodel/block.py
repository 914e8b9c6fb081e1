"""A layer of a model on one rank: token mixer and feed-forward, spread over tensor-parallel ranks.

Tensor parallelism is Megatron's with sequence parallelism (Korthikanti et al. 2022, arXiv 2205.05198): heads and
feed-forward width are cut, the norms and residuals between them run on a shard of the sequence. A gathered input is
not kept for the backward pass but gathered again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from costmodel.arrangement import Way
from costmodel.carry import Carry
from costmodel.composite import rms_norm, swiglu
from costmodel.dims import Dim, Shape, divide, is_number
from costmodel.documents import Documents
from costmodel.masks import Mask
from costmodel.mixer import INPUT, OWN, Mixer, Site, Sizes, Weights
from costmodel.mixture import applied
from costmodel.model import MlpSpec
from costmodel.ops.mesh import Axis
from costmodel.ops.routing import Combine, Dispatch
from costmodel.ops.vocabulary import Vocabulary
from costmodel.strategy import Strategy
from costmodel.subject import Layer

T = TypeVar("T")

#: The matrix that takes a shared block's output to what one use of it adds to the layer's input.
OUT = f"{OWN}out"


@dataclass(frozen=True)
class FeedForward:
    """Widths on one tensor-parallel rank: of one expert, of the shared experts together (0 for none).

    Attributes:
        adapter: rank of an addition to the first matrices; 0 for none.
    """

    hidden: Dim
    gated: bool
    experts: Dim = 1
    active: Dim = 1
    shared: Dim = 0
    adapter: int = 0

    @property
    def routed(self) -> bool:
        return not is_number(self.experts, 1)

    def weights(self, width: Dim) -> dict[str, Shape]:
        """Shapes of the matrices; those of experts begin with the experts."""
        inward = ("gate", "up") if self.gated else ("up",)
        experts = (self.experts,) if self.routed else ()
        shapes: dict[str, Shape] = dict.fromkeys(inward, (*experts, width, self.hidden))
        shapes["down"] = (*experts, self.hidden, width)
        if self.routed:
            shapes["router"] = (width, self.experts)
        if not is_number(self.shared, 0):
            shapes |= {f"shared_{name}": (width, self.shared) for name in inward}
            shapes["shared_down"] = (self.shared, width)
        if self.adapter:
            shapes |= {f"{OWN}down": (width, self.adapter)}
            shapes |= {f"{OWN}{name}": (self.adapter, self.hidden) for name in inward}
        return shapes


@dataclass(frozen=True)
class Block:
    """One layer as a method over the vocabulary.

    Attributes:
        sizes: of the layer on one tensor-parallel rank.
        site: where the mixer is applied; its tables and cache are filled in by the call.
        axes: the axes of the mesh that have more than one rank.
        feed_forward: ``None`` where there is none.
        norms: names of their weights; none for the token mixer alone, without residuals.
        phase: ``forward``, ``train``, ``prefill`` or ``decode``.
        shared: whether other layers use the same weights (see ``costmodel.model.LayerSpec``).
    """

    mixer: Mixer
    strategy: Strategy
    axes: Mapping[str, Axis]
    site: Site[Any]
    feed_forward: FeedForward | None
    norms: tuple[str, ...]
    phase: str
    shared: bool = False

    @property
    def sizes(self) -> Sizes:
        return self.site.sizes

    def weights(self) -> dict[str, Shape]:
        """Shapes of all weights on one rank."""
        width = self.sizes["D"]
        feed = {} if self.feed_forward is None else self.feed_forward.weights(width)
        norms: dict[str, Shape] = dict.fromkeys(self.norms, (width,))
        if self.shared:
            norms |= {"mixer_norm": (2 * width,), OUT: (width, width)}
        mixer = self.mixer.decode_weights if self.phase == "decode" else self.mixer.weights
        return mixer(self.sizes) | feed | norms

    def __call__(
        self,
        ops: Vocabulary[T],
        x: T,
        tables: tuple[T, T],
        cache: tuple[T, ...],
        w: Weights,
        memory: tuple[T, ...] = (),
    ) -> T:
        """The layer's output [B, n, D] for its input [B, n, D], and for a second sequence if the mixer reads one.

        A shared layer has the model's embeddings [B, n, D] of its tokens in that place.
        """
        if self.shared:
            y = rms_norm(ops, ops.concat([x, *memory], 2), w["mixer_norm"])
            y = rms_norm(ops, self._mix(ops, (y,), tables, cache, w), w["mlp_norm"])
            return ops.add(x, ops.contract("bld,de->ble", self._feed(ops, y, w), w[OUT]))
        if not self.norms:
            return self._mix(ops, (x, *memory), tables, cache, w)
        x = self._added(ops, x, "mixer", w, lambda y: self._mix(ops, (y, *memory), tables, cache, w))
        return x if self.feed_forward is None else self._added(ops, x, "mlp", w, lambda y: self._feed(ops, y, w))

    def _added(self, ops: Vocabulary[T], x: T, part: str, w: Weights, inner: Callable[[T], T]) -> T:
        """A part of the layer with its norms, added to its input."""
        y = inner(rms_norm(ops, x, w[f"{part}_norm"]))
        after = f"{part}_post_norm"
        return ops.add(x, rms_norm(ops, y, w[after]) if after in self.norms else y)

    def _mix(
        self, ops: Vocabulary[T], given: tuple[T, ...], tables: tuple[T, T], cache: tuple[T, ...], w: Weights
    ) -> T:
        at: Site[T] = replace(
            self.site,
            tables=tables,
            cache=cache,
            cache_axis=self.axes.get("context") if self.phase == "decode" else None,
            line=line(self.axes),
            tensor=self.axes.get("tensor"),
            compressed=self.strategy.compressed,
        )
        carry = [self._carry(ops, given, w, at)]
        aside = carry[0].aside
        # Popped, so that nothing here holds it any more: a run has its memory back as soon as it has been mixed.
        mixed: T = applied(self.strategy, ops, self.axes, carry.pop())
        return self._sum(ops, self.mixer.finish(ops, mixed, w, replace(at, aside=aside)))

    def _carry(self, ops: Vocabulary[T], given: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        """What the mixer hands to the strategy."""
        second = self.mixer.memory(self.sizes)
        names = [self.mixer.inputs(self.sizes), *([second.inputs] if second else [])]
        read: tuple[T, ...] = ()
        for x, weights in zip(given, names, strict=False):  # a decoded token comes without a second sequence
            read += self._read(ops, x, [None if name == INPUT else w[name] for name in weights])
        if self.phase == "decode" or at.cache:
            return self.mixer.decode(ops, read, w, at)
        carry, state = self.mixer.project(ops, read, w, at)
        carry = carry.of_documents(at.mask.documents)
        if self.phase == "prefill":
            for kept in state:
                ops.keep(kept)
        return carry

    def _feed(self, ops: Vocabulary[T], x: T, w: Weights) -> T:
        assert self.feed_forward is not None
        if self.feed_forward.routed:
            return self._experts(ops, x, w)
        return self._sum(ops, self._dense(ops, x, w, ""))

    def _dense(self, ops: Vocabulary[T], x: T, w: Weights, prefix: str) -> T:
        """A feed-forward of which this rank has a part of the width; a partial sum."""
        names = [name for name in (f"{prefix}gate", f"{prefix}up") if name in w]
        if not (self.feed_forward and self.feed_forward.adapter):
            inner = self._read(ops, x, [w[name] for name in names])
        else:
            low, *products = self._read(ops, x, [w[name] for name in (f"{OWN}down", *names)])
            added = [ops.contract("blr,rf->blf", low, w[f"{OWN}{name}"]) for name in names]
            inner = tuple(ops.add(y, z) for y, z in zip(products, added, strict=True))
        hidden = swiglu(ops, *inner) if len(inner) == 2 else ops.map("silu", inner[0])
        return ops.contract("blf,fd->bld", hidden, w[f"{prefix}down"])

    def _read(self, ops: Vocabulary[T], x: T, weights: Sequence[T | None]) -> tuple[T, ...]:
        """Products of the input with weights of which each rank has a part, over the whole of its sequence.

        For ``None`` in place of a weight, the input itself.
        """
        axis = self.axes.get("tensor")
        if axis is None or self.phase == "decode":
            return tuple(_times(ops, x, w) for w in weights)

        def forward(ops: Vocabulary[T], x: T, *given: T) -> tuple[tuple[T, ...], tuple[T, ...]]:
            gathered = ops.all_gather(x, axis, 1)
            found = iter(given)
            return tuple(_times(ops, gathered, None if w is None else next(found)) for w in weights), (x, *given)

        def backward(ops: Vocabulary[T], saved: tuple[T, ...], *gradients: T | None) -> tuple[T, ...]:
            x, given = saved[0], iter(saved[1:])
            used = [None if w is None else next(given) for w in weights]
            partial = _back_to_input(ops, used, gradients)
            gathered = ops.all_gather(x, axis, 1)
            products = [g for w, g in zip(weights, gradients, strict=True) if w is not None and g is not None]
            return (ops.reduce_scatter(partial, axis, 1), *(_times_gradient(ops, gathered, g) for g in products))

        products: tuple[T, ...] = ops.custom(forward, backward, x, *(w for w in weights if w is not None))
        return products

    def _sum(self, ops: Vocabulary[T], partial: T) -> T:
        """The sum over tensor-parallel ranks: each keeps its shard of the sequence, or all of a decoded token."""
        axis = self.axes.get("tensor")
        if axis is None:
            return partial
        return ops.all_reduce(partial, axis) if self.phase == "decode" else ops.reduce_scatter(partial, axis, 1)

    def _experts(self, ops: Vocabulary[T], x: T, w: Weights) -> T:
        """Routed experts, and shared ones beside them; each rank has a part of every expert's width."""
        assert self.feed_forward is not None
        axis = self.axes.get("tensor")
        y = x if axis is None or self.phase == "decode" else ops.all_gather(x, axis, 1)
        scores = ops.softmax(ops.contract("bld,de->ble", y, w["router"]), 1, Mask())
        tokens = ops.apply(Dispatch(self.feed_forward.active), y, scores)[0]
        inner = [ops.contract("etd,edf->etf", tokens, w[name]) for name in ("gate", "up") if name in w]
        hidden = swiglu(ops, *inner) if len(inner) == 2 else ops.map("silu", inner[0])
        given = ops.contract("etf,efd->etd", hidden, w["down"])
        mixed = self._sum(ops, ops.apply(Combine(self.feed_forward.active), given, scores)[0])
        return ops.add(mixed, self._sum(ops, self._dense(ops, x, w, "shared_"))) if "shared_up" in w else mixed


@dataclass(frozen=True)
class Share:
    """One rank's part of a layer.

    Attributes:
        tensor: tensor-parallel ranks, which cut heads and widths.
        length: tokens of the whole sequence, or ``None`` where it does not matter.
        ranks: ranks that the sequence is spread over.
        inner: those of the Ulysses axis among them.
        documents: that are packed into the sequence, if any.
    """

    tensor: Dim
    length: Dim | None
    ranks: Dim
    inner: Dim
    documents: Documents | None = None

    def sizes(self, layer: Layer, strategy: Strategy) -> dict[str, Dim]:
        """The mixer's sizes, with the tokens of the sequence: ``L``, and ``rows``, those whose weights are here.

        Of a matrix of weights over all tokens, ``grid_rows`` and ``grid_columns`` are here, and of other columns one of
        ``grid_parts``.

        Raises:
            ValueError: when whole numbers do not divide.
        """
        divided = {size.symbol for size in layer.mixer.sizes.values() if size.cut}
        sizes = {key: divide(size, self.tensor) if key in divided else size for key, size in layer.sizes.items()}
        if self.length is None:
            return sizes
        rows = divide(self.length, self.ranks) if strategy.cuts_rows else self.length
        grid: dict[str, Dim] = {"grid_rows": rows, "grid_columns": self.length, "grid_parts": 1}
        if strategy.cuts_columns:
            tall = divide(self.length, divide(self.ranks, self.inner))
            grid = {"grid_rows": tall, "grid_columns": divide(self.length, self.inner), "grid_parts": self.inner}
        return sizes | {"L": self.length, "rows": rows} | grid

    def feed_forward(self, mlp: MlpSpec) -> FeedForward:
        """The widths of a feed-forward layer."""
        shared = divide(mlp.shared * mlp.shared_hidden, self.tensor) if mlp.shared else 0
        hidden = divide(mlp.hidden, self.tensor)
        return FeedForward(hidden, mlp.gated, mlp.experts, mlp.active, shared, mlp.adapter)

    def block(self, layer: Layer, way: Way, axes: Mapping[str, Axis], phase: str, causal: bool) -> Block:
        """The layer as a method."""
        mask = Mask() if phase == "decode" else Mask(causal, layer.window, documents=self.documents)
        site = Site[Any](self.sizes(layer, way.strategy), mask, way.kernel, ())  # type: ignore[arg-type]
        feed = None if layer.mlp is None else self.feed_forward(layer.mlp)
        shared = bool(layer.shared)
        return Block(layer.mixer, way.strategy, axes, site, feed, norm_names(layer), phase, shared)


def norm_names(layer: Layer) -> tuple[str, ...]:
    """Weights of a layer's norms: before each part of it, and after each if there are twice as many."""
    parts = ("mixer",) if layer.mlp is None else ("mixer", "mlp")
    kinds = ("norm", "post_norm") if layer.norms > len(parts) else ("norm",)
    return tuple(f"{part}_{kind}" for part in parts for kind in kinds) if layer.norms else ()


def line(axes: Mapping[str, Axis]) -> Axis | None:
    """The ranks that hold a sequence one after the other: Ulysses ranks within context ranks."""
    cut = [axes[name] for name in ("context", "ulysses") if name in axes]
    if len(cut) < 2:
        return cut[0] if cut else None
    outer, inner = cut
    return Axis("sequence", outer.size * inner.size, outer.rank * inner.size + inner.rank)


def _times(ops: Vocabulary[T], x: T, w: T | None) -> T:
    """x [B, n, D] by a matrix [D, F], or by one for every head [D, H, d], or as it is."""
    if w is None:
        return x
    equation = "bld,df->blf" if len(ops.shape(w)) == 2 else "bld,dhe->bhle"
    return ops.contract(equation, x, w)


def _times_gradient(ops: Vocabulary[T], x: T, gradient: T) -> T:
    """The weight's gradient, from the input and the product's gradient."""
    equation = "bld,blf->df" if len(ops.shape(gradient)) == 3 else "bld,bhle->dhe"
    return ops.contract(equation, x, gradient)


def _back_to_input(ops: Vocabulary[T], weights: Sequence[T | None], gradients: Sequence[T | None]) -> T:
    """The input's gradient, summed over the products; ``None`` for the input itself where nothing comes back to it."""
    total = None
    for w, gradient in zip(weights, gradients, strict=True):
        if gradient is None:
            continue
        part = gradient
        if w is not None:
            part = ops.contract("blf,df->bld" if len(ops.shape(w)) == 2 else "bhle,dhe->bld", gradient, w)
        total = part if total is None else ops.add(total, part)
    assert total is not None
    return total
