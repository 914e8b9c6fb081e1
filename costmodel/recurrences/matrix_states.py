"""Recurrences whose tokens apply a matrix to the state: what they have in common, whatever the matrix is made of."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, TypeVar

from costmodel.carries.state import Affine, State, Tensors
from costmodel.dims import Dim, divide
from costmodel.masks import Mask
from costmodel.ops.scan import Recurrence
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")

KERNELS = ("chunked", "recurrent")


class MatrixStates(State[T]):
    """A recurrence of q, k [B, H, n, d] and v [B, H, n, e]; the state is [B, H, d, e].

    What a stretch of tokens does to the state is a matrix [d, d] for each head. Subclasses are dataclasses with these
    fields and others.

    Attributes:
        chunk: tokens of a chunk.
        kernel: one of ``KERNELS``.
        before_scan: how many of the tensors of ``chunks`` are not for the scan over chunks.
    """

    q: T
    k: T
    v: T
    chunk: Dim
    kernel: str
    before_scan: ClassVar[int]

    @abstractmethod
    def chunks(self, ops: Vocabulary[T]) -> Tensors[T]:
        """Of each chunk: scores of what the scan hands out, queries for the state before, values of its own pairs if
        there are others; then what the scan reads.
        """

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

    def prepare(self, ops: Vocabulary[T]) -> Tensors[T]:
        return () if self.kernel == "recurrent" else self.chunks(ops)

    def summary(self, ops: Vocabulary[T], prepared: Tensors[T]) -> Affine[T]:
        start = (identity(ops, self.k), *self.initial(ops))
        if self.kernel == "recurrent":
            (matrix, state), _ = ops.scan(self.over_tokens(read=False), start, self.streams(), axis=2)
        else:
            chunks = prepared[self.before_scan :]
            (matrix, state), _ = ops.scan(self.over_chunks(read=False), start, chunks, axis=2)
        return Affine((matrix,), (state,))

    def move(self, ops: Vocabulary[T], transition: Tensors[T], state: Tensors[T]) -> Tensors[T]:
        return (ops.contract("bhxd,bhde->bhxe", transition[0], state[0]),)

    def transposed(self, ops: Vocabulary[T], transition: Tensors[T]) -> Tensors[T]:
        return (ops.permute(transition[0], (0, 1, 3, 2)),)

    def outputs(self, ops: Vocabulary[T], prepared: Tensors[T], state: Tensors[T]) -> T:
        if self.kernel == "recurrent":
            return ops.scan(self.over_tokens(read=True), state, self.streams(), axis=2)[1][0]
        scores, queries, *others = prepared[: self.before_scan]
        _, (befores, updates) = ops.scan(self.over_chunks(read=True), state, prepared[self.before_scan :], axis=2)
        within = ops.contract("bhnij,bhnje->bhnie", scores, updates, Mask(causal=True), "ij")
        for more in others:
            within = ops.add(more, within)
        before = ops.contract("bhnid,bhnde->bhnie", queries, befores)
        return ops.reshape(ops.add(within, before), ops.shape(self.v))

    def cut(self, ops: Vocabulary[T], y: T) -> T:
        """Chunks [B, H, N, C, ...] of tokens [B, H, n, ...]."""
        b, h, n, d = ops.shape(y)
        return ops.reshape(y, (b, h, divide(n, self.chunk), self.chunk, d))


def identity(ops: Vocabulary[T], k: T) -> T:
    """A unit matrix [B, H, d, d] for each head of k."""
    b, h, _, d = ops.shape(k)
    lower = ops.masked(ops.ones((b, h, d, d), "accumulate"), Mask(causal=True))
    return ops.map("sub", lower, ops.masked(lower, Mask(causal=True), strict=True))
