"""MoBA: a mixture of block attention, where each head of each query chooses blocks by the mean of their keys."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, TypeVar

from costmodel.carries.selection import Blocks, Choice
from costmodel.composite import rope
from costmodel.dims import Dim, ceil_div, divide, floor_div, minimum
from costmodel.mixer import Hyperparameter, Kept, Site, Sizes, Weights, Written
from costmodel.mixers.heads import Choosing
from costmodel.ops.chosen_blocks import Placed
from costmodel.ops.vocabulary import Vocabulary
from costmodel.written import kept, softmax_matrix, turned

T = TypeVar("T")


class Moba(Choosing):
    """A query sees its own block up to itself, and the S - 1 blocks before it whose mean keys it likes best.

    What is hidden in it: the gate compares every query with every block, 2 B H L (L / b) d FLOP, and chooses among
    L / b: quadratic in L, and more than the attention itself (4 B H L S b d) from L = 2 S b^2 on.
    """

    name: ClassVar[str] = "moba"
    title: ClassVar[str] = "MoBA: mixture of block attention"
    template: ClassVar[str] = (
        "P = softmax(M(X) + Q K^T / sqrt(d)),  M_ij = 0 for j <= i in block i // b or in the S - 1 earlier blocks with "
        "the largest q_i . mean(k), else -inf;  V = X W_v"
    )
    source: ClassVar[str] = "Lu et al. 2025, arXiv 2502.13189; MoonshotAI/MoBA moba/moba_{naive,efficient}.py"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 32, "query heads", cut=True),
        "kv_heads": Hyperparameter("H_kv", 8, "key-value heads", cut=True),
        "head_dim": Hyperparameter("d", 128, "head dimension"),
        "block": Hyperparameter("b", 4096, "tokens of a block"),
        "chosen": Hyperparameter("S", 12, "blocks that a query sees, its own included"),
    }

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Blocks[T], tuple[T, ...]]:
        q, k, v = rope(ops, read[0], *at.tables), rope(ops, read[1], *at.tables), read[2]
        batch, groups, n, d = ops.shape(k)
        block = at.sizes["b"]
        blocks = ops.reshape(k, (batch, groups, divide(n, block), block, d))
        sums = ops.cast(ops.reshape(ops.sum(blocks, (3,)), (batch, groups, divide(n, block), d)), "accumulate")
        return self._carry(q, k, v, sums, at), (k, v, sums)

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Blocks[T]:
        q, k = (rope(ops, x, *at.tables) for x in read[:2])
        keys = ops.append(at.cache[0], k, 2, at.cache_axis)
        values = ops.append(at.cache[1], read[2], 2, at.cache_axis)
        own = floor_div(ops.shape(keys)[2] - 1, at.sizes["b"])
        return self._carry(q, keys, values, ops.add_into(at.cache[2], k, 2, own), at)

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        q, k, v = (xp.einsum("bld,dhe->bhle", x, w[name]) for name in ("w_q", "w_k", "w_v"))
        q, k = (turned(xp, y, *at.tables) for y in (q, k))
        k, v = (xp.repeat_interleave(y, q.shape[1] // y.shape[1], 1) for y in (k, v))
        allowed = _allowed(xp, q.detach(), k.detach(), at)
        scores = xp.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5
        matrix = softmax_matrix(xp, xp.where(allowed, scores, -xp.inf), at.mask)
        return Written(matrix, v, xp.einsum("bhij,bhje,hed->bid", matrix, v, w["w_o"]))

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        keys = Kept((m["H_kv"], tokens, m["d"]), tokens=True)
        return keys, keys, Kept((m["H_kv"], ceil_div(tokens, m["b"]), m["d"]), "accumulate")

    def _carry(self, q: T, k: T, v: T, sums: T, at: Site[T]) -> Blocks[T]:
        choice = Choice(at.sizes["b"], partial(best_blocks, at.sizes["S"]), by_block=not at.cache)
        return Blocks(q, k, v, sums, choice, at.sizes["d"] ** -0.5)


def best_blocks(most: Dim, ops: Vocabulary[T], q: T, sums: T, placed: Placed) -> T:
    """The blocks that each query sees [B, H, n, min(most, blocks)], as one kernel.

    Args:
        sums: of the keys of each block [B, H_kv, blocks, d]; the same order as means, as all earlier blocks are full.
    """

    def body(ops: Vocabulary[Any], q: Any, sums: Any) -> Any:
        batch, heads, n, d = ops.shape(q)
        groups, blocks = ops.shape(sums)[1:3]
        grouped = ops.reshape(q, (batch, groups, divide(heads, groups), n, d))
        scores = ops.reshape(ops.contract("bkgid,bkjd->bkgij", grouped, sums), (batch, heads, n, blocks))
        return ops.top_k(ops.visible_blocks(scores, placed), minimum(most, blocks))[1]

    result: T = ops.fused("block gate", body, q, sums, family="attention")
    return result


def _allowed(xp: Any, q: Any, k: Any, at: Site[Any]) -> Any:
    """Which pairs [B, H, n, n] lie in the query's own block or in one that it chooses, query by query."""
    block, most, n = at.sizes["b"], at.sizes["S"], q.shape[2]
    allowed = xp.zeros((*q.shape[:3], n), dtype=xp.bool)
    for i in range(n):
        own = i // block
        allowed[:, :, i, own * block :] = True
        if own == 0 or most == 1:
            continue
        means = k[:, :, : own * block].reshape(*k.shape[:2], own, block, -1).mean(3)
        likes = xp.einsum("bhd,bhjd->bhj", q[:, :, i], means)
        best = likes.argsort(-1)[..., -(most - 1) :]
        member = (best[..., None] == xp.arange(own)).any(-2)
        allowed[:, :, i, : own * block] = xp.repeat_interleave(member, block, -1)
    return allowed & kept(xp, at.mask, n, n)


moba = Moba()
