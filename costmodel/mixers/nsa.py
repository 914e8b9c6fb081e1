"""NSA: native sparse attention, of means of blocks, of blocks that these choose, and of near tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from costmodel.carries.selection import Selection, everywhere, first_query, own_part
from costmodel.composite import rope
from costmodel.dims import Dim, Shape, ceil_div, divide, floor_div, minimum
from costmodel.masks import Mask
from costmodel.mixer import Hyperparameter, Kept, Site, Sizes, Weights, Written
from costmodel.mixers.heads import Choosing
from costmodel.ops.chosen_blocks import ChosenAttention, Placed
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.written import kept, softmax_where, turned

T = TypeVar("T")


@dataclass(frozen=True)
class Reach:
    """What a rank's queries see, of all keys and means.

    Attributes:
        past: means, from the first on.
        first, near: where near keys begin, and how many there are.
    """

    past: Dim
    first: Dim
    near: Dim


@dataclass(frozen=True)
class Branches(Selection[T]):
    """Three attentions of q [B, H, n, d], gated and added up.

    Over means of blocks of keys and values [B, H_kv, n / b, ...]; over blocks of k and v [B, H_kv, n, ...] that the
    weights of the first choose; and over near tokens. All keys, values and means cross a cut.

    Attributes:
        gates: of the three, before the sigmoid [B, H, n, 3].
        mask: of means; a mean is seen once its block is past.
        most: blocks that a query sees, its own included.
        window: near tokens, the query's own included.
    """

    along: ClassVar[tuple[str, ...]] = ("q", "k", "v", "mean_k", "mean_v", "gates")

    q: T
    k: T
    v: T
    mean_k: T
    mean_v: T
    gates: T
    block: Dim
    mask: Mask
    most: Dim
    window: Dim
    scale: Dim

    def across(self, ops: Vocabulary[T], axis: Axis | None) -> T:
        start = first_query(ops, self.q, self.k, axis)
        reach, near = self._reach(ops, start), Mask(causal=True, window=self.window)
        kernel = ChosenAttention(Placed(self.block, start), self.scale, ops.width("accumulate"))

        def forward(ops: Vocabulary[T], q: T, *own: T) -> tuple[tuple[T, ...], tuple[T, ...]]:
            k, v, mean_k, mean_v = (everywhere(ops, x, axis) for x in own)
            past_k, past_v = (ops.slice(x, 2, 0, reach.past) for x in (mean_k, mean_v))
            coarse = ops.attention(q, past_k, past_v, self.mask, self.scale)
            chosen = self._likely(ops, q, past_k if self.mask.causal else mean_k, coarse[1], kernel.placed)
            fine = ops.apply(kernel, q, k, v, chosen)
            near_k, near_v = (ops.slice(x, 2, reach.first, reach.near) for x in (k, v))
            local = ops.attention(q, near_k, near_v, near, self.scale)
            return (coarse[0], fine[0], local[0]), (q, *own, chosen, *coarse, *fine, *local)

        def backward(ops: Vocabulary[T], saved: tuple[T, ...], *gradients: T) -> tuple[T | None, ...]:
            q, own, chosen, (coarse, coarse_lse, *fine, local, local_lse) = saved[0], saved[1:5], saved[5], saved[6:]
            k, v, mean_k, mean_v = (everywhere(ops, x, axis) for x in own)
            past_k, past_v = (ops.slice(x, 2, 0, reach.past) for x in (mean_k, mean_v))
            dq_coarse, *means = ops.attention_backward(
                q, past_k, past_v, coarse, coarse_lse, gradients[0], self.mask, self.scale
            )
            dq_fine, *keys = ops.chosen_attention_backward((q, k, v, chosen), fine, gradients[1], kernel)
            near_k, near_v = (ops.slice(x, 2, reach.first, reach.near) for x in (k, v))
            dq_local, *few = ops.attention_backward(q, near_k, near_v, local, local_lse, gradients[2], near, self.scale)
            keys = [ops.add_into(x, y, 2, reach.first) for x, y in zip(keys, few, strict=True)]
            means = [ops.pad(x, 2, 0, ops.shape(mean_k)[2]) for x in means]
            dq = ops.add(ops.add(dq_coarse, dq_fine), dq_local)
            return dq, *(own_part(ops, x, axis) for x in (*keys, *means))

        outs = ops.custom(forward, backward, self.q, self.k, self.v, self.mean_k, self.mean_v)
        result: T = ops.fused("gated sum", gated_sum, self.gates, *outs)
        return result

    def _reach(self, ops: Vocabulary[T], start: Dim) -> Reach:
        queries, before = ops.shape(self.q)[2], minimum(start, self.window - 1)
        past = divide(start + queries, self.block) if self.mask.causal else floor_div(start + queries, self.block)
        return Reach(past, start - before, before + queries)

    def _likely(self, ops: Vocabulary[T], q: T, means: T, lse: T, placed: Placed) -> T:
        """The blocks that each query sees [B, H_kv, n, min(most, blocks)], as one kernel.

        The own block, the one before it and the first, and those with the largest weights, summed over query heads.
        """

        def body(ops: Vocabulary[Any], q: Any, means: Any, lse: Any) -> Any:
            batch, heads, n, d = ops.shape(q)
            groups, blocks = ops.shape(means)[1:3]
            shared = divide(heads, groups)
            grouped = ops.reshape(q, (batch, groups, shared, n, d))
            scores = ops.contract("bkgid,bkjd->bkgij", grouped, means, self.mask, "ij", skipping=True)
            weights = ops.map(
                "exp", ops.map("sub", ops.scale(scores, self.scale), ops.reshape(lse, (batch, groups, shared, n, 1)))
            )
            summed = ops.reshape(ops.sum(weights, (2,)), (batch, groups, n, blocks))
            return ops.top_k(ops.visible_blocks(summed, placed, always=3), minimum(self.most, blocks))[1]

        result: T = ops.fused("block gate", body, q, means, lse, family="attention")
        return result


def gated_sum(ops: Vocabulary[T], gates: T, *outs: T) -> T:
    """The sum of [B, H, n, e] tensors, each times the sigmoid of its gate [B, H, n, 1 of as many]."""
    opened = ops.map("sigmoid", gates)
    first, *others = (ops.mul(out, ops.slice(opened, 3, place, 1)) for place, out in enumerate(outs))
    for other in others:
        first = ops.add(first, other)
    return first


class Nsa(Choosing):
    """Compressed, selected and sliding attention of the same queries, keys and values.

    Blocks are compressed by their mean and do not overlap, as in flash-linear-attention; the paper learns an MLP over
    blocks of 32 tokens, 16 apart, and gives each branch keys and values of its own. A query's own block, the one before
    it and the first are always selected.

    What is hidden in it: compression compares every query with every block before it, 2 B H (L^2 / b) d FLOP, and the
    choice does half of that again: quadratic in L, and more than both other branches, 4 B H L (S b + w_n) d, from
    L = 4/3 b (S b + w_n) on.
    """

    name: ClassVar[str] = "nsa"
    title: ClassVar[str] = "NSA: native sparse attention"
    template: ClassVar[str] = (
        "P = g_1 softmax(Q mean(K)^T / sqrt(d)) mean + g_2 softmax(M(X) + Q K^T / sqrt(d)) "
        "+ g_3 softmax(M_w + Q K^T / sqrt(d)),  g = sigmoid(X W_g);  V = X W_v"
    )
    source: ClassVar[str] = "Yuan et al. 2025, arXiv 2502.11089; flash-linear-attention fla/{ops,layers}/nsa"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 64, "query heads", cut=True),
        "kv_heads": Hyperparameter("H_kv", 4, "key-value heads, each with a choice of its own", cut=True),
        "head_dim": Hyperparameter("d", 64, "head dimension"),
        "block": Hyperparameter("b", 64, "tokens of a block"),
        "chosen": Hyperparameter("S", 16, "blocks that a query sees, its own included"),
        "near": Hyperparameter("w_n", 512, "tokens that a query sees in the sliding branch, itself included"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        return super().weights(m) | {"w_g": (m["D"], m["H"], 3)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return *super().inputs(m), "w_g"

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Branches[T], tuple[T, ...]]:
        q, k, v = rope(ops, read[0], *at.tables), rope(ops, read[1], *at.tables), read[2]
        mean_k, mean_v = (block_means(ops, x, at.sizes["b"]) for x in (k, v))
        mask = Mask(causal=True, stride=at.sizes["b"])
        return _carry((q, k, v, mean_k, mean_v, read[3]), mask, at), (k, v, mean_k, mean_v)

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Branches[T]:
        q, new_k = (rope(ops, x, *at.tables) for x in read[:2])
        new, block = (new_k, read[2]), at.sizes["b"]
        k, v = (ops.append(cache, x, 2, at.cache_axis) for cache, x in zip(at.cache[:2], new, strict=True))
        own = floor_div(ops.shape(k)[2] - 1, block)
        mean_k, mean_v = (
            ops.add_into(cache, ops.scale(x, 1 / block), 2, own) for cache, x in zip(at.cache[2:], new, strict=True)
        )
        return _carry((q, k, v, mean_k, mean_v, read[3]), Mask(), at)

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        q, k, v = (xp.einsum("bld,dhe->bhle", x, w[name]) for name in ("w_q", "w_k", "w_v"))
        q, k = (turned(xp, y, *at.tables) for y in (q, k))
        shared, n, block = q.shape[1] // k.shape[1], x.shape[1], at.sizes["b"]
        k, v = (xp.repeat_interleave(y, shared, 1) for y in (k, v))
        pool = xp.repeat_interleave(xp.eye(n // block, dtype=x.dtype), block, 1) / block
        scale = q.shape[-1] ** -0.5
        scores, coarse = q @ k.mT * scale, q @ (pool @ k).mT * scale
        weights = _of_past_blocks(xp, coarse, block)
        allowed = _selected(xp, weights.detach().unflatten(1, (-1, shared)).sum(2), at)
        fine = softmax_where(xp, scores, xp.repeat_interleave(allowed, shared, 1) & kept(xp, at.mask, n, n))
        local = softmax_where(xp, scores, kept(xp, Mask(causal=True, window=at.sizes["w_n"]), n, n))
        gates = 1 / (1 + xp.exp(-xp.einsum("bld,dhi->ibhl", x, w["w_g"])))[..., None]
        matrix = gates[0] * (weights @ pool) + gates[1] * fine + gates[2] * local
        return Written(matrix, v, xp.einsum("bhij,bhje,hed->bid", matrix, v, w["w_o"]))

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        keys = Kept((m["H_kv"], tokens, m["d"]), tokens=True)
        means = Kept((m["H_kv"], ceil_div(tokens, m["b"]), m["d"]), "accumulate")
        return keys, keys, means, means


def _carry(streams: tuple[T, T, T, T, T, T], mask: Mask, at: Site[T]) -> Branches[T]:
    block, most, window = (at.sizes[name] for name in ("b", "S", "w_n"))
    return Branches(*streams, block, mask, most, window, at.sizes["d"] ** -0.5)


def block_means(ops: Vocabulary[T], x: T, block: Dim) -> T:
    """Means [B, heads, n / block, d] of blocks of x [B, heads, n, d], at accumulation precision."""
    batch, heads, n, d = ops.shape(x)
    shape = batch, heads, divide(n, block)
    sums = ops.reshape(ops.sum(ops.reshape(x, (*shape, block, d)), (3,)), (*shape, d))
    return ops.cast(ops.scale(sums, 1 / block), "accumulate")


def _of_past_blocks(xp: Any, scores: Any, block: int) -> Any:
    """Softmax [B, H, n, blocks] over the blocks that end at a query or before it; zeros where there is none."""
    n, blocks = scores.shape[-2:]
    past = (xp.arange(blocks)[None, :] + 1) * block <= xp.arange(n)[:, None] + 1
    weights = xp.exp(scores - scores.detach().amax(-1, True)) * past
    return weights / (weights.sum(-1, True) + ~past.any(-1, True))


def _selected(xp: Any, weights: Any, at: Site[Any]) -> Any:
    """Which pairs [B, H_kv, n, n] lie in selected blocks, query by query, by weights of blocks [B, H_kv, n, n / b]."""
    block, most, n = at.sizes["b"], at.sizes["S"], weights.shape[2]
    allowed = xp.zeros((*weights.shape[:3], n), dtype=xp.bool)
    for i in range(n):
        own = i // block
        always = list(dict.fromkeys((own, max(own - 1, 0), 0)))[:most]
        likes = weights[:, :, i].clone()
        likes[..., own + 1 :] = -1
        likes[..., always] = xp.inf
        best = likes.argsort(-1)[..., -min(most, own + 1) :]
        member = (best[..., None] == xp.arange(n // block)).any(-2)
        allowed[:, :, i] = xp.repeat_interleave(member, block, -1)
    return allowed


nsa = Nsa()
