"""Tree decoding: the cache is spread over ranks, and partial results are reduced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, TypeVar

from costmodel.carries.pairs import Pairs
from costmodel.masks import Mask
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.strategy import Requirement, Situation, Strategy, equal_cache, only_fused, only_passes

T = TypeVar("T")


class Tree(Strategy):
    """Every rank attends with all queries over its own keys; outputs are weighted by log-sum-exp and summed.

    What is sent does not depend on the length of the cache.
    """

    name: ClassVar[str] = "tree"
    title: ClassVar[str] = "tree attention (decoding over a cache spread by sequence)"
    source: ClassVar[str] = "Shyam et al. 2024, arXiv 2408.04093"
    axes: ClassVar[tuple[str, ...]] = ("context",)

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        yield only_passes(at, "decode")
        yield only_fused(at)
        yield equal_cache(at)

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: Pairs[T]) -> T:
        axis = axes["context"]
        out, lse = ops.attention(carry.q, carry.k, carry.v, Mask(), carry.scale)
        b, h, n, _ = ops.shape(out)
        gathered = ops.all_gather(ops.reshape(lse, (b, h, n, 1)), axis, 3)
        weights = ops.softmax(gathered, 1, Mask())  # exp(lse_r) over the sum of all ranks'
        own = ops.slice(weights, 3, axis.rank, 1)
        return ops.cast(ops.all_reduce(ops.mul(ops.cast(out, "accumulate"), own), axis), "model")


tree = Tree()
