"""The op vocabulary: what mixers and distributed algorithms are written in.

A method is a plain function whose first argument is a ``Vocabulary``. Read by a ``Tracer`` it becomes a ``Program``;
read by the executor of ``validate`` it runs on real tensors and ranks. It may not branch in Python on a dimension, a
rank or a step: ``when`` says that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from costmodel.dims import Dim, Shape, divide, is_number
from costmodel.masks import Mask, Tile
from costmodel.ops.affine_scan import AffineScan
from costmodel.ops.chosen_blocks import ChosenAttention, ChosenAttentionBackward, Placed, VisibleBlocks
from costmodel.ops.communication import AllGather, AllReduce, AllToAll, ReduceScatter
from costmodel.ops.contraction import Contract
from costmodel.ops.convolution import Depthwise, Under
from costmodel.ops.dynamic_convolution import DynamicDepthwise
from costmodel.ops.fourier import FFT, ComplexProduct, InverseRealFFT, RealFFT
from costmodel.ops.fused_attention import Attention, AttentionBackward, DecodeAttention, Merge
from costmodel.ops.halo import Halo
from costmodel.ops.layout import (
    AddInto,
    Append,
    Concat,
    Expand,
    Fill,
    Flip,
    Pad,
    Permute,
    Repeat,
    Reshape,
    Slice,
    Write,
)
from costmodel.ops.mesh import Axis
from costmodel.ops.pointwise import Cast, CumSum, Map, Masked, Max, Scale, Shift, Softmax, Sum
from costmodel.ops.primitive import Primitive
from costmodel.ops.scan import Recurrence
from costmodel.ops.selection import Gather, ScatterAdd, Sort, TopK
from costmodel.ops.thinning import Numbers, Spread, Thin
from costmodel.ops.triangular import TriangularInverse

T = TypeVar("T")


class Travelling(Protocol[T]):
    """Accumulators that go round a ring and come home; see ``Vocabulary.rotate``."""

    def arrive(self) -> tuple[T, ...]:
        """What the previous rank sent; zeros in the first step."""

    def depart(self, *accumulators: T) -> None:
        """Hand these to the next rank, while the next step computes."""

    def home(self) -> tuple[T, ...]:
        """After the last step: the accumulators of this rank's own block."""


class Vocabulary(ABC, Generic[T]):
    """Primitives and control flow. Subclasses say what a tensor is; the ops on it are the same for all."""

    tile: Tile

    # What a reader must say -------------------------------------------------------------------------------------

    @abstractmethod
    def shape(self, x: T) -> Shape:
        """The dimensions of a tensor."""

    @abstractmethod
    def width(self, precision: str) -> Dim:
        """Bytes of one element at ``"model"``, ``"accumulate"`` or ``"gradient"`` precision."""

    @abstractmethod
    def precision(self, x: T) -> str:
        """Which of these a tensor has."""

    @abstractmethod
    def apply(self, primitive: Primitive, *inputs: T) -> tuple[T, ...]:
        """Apply a primitive."""

    @abstractmethod
    def fused(self, name: str, body: Callable[..., Any], *inputs: T, family: str = "elementwise") -> Any:
        """``body(ops, *inputs)`` as one kernel: only its inputs and outputs touch device memory.

        Its backward is one kernel too, which reads the inputs again and recomputes what it needs.

        Args:
            family: of kernels, whose rates it runs at: ``"attention"`` where it is mostly scores of queries and keys.
        """

    @abstractmethod
    def custom(self, forward: Callable[..., Any], backward: Callable[..., Any], *inputs: T) -> Any:
        """An algorithm whose backward is its own.

        ``forward(ops, *inputs)`` gives ``(result, saved)``: the result is a tensor or a tuple of tensors, ``saved`` a
        tuple of tensors to keep. ``backward(ops, saved, *gradients)``, with one gradient a tensor of the result, gives
        one gradient an input.
        """

    @abstractmethod
    def when(self, condition: Any, then: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
        """``then()`` where a comparison of step and rank holds, else ``otherwise()``; both give equal shapes."""

    @abstractmethod
    def rotate(
        self, axis: Axis, blocks: tuple[T, ...], accumulators: tuple[T, ...] = ()
    ) -> Iterator[tuple[Any, tuple[T, ...], Travelling[T]]]:
        """The blocks of every rank of the axis in turn, own first, each passed on while it is in use.

        Yields the step, its blocks, and accumulators that travel along with them. Step 0 is a plain 0 in every
        reader, so ``if step == 0`` is allowed; of the others only comparisons given to ``when`` may be taken. At
        step t a rank holds the blocks of rank (rank - t) mod size, until the step ends: their memory is used again.
        """

    @abstractmethod
    def visiting(self, axis: Axis, step: Any) -> Dim:
        """The rank whose blocks are at hand at a step of ``rotate``; only for where a slice starts."""

    @abstractmethod
    def visitors(self, axis: Axis, step: Any, earlier: bool | None, own: bool = False) -> tuple[tuple[Dim, Dim], ...]:
        """Ranks whose blocks are at hand at a step of ``rotate``: the first of a row of them, and how many.

        One when running. For a formula, all that a step stands for: those before this rank, those after it, or both.

        Args:
            own: whether this rank's own block is one of them, as in the rings of other groups: then all of the axis.
        """

    @abstractmethod
    def relay(
        self,
        axis: Axis,
        start: tuple[T, ...],
        body: Callable[[tuple[T, ...]], tuple[T, ...]],
        reverse: bool = False,
        behind: bool = False,
    ) -> tuple[T, ...]:
        """A state passed along the ranks of an axis: what came from the rank before; ``start`` for the first.

        Each rank passes on ``body(state)``, and waits for the ranks before it; ``behind`` another relay of the same
        pace, only for one of them. It has no derived backward: state one with ``custom``.
        """

    @abstractmethod
    def pass_on(self, axis: Axis, start: tuple[T, ...], own: tuple[T, ...], reverse: bool = False) -> tuple[T, ...]:
        """What the rank before has as its own; ``start`` for the first. No derived backward."""

    @abstractmethod
    def prefix(
        self,
        axis: Axis,
        own: tuple[T, ...],
        combine: Callable[[tuple[T, ...], tuple[T, ...]], tuple[T, ...]],
        reverse: bool = False,
    ) -> tuple[T, ...]:
        """``combine(earlier, later)`` over this rank and all before it, in ceil(log2 P) rounds. No derived backward.

        Recursive doubling (Hillis & Steele 1986, doi 10.1145/7902.7903): ``combine`` must be associative.
        """

    @abstractmethod
    def scan(
        self,
        loop: Recurrence,
        state: tuple[T, ...],
        xs: tuple[T, ...],
        constants: tuple[T, ...] = (),
        axis: int = 0,
        reverse: bool = False,
    ) -> tuple[tuple[T, ...], tuple[T, ...]]:
        """A loop over an axis of ``xs`` as one kernel: the last state, and what the steps hand out, along that axis.

        The steps see their entries of ``xs`` without the axis, and ``constants`` whole. Backward, it goes through
        twice (``costmodel.ops.scan.backward``).
        """

    @abstractmethod
    def pull_back(self, method: Callable[..., Any], inputs: tuple[T, ...], gradients: tuple[T, ...]) -> tuple[T, ...]:
        """``method(*inputs)`` run and differentiated: a gradient for each input, given those of its outputs."""

    # Local ops --------------------------------------------------------------------------------------------------

    def contract(
        self, equation: str, a: T, b: T, mask: Mask | None = None, pairs: str = "", skipping: bool = False
    ) -> T:
        """einsum of two operands, e.g. ``contract("bld,df->blf", x, w)``.

        Args:
            skipping: whether the kernel leaves out tiles without a pair, as one that keeps the product on chip does.
        """
        return self.apply(Contract(equation, mask, pairs, self.tile if skipping else None), a, b)[0]

    def map(self, function: str, *inputs: T) -> T:
        """An elementwise function of ``costmodel.ops.pointwise.FUNCTIONS``, with broadcasting."""
        return self.apply(Map(function), *inputs)[0]

    def add(self, a: T, b: T) -> T:
        """a + b."""
        return self.map("add", a, b)

    def mul(self, a: T, b: T) -> T:
        """a * b, elementwise."""
        return self.map("mul", a, b)

    def scale(self, x: T, factor: Dim) -> T:
        """The tensor times a constant."""
        return self.apply(Scale(factor), x)[0]

    def sum(self, x: T, axes: tuple[int, ...]) -> T:
        """Sum over axes, which stay with size 1."""
        return self.apply(Sum(axes), x)[0]

    def sum_to(self, x: T, shape: Shape) -> T:
        """Sum over what broadcasting from ``shape`` stretched; nothing where the shapes are equal."""
        wide = self.shape(x)
        extra = len(wide) - len(shape)
        axes = tuple(range(extra)) + tuple(
            axis + extra
            for axis, size in enumerate(shape)
            if is_number(size, 1) and not is_number(wide[axis + extra], 1)
        )
        return self.reshape(self.sum(x, axes), shape) if axes else x

    def shift(self, x: T, constant: float) -> T:
        """The tensor plus a constant."""
        return self.apply(Shift(constant), x)[0]

    def max(self, x: T, axes: tuple[int, ...]) -> T:
        """Maximum over axes, which stay with size 1."""
        return self.apply(Max(axes), x)[0]

    def cumsum(self, x: T, axis: int, reverse: bool = False, exclusive: bool = False) -> T:
        """Running sum along an axis, each entry included, or exclusive: without its own entry."""
        return self.apply(CumSum(axis, reverse, exclusive), x)[0]

    def affine_scan(self, x: T, factors: T, axis: int, pairs: bool = False) -> T:
        """y_t = a_t y_{t-1} + x_t along an axis, from 0, for factors a that broadcast; pairs [..., 2] are complex."""
        return self.apply(AffineScan(axis, pairs), x, factors)[0]

    def masked(self, pairs: T, mask: Mask, fill: str = "0", strict: bool = False) -> T:
        """Pairs [..., n_q, n_k] where the mask leaves them (strict: without the diagonal), ``fill`` elsewhere."""
        return self.apply(Masked(mask, fill, strict), pairs)[0]

    def depthwise(self, x: T, taps: T, apart: Dim = 1, packed: Under | None = None) -> T:
        """Sliding sums of x [B, C, n + (K - 1) apart] weighted by taps [C, K], so far apart: [B, C, n]."""
        return self.apply(Depthwise(apart, packed), x, taps)[0]

    def dynamic_depthwise(self, x: T, taps: T) -> T:
        """As ``depthwise`` of rows x [B, H, n + K - 1, e], with taps [B, H, n, K] of each position's own."""
        return self.apply(DynamicDepthwise(), x, taps)[0]

    def softmax(self, scores: T, scale: Dim, mask: Mask) -> T:
        """Scaled and masked softmax over the last axis of materialised scores [..., n_q, n_k]."""
        return self.apply(Softmax(scale, mask), scores)[0]

    def triangular_inverse(self, a: T) -> T:
        """(I + A)^-1 [..., C, C], of the entries of A below the diagonal; the others are not read."""
        return self.apply(TriangularInverse(), a)[0]

    def attention(self, q: T, k: T, v: T, mask: Mask, scale: Dim) -> tuple[T, T]:
        """Fused attention of q [B, H, n_q, d] over k [B, H_kv, n_k, d] and v [B, H_kv, n_k, e]: output and lse."""
        kind = DecodeAttention if is_number(self.shape(q)[2], 1) else Attention
        out, lse = self.apply(kind(mask, scale, self.tile, self.width("accumulate")), q, k, v)
        return out, lse

    def attention_backward(
        self, q: T, k: T, v: T, out: T, lse: T, gradient: T, mask: Mask, scale: Dim
    ) -> tuple[T, T, T]:
        """Gradients of q, k and v of fused attention, given the output and log-sum-exp over all keys."""
        dq, dk, dv = self.apply(AttentionBackward(mask, scale, self.tile), q, k, v, out, lse, gradient)
        return dq, dk, dv

    def merge(self, out: T, lse: T, block_out: T, block_lse: T, start: Dim = 0) -> tuple[T, T]:
        """Take a partial result into a running one, in place, from query ``start`` on."""
        out, lse = self.apply(Merge(2, start), out, lse, block_out, block_lse)
        return out, lse

    def merge_heads(self, out: T, lse: T, part: tuple[T, T], start: Dim, step: Dim) -> tuple[T, T]:
        """Take output and lse of some heads, every ``step``-th from ``start`` on, into those of all, in place."""
        out, lse = self.apply(Merge(1, start, step), out, lse, *part)
        return out, lse

    def cast(self, x: T, precision: str) -> T:
        """The tensor at ``"model"``, ``"accumulate"`` or ``"gradient"`` precision."""
        return self.apply(Cast(precision, self.width(precision)), x)[0]

    def zeros(self, shape: Shape, precision: str) -> T:
        """New memory filled with zeros."""
        return self.apply(Fill(shape, precision, self.width(precision)))[0]

    def ones(self, shape: Shape, precision: str = "model") -> T:
        """New memory filled with ones."""
        return self.apply(Fill(shape, precision, self.width(precision), 1.0))[0]

    def zeros_like(self, x: T, precision: str | None = None) -> T:
        """Zeros of the same shape, and of the same precision unless another is given."""
        return self.zeros(self.shape(x), precision or self.precision(x))

    def add_into(self, accumulator: T, block: T, axis: int = 0, start: Dim = 0) -> T:
        """``accumulator[start:] += block`` along an axis, in place."""
        return self.apply(AddInto(axis, start), accumulator, block)[0]

    def write(self, whole: T, block: T, axis: int, start: Dim = 0) -> T:
        """``whole[start:] = block`` along an axis, in place."""
        return self.apply(Write(axis, start), whole, block)[0]

    def append(self, cache: T, new: T, axis: int, spread: Axis | None = None) -> T:
        """The cache with new entries in its last places, written there."""
        return self.apply(Append(axis, spread), cache, new)[0]

    def keep(self, x: T) -> T:
        """A tensor that outlives the layer, as part of the cache."""
        return x

    # Complex numbers: pairs on a last axis of size 2 ------------------------------------------------------------

    def fft(self, x: T, axis: int) -> T:
        """Fourier transform of complex x [..., 2] along an axis."""
        return self.apply(FFT(axis), x)[0]

    def inverse_fft(self, x: T, axis: int) -> T:
        """Inverse of ``fft``."""
        return self.apply(FFT(axis, inverse=True, divided=True), x)[0]

    def real_fft(self, x: T, axis: int) -> T:
        """Bins 0 ... n/2 [..., n/2 + 1, ..., 2] of the transform of x [..., n, ...]; n is even."""
        return self.apply(RealFFT(axis), x)[0]

    def inverse_real_fft(self, bins: T, axis: int) -> T:
        """Inverse of ``real_fft``: [..., n/2 + 1, ..., 2] to [..., n, ...]."""
        return self.apply(InverseRealFFT(axis), bins)[0]

    def complex_mul(self, a: T, b: T, conjugate: bool = False) -> T:
        """a * b of complex numbers [..., 2] with broadcasting, or a times the conjugate of b."""
        return self.apply(ComplexProduct(conjugate), a, b)[0]

    # Selection --------------------------------------------------------------------------------------------------

    def top_k(self, x: T, k: Dim) -> tuple[T, T]:
        """The k largest of the last axis, the largest first, and their indices: [..., n] to [..., k] twice."""
        values, indices = self.apply(TopK(k), x)
        return values, indices

    def sort(self, x: T, descending: bool = False) -> tuple[T, T]:
        """The last axis in order, equal entries as they were, and the indices where each comes from."""
        values, indices = self.apply(Sort(descending), x)
        return values, indices

    def gather(self, x: T, indices: T, axis: int) -> T:
        """Entries by index: x [*outer, n, *inner], n at ``axis``, indices [*outer, *m] to [*outer, *m, *inner]."""
        return self.apply(Gather(axis), x, indices)[0]

    def scatter_add(self, x: T, indices: T, axis: int, size: Dim) -> T:
        """Entries summed up by index: x [*outer, *m, *inner], indices [*outer, *m] to [*outer, size, *inner]."""
        return self.apply(ScatterAdd(axis, size), x, indices)[0]

    def numbers(self, start: Dim, size: Dim) -> T:
        """``start``, ``start`` + 1 and so on: indices [size]."""
        return self.apply(Numbers(start, size))[0]

    def thin(self, x: T, heads: T, step: Dim) -> T:
        """Every ``step``-th row of x [B, H, n, ...], in head number h [H] those that are h mod step."""
        return self.apply(Thin(step), x, heads)[0]

    def spread(self, x: T, heads: T, step: Dim, fill: float = 0.0) -> T:
        """Rows put back where ``thin`` takes them from, and ``fill`` between them."""
        return self.apply(Spread(step, fill), x, heads)[0]

    def visible_blocks(self, scores: T, placed: Placed, always: int = 1) -> T:
        """Scores of blocks [..., n, blocks]: -inf for blocks of the future, +inf for a query's own. No gradient.

        Args:
            always: how many come first whatever their scores: the own block, the one before it, the first of all.
        """
        return self.apply(VisibleBlocks(placed, always), scores)[0]

    def chosen_attention_backward(
        self, inputs: Sequence[T], outputs: Sequence[T], gradient: T, forward: ChosenAttention
    ) -> tuple[T, T, T]:
        """Gradients of q, k, v, given the inputs (q, k, v, chosen) and outputs (out, lse) of ``forward``."""
        primitive = ChosenAttentionBackward(forward.placed, forward.scale, forward.by_block, forward.adding)
        dq, dk, dv = self.apply(primitive, *inputs, *outputs, gradient)
        return dq, dk, dv

    # Layout -----------------------------------------------------------------------------------------------------

    def reshape(self, x: T, shape: Shape) -> T:
        """The same memory in another shape."""
        return self.apply(Reshape(shape), x)[0]

    def permute(self, x: T, axes: tuple[int, ...]) -> T:
        """The axes in another order; no memory moves."""
        return self.apply(Permute(axes), x)[0]

    def flip(self, x: T, axis: int) -> T:
        """An axis in reverse order, in new memory."""
        return self.apply(Flip(axis), x)[0]

    def expand(self, x: T, shape: Shape) -> T:
        """Axes of size 1 seen as if repeated; no memory moves."""
        return self.apply(Expand(shape), x)[0]

    def slice(self, x: T, axis: int, start: Dim, size: Dim, step: Dim = 1) -> T:
        """A view of ``size`` entries of an axis, each ``step`` after the one before."""
        return self.apply(Slice(axis, start, size, step), x)[0]

    def halves(self, x: T, axis: int) -> tuple[T, T]:
        """Views of the two halves of an axis."""
        half = divide(self.shape(x)[axis], 2)
        return self.slice(x, axis, 0, half), self.slice(x, axis, half, half)

    def pad(self, x: T, axis: int, start: Dim, size: Dim) -> T:
        """The tensor from ``start`` on in an axis of ``size`` entries, zeros around it, in new memory."""
        return self.apply(Pad(axis, start, size), x)[0]

    def concat(self, parts: Sequence[T], axis: int) -> T:
        """Tensors laid end to end, in new memory."""
        return self.apply(Concat(axis), *parts)[0]

    def repeat(self, x: T, axis: int, times: Dim) -> T:
        """Each entry of an axis written ``times`` times in a row."""
        return self.apply(Repeat(axis, times), x)[0]

    # Communication ----------------------------------------------------------------------------------------------

    def all_gather(self, x: T, axis: Axis, dim: int, order: str = "rank") -> T:
        """Every rank's shard of a dimension, which is spread in ``"rank"``, ``"zigzag"`` or ``"striped"`` order."""
        return self.apply(AllGather(axis, dim, order), x)[0]

    def reduce_scatter(self, x: T, axis: Axis, dim: int, order: str = "rank") -> T:
        """This rank's shard of the sum over ranks."""
        return self.apply(ReduceScatter(axis, dim, order), x)[0]

    def all_reduce(self, x: T, axis: Axis) -> T:
        """The sum over ranks."""
        return self.apply(AllReduce(axis), x)[0]

    def halo(self, x: T, dim: int, left: Dim, right: Dim, line: Axis | None) -> T:
        """The tensor with rows of its neighbours before and after its own; zeros at both ends of the sequence.

        Args:
            line: the ranks that hold the sequence one after the other, or ``None`` where it is whole.
        """
        if line is None or (is_number(left, 0) and is_number(right, 0)):
            shape = self.shape(x)
            return self.apply(Pad(dim, left, left + shape[dim] + right), x)[0]
        found = list(self.apply(Halo(line, dim, left, right), x))
        before = [] if is_number(left, 0) else [found.pop(0)]
        return self.concat([*before, x, *found], dim)

    def all_to_all(self, x: T, axis: Axis, split: int, concat: int, order: str = "rank") -> T:
        """Cut dimension ``split`` over the ranks, in this order, and put dimension ``concat`` together."""
        return self.apply(AllToAll(axis, split, concat, order), x)[0]
