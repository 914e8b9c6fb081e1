"""BigBird: blocks that see their neighbours, a few random blocks, and the first and the last, which see all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from costmodel.carries.pattern import Pattern, Seen, ends, over_all
from costmodel.carry import Carry
from costmodel.dims import Dim, Shape, divide
from costmodel.masks import Mask
from costmodel.mixer import Hyperparameter, Site, Sizes, Unmasked, Weights, Written
from costmodel.mixers.heads import Patterned, first_head
from costmodel.ops.block_table import BlockTable, random_blocks
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.written import softmax_where

T = TypeVar("T")


@dataclass(frozen=True)
class Blocks(Pattern[T]):
    """Softmax attention of q, k, v [B, H, n, d] between blocks that see each other.

    As random blocks are anywhere, keys and values of all ranks are gathered; rows of the two global blocks are computed
    by all ranks together, each over its own keys. The blocks that another sees are copied beside each other, and
    backward once more, so that no copy is kept.

    Attributes:
        heads: their numbers [H], which random blocks depend on.
        block: tokens of a block.
        random: blocks that are seen besides.
    """

    along: ClassVar[tuple[str, ...]] = ("q", "k", "v")
    of_heads: ClassVar[tuple[str, ...]] = ("heads",)

    q: T
    k: T
    v: T
    heads: T
    block: Dim
    random: Dim
    scale: Dim

    def beside(self, ops: Vocabulary[T], line: Axis | None) -> T:
        n, block, there = ops.shape(self.q)[2], self.block, ends(line)
        first, last = there
        outer = [ops.slice(self.q, 2, start, block) for start in (0, n - block)]
        if line is None:
            asked = ops.concat(outer, 2)
        else:
            own = [ops.scale(x, mine) for x, mine in zip(outer, there, strict=True)]
            asked = ops.all_reduce(ops.concat(own, 2), line)
        full = over_all(ops, asked, Seen(self.k, self.v, Mask()), self.scale, line)
        inner = self._inner(ops, ops.slice(self.q, 2, block * first, n - block * (first + last)), line)
        return ops.concat([ops.slice(full, 2, 0, block * first), inner, ops.slice(full, 2, block, block * last)], 2)

    def _inner(self, ops: Vocabulary[T], q: T, line: Axis | None) -> T:
        """The rows of all blocks but the first and the last of the sequence."""
        there, rows = ends(line), divide(ops.shape(self.q)[2], self.block)
        ranks, rank = (1, 0) if line is None else (line.size, line.rank)
        table = BlockTable(rows * ranks, rows * rank, rows, there, self.random)

        def forward(ops: Vocabulary[Any], heads: Any, q: Any, k: Any, v: Any) -> tuple[Any, tuple[Any, ...]]:
            tables, parts = ops.apply(table, heads), self._parted(ops, q, there)
            keys, values = (_everywhere(ops, x, line) for x in (k, v))
            found = [
                ops.attention(part, self._seen(ops, keys, seen), self._seen(ops, values, seen), Mask(), self.scale)
                for part, seen in zip(parts, tables, strict=True)
            ]
            out, lse = (_joined(ops, x, ops.shape(q), there) for x in zip(*found, strict=True))
            return out, (q, k, v, out, lse, *tables)

        def backward(ops: Vocabulary[Any], saved: tuple[Any, ...], gradient: Any) -> tuple[Any, ...]:
            q, k, v, out, lse, *tables = saved
            keys, values = (_everywhere(ops, x, line) for x in (k, v))
            parts = zip(*(self._parted(ops, x, there) for x in (q, out, lse, gradient)), strict=True)
            found = []
            for (query, rows, sums, given), seen in zip(parts, tables, strict=True):
                copied, values_too = (self._seen(ops, x, seen) for x in (keys, values))
                dq, *moved = ops.attention_backward(query, copied, values_too, rows, sums, given, Mask(), self.scale)
                found.append((dq, *(self._put_back(ops, x, seen, ops.shape(keys)) for x in moved)))
            of_q, *of_keys = zip(*found, strict=True)
            dk, dv = (_own(ops, ops.add_into(middle, edges, 2), line) for edges, middle in of_keys)
            return None, _joined(ops, of_q, ops.shape(q), there), dk, dv

        result: T = ops.custom(forward, backward, self.heads, q, self.k, self.v)
        return result

    def _parted(self, ops: Vocabulary[T], x: T, there: tuple[Dim, Dim]) -> tuple[T, T]:
        """Blocks at the edges and those between, as heads of their own: [B, H, n, ...] to [B, H blocks, b, ...]."""
        b, h, n, *inner = ops.shape(x)
        (first, last), count = there, divide(n, self.block)
        blocks = ops.reshape(x, (b, h, count, self.block, *inner))
        edges = ops.concat([ops.slice(blocks, 2, 0, first), ops.slice(blocks, 2, count - last, last)], 2)
        middle = ops.slice(blocks, 2, first, count - first - last)
        at_edges, between = (
            ops.reshape(part, (b, h * ops.shape(part)[2], self.block, *inner)) for part in (edges, middle)
        )
        return at_edges, between

    def _seen(self, ops: Vocabulary[T], x: T, seen: T) -> T:
        """The keys or values [B, H, L, d] that blocks see [H, rows, S]: [B, H rows, S b, d]."""
        b, h, n, d = ops.shape(x)
        blocks = ops.reshape(x, (b, h, divide(n, self.block), self.block, d))
        copies = ops.gather(blocks, ops.expand(seen, (b, *ops.shape(seen))), 2)
        rows, count = ops.shape(seen)[1:]
        return ops.reshape(copies, (b, h * rows, count * self.block, d))

    def _put_back(self, ops: Vocabulary[T], gradient: T, seen: T, shape: Shape) -> T:
        """Gradients of copies summed up where they are from, [B, H, L, d]."""
        batch, _, n, d = shape
        copies = ops.reshape(ops.cast(gradient, "accumulate"), (batch, *ops.shape(seen), self.block, d))
        summed = ops.scatter_add(copies, ops.expand(seen, (batch, *ops.shape(seen))), 2, divide(n, self.block))
        return ops.reshape(summed, shape)


def _joined(ops: Vocabulary[T], parts: Sequence[T], shape: Shape, there: tuple[Dim, Dim]) -> T:
    """The way back from ``_parted``, to [B, H, n, ...] of a shape."""
    (first, last), (b, h, n, *_) = there, shape
    edges, middle = (ops.reshape(x, (b, h, divide(ops.shape(x)[1], h), *ops.shape(x)[2:])) for x in parts)
    rows = ops.concat([ops.slice(edges, 2, 0, first), middle, ops.slice(edges, 2, first, last)], 2)
    return ops.reshape(rows, (b, h, n, *ops.shape(rows)[4:]))


def _everywhere(ops: Vocabulary[T], x: T, line: Axis | None) -> T:
    return x if line is None else ops.all_gather(x, line, 2)


def _own(ops: Vocabulary[T], gradient: T, line: Axis | None) -> T:
    """This rank's part of a gradient, summed over ranks."""
    if line is not None:
        gradient = ops.reduce_scatter(ops.cast(gradient, "gradient"), line, 2)
    return ops.cast(gradient, "model")


class BigBird(Patterned, Unmasked):
    """P = softmax over the own block, its neighbours, n_r random blocks, the first and the last; their rows are full.

    The form with global tokens in the sequence (ITC). Random blocks are none that a row sees anyway; they differ from
    head to head.
    """

    name: ClassVar[str] = "bigbird"
    title: ClassVar[str] = "BigBird: window, random and global blocks"
    template: ClassVar[str] = (
        "P = softmax(M + Q K^T / sqrt(d)), M: blocks of b tokens, row I sees I - 1, I, I + 1, n_r random, first, last; "
        "rows of the first and last see all;  V = X W_v"
    )
    source: ClassVar[str] = "Zaheer et al. 2020, arXiv 2007.14062, section 2; google-research/bigbird core/attention.py"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 12, "heads", cut=True),
        "head_dim": Hyperparameter("d", 64, "head dimension"),
        "block": Hyperparameter("b", 64, "tokens of a block"),
        "random": Hyperparameter("n_r", 3, "random blocks that a block of queries sees"),
    }

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        q, k, v = read
        m = at.sizes
        heads = ops.numbers(first_head(at), m["H"])
        return Blocks(q, k, v, heads, m["b"], m["n_r"], m["d"] ** -0.5), ()

    def grain(self, m: Sizes) -> int:
        return int(m["b"])

    def shortest(self, m: Sizes) -> int:
        return int((5 + m["n_r"]) * m["b"])

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        q, k, v = (xp.einsum("bld,dhe->bhle", x, w[name]) for name in ("w_q", "w_k", "w_v"))
        block = xp.arange(x.shape[1]) // at.sizes["b"]
        last = int(block[-1])
        near = (block[:, None] - block).abs() <= 1
        whole = (block == 0) | (block == last)
        keep = (near | whole | whole[:, None]).repeat(q.shape[1], 1, 1)
        for head in range(q.shape[1]):
            for row in range(1, last):
                for seen in random_blocks(head, row, last + 1, at.sizes["n_r"]):
                    keep[head] |= (block == row)[:, None] & (block == seen)
        matrix = softmax_where(xp, xp.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5, keep)
        return Written(matrix, v, xp.einsum("bhij,bhje,hed->bid", matrix, v, w["w_o"]))


bigbird = BigBird()
