"""Recurrences whose tokens apply a matrix to the state: what they have in common, whatever the matrix is made of."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from costmodel.carries.state import Affine, State, Tensors
from costmodel.dims import Dim
from costmodel.masks import Mask
from costmodel.ops.scan import Recurrence
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")

KERNELS = ("chunked", "recurrent")


@dataclass(frozen=True)
class Chunked(Generic[T]):
    """What is done with chunks before the state is known.

    Attributes:
        scanned: what the scan over chunks reads of each.
        own: what else ``values`` reads.
    """

    scanned: Tensors[T]
    own: Any


class MatrixStates(State[T]):
    """A recurrence of q, k [B, H, n, d] and v [B, H, n, e]; the state is [B, H, d, e].

    What a stretch of tokens does to the state is a matrix [d, d] for each head. Subclasses are dataclasses with these
    fields and others.

    Attributes:
        chunk: tokens of a chunk.
        kernel: one of ``KERNELS``.
    """

    q: T
    k: T
    v: T
    chunk: Dim
    kernel: str

    @abstractmethod
    def tokens(self, ops: Vocabulary[T]) -> Tensors[T]:
        """What the scan over tokens reads of each."""

    @abstractmethod
    def chunks(self, ops: Vocabulary[T]) -> Chunked[T]: ...

    @abstractmethod
    def values(self, ops: Vocabulary[T], chunked: Chunked[T], befores: T, updates: T) -> T:
        """Values [B, H, N, C, e] as one kernel, from states before chunks and updates, which the scan hands out."""

    @staticmethod
    @abstractmethod
    def over_chunks(read: bool) -> Recurrence:
        """Over (the matrix of the tokens so far and) the state; hands out states before chunks, and updates of rows."""

    @staticmethod
    @abstractmethod
    def over_tokens(read: bool) -> Recurrence:
        """Over the same, token by token; hands out their values."""

    def initial(self, ops: Vocabulary[T]) -> Tensors[T]:
        b, h, _, d = ops.shape(self.k)
        return (ops.zeros((b, h, d, ops.shape(self.v)[3]), "accumulate"),)

    def prepare(self, ops: Vocabulary[T]) -> Any:
        return self.tokens(ops) if self.kernel == "recurrent" else self.chunks(ops)

    def summary(self, ops: Vocabulary[T], prepared: Any) -> Affine[T]:
        start = (identity(ops, self.k), *self.initial(ops))
        if self.kernel == "recurrent":
            (matrix, state), _ = ops.scan(self.over_tokens(read=False), start, prepared, axis=2)
        else:
            (matrix, state), _ = ops.scan(self.over_chunks(read=False), start, prepared.scanned, axis=2)
        return Affine((matrix,), (state,))

    def move(self, ops: Vocabulary[T], transition: Tensors[T], state: Tensors[T]) -> Tensors[T]:
        return (ops.contract("bhxd,bhde->bhxe", transition[0], state[0]),)

    def transposed(self, ops: Vocabulary[T], transition: Tensors[T]) -> Tensors[T]:
        return (ops.permute(transition[0], (0, 1, 3, 2)),)

    def outputs(self, ops: Vocabulary[T], prepared: Any, state: Tensors[T]) -> T:
        if self.kernel == "recurrent":
            return ops.scan(self.over_tokens(read=True), state, prepared, axis=2)[1][0]
        _, handed = ops.scan(self.over_chunks(read=True), state, prepared.scanned, axis=2)
        return ops.reshape(self.values(ops, prepared, *handed), ops.shape(self.v))


def identity(ops: Vocabulary[T], k: T) -> T:
    """A unit matrix [B, H, d, d] for each head of k."""
    b, h, _, d = ops.shape(k)
    lower = ops.masked(ops.ones((b, h, d, d), "accumulate"), Mask(causal=True))
    return ops.map("sub", lower, ops.masked(lower, Mask(causal=True), strict=True))
