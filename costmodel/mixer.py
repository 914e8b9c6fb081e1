"""What a token mixer says about itself: Y = P(X) V(X), cut at the place where ranks meet."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape
from costmodel.documents import Packed
from costmodel.errors import InputError
from costmodel.masks import Mask
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.registry import Registry

T = TypeVar("T")

#: Dimensions by the names of ``costmodel.symbols.MEANING``; heads are those of one tensor-parallel rank.
Sizes = Mapping[str, Dim]
Weights = Mapping[str, Any]


#: In ``Mixer.inputs``: the layer's input itself, not its product with a weight.
INPUT = "the input"


#: Parts of a mixer that a model's config switches on, among its sizes but no hyperparameters; of an adapter, its rank.
SWITCHES = ("qk_norm", "gate", "doubled", "adapter")

#: In the names of weights that every use of a shared layer has of its own (see ``costmodel.model.LayerSpec``).
OWN = "own_"

#: Base of the angles of rotary positions.
ROPE_BASE = 10000.0


@dataclass(frozen=True)
class Hyperparameter:
    """One size of a mixer: its symbol, its usual value, and what it is.

    Attributes:
        cut: whether tensor parallelism divides it (heads, inner channels).
        optional: whether 0 stands for "none", as it does wherever that is usual.
    """

    symbol: str
    usual: int
    meaning: str
    cut: bool = False
    optional: bool = False

    @property
    def least(self) -> int:
        """The smallest value allowed."""
        return 0 if self.optional or self.usual == 0 else 1


@dataclass(frozen=True)
class Site(Generic[T]):
    """Where a mixer is applied.

    Attributes:
        tables: cosine and sine of rotary positions [n, d/2] of this rank's tokens.
        cache: what earlier tokens left, when decoding; its last place is for the new token.
        cache_axis: the axis the cache is spread over, if any.
        line: the ranks that hold the sequence one after the other, if it is cut.
        tensor: the ranks that heads and channels are cut over, if they are.
        aside: in ``finish``, what the carry laid aside for it.
        compressed: whether the strategy takes keys and values as the latent that they come from.
        memory: in ``written``, the second sequence (see ``SecondSequence``).
    """

    sizes: Sizes
    mask: Mask
    kernel: str
    tables: tuple[T, T]
    cache: tuple[T, ...] = ()
    cache_axis: Axis | None = None
    line: Axis | None = None
    tensor: Axis | None = None
    aside: tuple[T, ...] = ()
    compressed: bool = False
    memory: T | None = None

    def packed(self, n: Dim) -> Packed | None:
        """The documents that this rank's n tokens are of, if any are packed; ranks have them one after the other."""
        if self.mask.documents is None:
            return None
        return Packed(self.mask.documents, 0 if self.line is None else self.line.rank * n)


@dataclass(frozen=True)
class SecondSequence:
    """A second sequence [B, tokens, width] that a mixer reads beside the layer's input, such as an encoder's output.

    Without a mask between the two. Each rank holds as many of its tokens as any other.

    Attributes:
        inputs: the weights that are multiplied with it, in the order in which ``project`` gets them after ``inputs``.
    """

    tokens: Dim
    width: Dim
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Written:
    """A mixer written out, as slowly as its definition: what its efficient forms are compared with.

    Attributes:
        matrix: P(X) [B, H, n, n], gates and normalisers in it; ``None`` for a nonlinear recurrence, which has none.
            Complex, like the values, where these are pairs of a real and an imaginary part.
        values: V(X) [B, H, n, e], so that matrix @ values is what the carry gives; ``None`` without a matrix.
        output: the layer's output [B, n, D].
    """

    matrix: Any
    values: Any
    output: Any


@dataclass(frozen=True)
class Kept:
    """Something that decoding keeps of the tokens so far.

    Attributes:
        shape: without the batch.
        precision: ``"accumulate"`` for states that are summed up.
        tokens: whether dimension 1 of the shape is along the tokens, as of keys and values. These can be spread over
            ranks, and kept in fewer bytes than the model's.
        start: what it is filled with before the first token.
    """

    shape: Shape
    precision: str = "model"
    tokens: bool = False
    start: float = 0.0


class Mixer(ABC):
    """A token mixer, up to its carry and from there on.

    Attributes:
        title: the name in full.
        template: P and V in symbols.
        sizes: its hyperparameters, by the names that users give.
        kernels: implementations of the part between, each with its own cost.
        causality: the masks it is defined for: ``"causal"``, ``"full"`` or ``"either"``.
        indivisible: why tensor parallelism cannot cut it; empty where it can.
        undecoded: why it is not decoded although it is causal; empty where it is.
        unpadded: why tokens after its end would change what it makes of a sequence although it is causal; empty where
            they would not.
        documents: whether its mask keeps documents apart that are packed into one sequence.
        extends: whether ``decode`` takes any number of new tokens, so that a prefill may follow on cached ones.
        fixed: weights that are not trained, such as random projections.
        doubled: whether the whole pieces of each rank must be 1, 2, 4, ..., where the sequence is cut.
        overlap_mixed: whether ``overlap`` is of what is mixed, so that ranks which exchange heads for it have none.
        grain_first: whether whole pieces (``grain``) are needed before heads are exchanged for sequence, too.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    template: ClassVar[str]
    source: ClassVar[str]
    structure: ClassVar[Structure]
    carry: ClassVar[type[Carry[Any]]]
    sizes: ClassVar[Mapping[str, Hyperparameter]]
    kernels: ClassVar[tuple[str, ...]] = ("fused", "vanilla")
    causality: ClassVar[str] = "either"
    indivisible: ClassVar[str] = ""
    undecoded: ClassVar[str] = ""
    unpadded: ClassVar[str] = ""
    documents: ClassVar[bool] = False
    extends: ClassVar[bool] = False
    fixed: ClassVar[tuple[str, ...]] = ()
    doubled: ClassVar[bool] = False
    overlap_mixed: ClassVar[bool] = False
    grain_first: ClassVar[bool] = False

    def carry_for(self, causal: bool) -> type[Carry[Any]]:
        """The kind of carry under a mask; the same under both unless a mixer says otherwise."""
        return self.carry

    @abstractmethod
    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        """The mixer by its definition, for inputs x [B, n, D] in float64.

        Args:
            xp: the namespace of array functions (``torch`` in tests), of which x and w are arrays.
            w: weights, whole (one rank), in the shapes of ``weights``.
            at: sizes and mask, with the tables of rotary positions; the kernel is of no consequence.
        """

    @abstractmethod
    def weights(self, m: Sizes) -> dict[str, Shape]:
        """Shapes of the weights on one tensor-parallel rank.

        Those that read the input begin with the model width, those that read a memory with its width.
        """

    def decode_weights(self, m: Sizes) -> dict[str, Shape]:
        """The same in the form that decoding takes, found from ``weights`` beforehand where it is another."""
        return self.weights(m)

    def per_token(self, m: Sizes) -> bool:
        """Whether it has weights for every token of the sequence, whose length is not among the sizes ``m``."""
        try:
            self.weights(m)
        except KeyError:
            return True
        return False

    @abstractmethod
    def inputs(self, m: Sizes) -> tuple[str, ...]:
        """The weights that are multiplied with the layer's input, in the order in which ``project`` gets them."""

    def memory(self, m: Sizes) -> SecondSequence | None:
        """The second sequence that it reads; none unless a mixer says otherwise."""
        return None

    @abstractmethod
    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        """The carry, and what is kept for decoding, from the products [B, n, ...] of the input and its weights.

        Where ``inputs`` names ``INPUT``, the layer's input itself [B, n, D] is among them.
        """

    @abstractmethod
    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        """The carry of one new token against the cache; of any number of them where it ``extends``."""

    @abstractmethod
    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        """The layer's output [B, n, D] from the mixed values [B, H, n, e]; a partial sum under tensor parallelism."""

    @abstractmethod
    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        """What decoding keeps, per sequence, after ``tokens`` tokens."""

    @abstractmethod
    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        """Heads of queries and of keys, in the form that strategies may cut."""

    def grain(self, m: Sizes) -> int:
        """Tokens that stay together on a rank, because they are worked on as one chunk or block."""
        return 1

    def longest(self, kernel: str) -> int:
        """Tokens of the longest sequence that a kernel can do; 0 without a limit."""
        return 0

    def segments(self, m: Sizes) -> int:
        """Equal parts of the whole sequence that are summed up each by itself, so that none is cut; 0 without any."""
        return 0

    def overlap(self, m: Sizes) -> Dim:
        """Tokens of the rank before that a rank's own read, as under a short convolution, so that it needs as many."""
        return 0

    def shortest(self, m: Sizes) -> int:
        """Tokens that a rank must hold at the least."""
        return 1

    def lanes(self, m: Sizes) -> Dim:
        """Into how many sequences of their own a strided pattern parts the tokens; 0 where there is none."""
        return 0

    def hidden(self, m: Sizes) -> Dim:
        """Entries between the two products of a perceptron along the sequence; 0 where there is none."""
        return 0

    def usual_width(self, sizes: Mapping[str, int]) -> int:
        """The model width that goes with hyperparameters, by their names."""
        return sizes["heads"] * sizes.get("head_dim", sizes.get("value_dim", 1))

    def reach(self, m: Sizes) -> Dim:
        """How many tokens away, to one side, a token sees at most (in one exchange); only for the halo carry."""
        return 0

    def rotary(self, m: Sizes) -> Dim:
        """How many entries of a head's dimension turn with the position; 0 unless a mixer says otherwise."""
        return 0

    def turns(self, m: Sizes) -> list[float]:
        """Radians by which each of the ``rotary`` / 2 pairs of entries turns from one token to the next.

        Those of rotary positions (Su et al., arXiv 2104.09864, section 3.2.2), unless a mixer says otherwise.
        """
        half = int(self.rotary(m)) // 2
        return [ROPE_BASE ** (-pair / half) for pair in range(half)]


class Unmasked(Mixer):
    """A mixer in which every token sees all others, so that it has no decoding and keeps no cache."""

    causality: ClassVar[str] = "full"

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        raise InputError("pass", "decode", f"{self.name} is not causal, and cannot decode token by token")

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        return ()


mixers = Registry("mixer", "costmodel.mixers", Mixer, joined="costmodel.mixture:mixture")
