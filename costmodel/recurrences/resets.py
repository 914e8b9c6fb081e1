"""States that are reset at the first token of each packed document, for every recurrence with decay.

As ``cu_seqlens`` of flash-linear-attention and ``seq_idx`` of state-spaces/mamba do. A reset is a decay of 0, whose
logarithm is -inf. Sums of logarithms are -inf as soon as one of them is, and their exponential is then 0 with a
gradient of 0, whereas differences of such sums are no numbers: pairs within chunks therefore have the decay without
resets, and those of two documents are left out. Chunks stay where they are, so that a document may begin within one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from costmodel.dims import Dim
from costmodel.documents import Packed
from costmodel.ops.resets import Apart, Reset
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")


def reset(ops: Vocabulary[T], x: T, packed: Packed | None, fill: str = "0", axis: int = 2) -> T:
    """Tokens along an axis, ``fill`` in the first of each document; as they are where none are packed."""
    return x if packed is None else ops.apply(Reset(packed, axis, fill), x)[0]


def apart(ops: Vocabulary[T], pairs: T, packed: Packed | None) -> T:
    """Pairs [B, H, N, C, C] of chunks, 0 where they are of two documents; as they are where none are packed."""
    return pairs if packed is None else ops.apply(Apart(packed), pairs)[0]


def with_resets(ops: Vocabulary[T], log_decay: T | None, packed: Packed | None, like: T) -> T | None:
    """The logarithm of decay [B, H, n, 1 or d], -inf where the state is reset; ``None`` for neither decay nor resets.

    Args:
        like: [B, H, n, ...], of which it has the tokens where there is no decay.
    """
    if packed is None:
        return log_decay
    if log_decay is None:
        log_decay = ops.zeros((*ops.shape(like)[:3], 1), "accumulate")
    return reset(ops, log_decay, packed, "-inf")


def kept(ops: Vocabulary[T], n: Dim, packed: Packed | None) -> tuple[T, ...]:
    """The logarithm of what n tokens leave of a state by resets alone [1, 1, n, 1]: 0 or -inf; none without."""
    return () if packed is None else (reset(ops, ops.zeros((1, 1, n, 1), "accumulate"), packed, "-inf"),)


@dataclass(frozen=True)
class Fades(Generic[T]):
    """Sums of the logarithms of decay with resets, in chunks.

    Attributes:
        read: from the chunk's start up to each token [B, H, N, C, 1 or d]: how it reads the state before the chunk.
        early: the same without its own.
        left: after each token up to the chunk's end: what is left of it in the state after.
        whole: of the chunk [B, H, N, 1, 1 or d].
    """

    read: T
    early: T | None
    left: T
    whole: T


def fades(ops: Vocabulary[T], log_decay: T, early: bool = False) -> Fades[T]:
    """Of the logarithm of decay with resets, in chunks [B, H, N, C, 1 or d].

    Args:
        early: whether ``Fades.early`` is needed.
    """
    read, chunk = ops.cumsum(log_decay, 3), ops.shape(log_decay)[3]
    before = ops.cumsum(log_decay, 3, exclusive=True) if early else None
    left = ops.cumsum(log_decay, 3, reverse=True, exclusive=True)
    return Fades(read, before, left, ops.slice(read, 3, chunk - 1, 1))


def to_the_end(ops: Vocabulary[T], sums: tuple[T, ...]) -> tuple[T, T]:
    """In a scan over chunks: ``Fades.left`` and ``whole`` [B, H, C or 1, 1 or d], or from sums without resets."""
    if len(sums) == 2:
        return sums[0], sums[1]
    (running,) = sums
    chunk: Dim = ops.shape(running)[2]
    last = ops.slice(running, 2, chunk - 1, 1)
    return ops.map("sub", last, running), last
