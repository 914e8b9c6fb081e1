"""Reformer: attention within chunks of tokens that random rotations hash to the same buckets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from costmodel.carry import Carry, Structure
from costmodel.composite import mean
from costmodel.dims import Dim, Shape, divide
from costmodel.errors import InputError
from costmodel.mixer import Hyperparameter, Kept, Site, Sizes, Weights, Written
from costmodel.mixers.heads import Headed
from costmodel.ops.sorted_attention import SortedAttention, SortedAttentionBackward
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")


@dataclass(frozen=True)
class Hashed(Carry[T]):
    """Softmax attention of q [B, H, n, d], whose unit vectors are the keys, to v [B, H, n, e] in hashed chunks.

    Each round puts the tokens in another order and cuts it into chunks; rows are copied into that order, and backward
    once more, so that no copy is kept. The choice of buckets has no gradient. Backward, each round uses the
    log-sum-exp of all.

    Attributes:
        rotations: [H, d, rounds, half the buckets], random.
        chunk: tokens of a chunk.
    """

    along: ClassVar[tuple[str, ...]] = ("q", "v")
    of_heads: ClassVar[tuple[str, ...]] = ("rotations",)

    q: T
    v: T
    rotations: T
    chunk: Dim
    causal: bool
    scale: Dim

    kind: ClassVar[str] = "chunks of a sorted sequence"

    def whole(self, ops: Vocabulary[T]) -> T:
        kernel = SortedAttention(self.causal, self.scale, ops.width("accumulate"))

        def forward(ops: Vocabulary[T], q: T, k: T, v: T, rotations: T) -> tuple[T, tuple[T, ...]]:
            order = ops.sort(buckets(ops, q, rotations))[1]
            chunks = [self._chunks(ops, x, order) for x in (q, k, v)]
            found = ops.apply(kernel, *chunks, self._cut(ops, order))
            rounds = [ops.scatter_add(_rows(ops, x, order), order, 3, ops.shape(order)[3]) for x in found]
            out, lse = ops.fused("merge of rounds", merged, *rounds)
            return out, (q, k, v, order, out, lse)

        def backward(ops: Vocabulary[T], saved: tuple[T, ...], gradient: T) -> tuple[T | None, ...]:
            q, k, v, order, out, lse = saved
            delta = ops.fused("delta", row_sums, gradient, out)
            chunks = [self._chunks(ops, x, order) for x in (q, k, v, lse, delta, gradient)]
            primitive = SortedAttentionBackward(self.causal, self.scale)
            found = ops.apply(primitive, *chunks[:3], self._cut(ops, order), *chunks[3:])
            return *(self._summed(ops, x, order) for x in found), None

        keys = ops.fused("unit keys", unit_keys, self.q)
        result: T = ops.custom(forward, backward, self.q, keys, self.v, self.rotations)
        return result

    def _chunks(self, ops: Vocabulary[T], x: T, order: T) -> T:
        """Rows of x [B, H, n, ...] in the order of all rounds [B, H, rounds, n], cut: [B, H, rounds n / C, C, ...]."""
        return self._cut(ops, ops.gather(x, order, 2))

    def _cut(self, ops: Vocabulary[T], x: T) -> T:
        batch, heads, rounds, n, *inner = ops.shape(x)
        return ops.reshape(x, (batch, heads, rounds * divide(n, self.chunk), self.chunk, *inner))

    def _summed(self, ops: Vocabulary[T], gradient: T, order: T) -> T:
        """Gradients of rows [B, H, n, d], added up over rounds."""
        batch, heads, rounds, n = ops.shape(order)
        rows = ops.reshape(gradient, (batch, heads, rounds * n, ops.shape(gradient)[4]))
        places = ops.reshape(order, (batch, heads, rounds * n))
        return ops.cast(ops.scatter_add(rows, places, 2, n), "model")


def _rows(ops: Vocabulary[T], x: T, order: T) -> T:
    """Chunks [B, H, rounds n / C, C, ...] laid end to end: [B, H, rounds, n, ...]."""
    return ops.reshape(x, (*ops.shape(order), *ops.shape(x)[4:]))


def buckets(ops: Vocabulary[T], q: T, rotations: T) -> T:
    """The bucket of every token in every round [B, H, rounds, n], as one kernel: the largest of x R and -x R."""

    def body(ops: Vocabulary[Any], q: Any, rotations: Any) -> Any:
        turned = ops.contract("bhnd,hdrk->bhrnk", q, rotations)
        largest = ops.top_k(ops.concat([turned, ops.map("neg", turned)], 4), 1)[1]
        return ops.reshape(largest, ops.shape(turned)[:4])

    result: T = ops.fused("hash", body, q, rotations, family="attention")
    return result


def unit_keys(ops: Vocabulary[T], q: T) -> T:
    """q over its root mean square: of length sqrt(d)."""
    return ops.mul(q, ops.map("rsqrt_eps", mean(ops, ops.map("square", q), (3,))))


def merged(ops: Vocabulary[T], out: T, lse: T) -> tuple[T, T]:
    """Rounds [B, H, rounds, n, e] weighted by their sums of exponentials [B, H, rounds, n], and the sum over rounds."""
    batch, heads, rounds, n, e = ops.shape(out)
    top = ops.max(lse, (2,))
    weights = ops.map("exp", ops.map("sub", lse, top))
    total = ops.sum(weights, (2,))
    share = ops.reshape(ops.map("div", weights, total), (batch, heads, rounds, n, 1))
    together = ops.sum(ops.mul(out, share), (2,))
    return ops.reshape(together, (batch, heads, n, e)), ops.reshape(
        ops.add(top, ops.map("log", total)), (batch, heads, n)
    )


def row_sums(ops: Vocabulary[T], gradient: T, out: T) -> T:
    """Of gradient * out over the last axis: [B, H, n]."""
    products = ops.mul(ops.cast(gradient, "accumulate"), out)
    return ops.reshape(ops.sum(products, (3,)), ops.shape(out)[:3])


class Reformer(Headed):
    """Queries are keys of unit length; a token sees its own chunk and the one before, in each of n_h hashed orders.

    A round hashes a token to the largest of [x R, -x R], R random [d, L / C], so that a bucket has half a chunk on
    average; tokens are sorted by bucket, equal ones by place. Tokens in a chunk see each other whatever their buckets,
    and a token that is in sight in several rounds counts as often, as in trax and transformers; the first chunk of a
    round is after the last of the round before, and that of the first after that of the last.

    What is hidden in it: hashing compares every token with L / C vectors, 2 B H n_h (L^2 / C) d FLOP: quadratic in L,
    and more than the attention itself, 4 B H n_h L 2 C d, from L = 4 C^2 on (16,384 tokens at C = 64).
    """

    name: ClassVar[str] = "reformer"
    title: ClassVar[str] = "Reformer: locality-sensitive hashing attention"
    template: ClassVar[str] = (
        "P_ij ~ c_ij exp(q_i . q_j / |q_j|), c_ij: how many rounds of hashing show j != i to i; P_ii = 1 where none "
        "shows any;  V = X W_v"
    )
    source: ClassVar[str] = (
        "Kitaev et al. 2020, arXiv 2001.04451, section 2; transformers modeling_reformer.py (LSHSelfAttention)"
    )
    structure: ClassVar[Structure] = Structure.SPARSE
    carry: ClassVar[type[Carry[Any]]] = Hashed
    kernels: ClassVar[tuple[str, ...]] = ("fused",)
    fixed: ClassVar[tuple[str, ...]] = ("rotations",)
    undecoded: ClassVar[str] = "each new token changes which tokens share a chunk, and hashes are for one length"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 8, "heads", cut=True),
        "head_dim": Hyperparameter("d", 128, "head dimension"),
        "chunk": Hyperparameter("C", 64, "tokens of a chunk"),
        "rounds": Hyperparameter("n_h", 8, "rounds of hashing"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        shapes = super().weights(m)
        del shapes["w_k"]
        try:
            chunks = divide(m["L"], m["C"])
        except ValueError:
            raise InputError(f"{self.name}.chunk", m["C"], f"must divide the {m['L']} tokens of the sequence") from None
        return shapes | {"rotations": (m["H"], m["d"], m["n_h"], chunks)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return "w_q", "w_v"

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        q, v = read
        return Hashed(q, v, w["rotations"], at.sizes["C"], at.mask.causal, at.sizes["d"] ** -0.5), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        raise InputError("pass", "decode", f"{self.name}: {self.undecoded}")

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        return ()

    def grain(self, m: Sizes) -> int:
        return int(m["C"])

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        q, v = (xp.einsum("bld,dhe->bhle", x, w[name]) for name in ("w_q", "w_v"))
        shown = _shown(xp, q.detach(), w["rotations"], at)
        k = q / (q.square().mean(-1, True) + 1e-5) ** 0.5
        scores = xp.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5
        weights = shown * xp.exp(scores - scores.detach().amax(-1, True))
        alone = shown.sum(-1, True) == 0
        matrix = weights / (weights.sum(-1, True) + alone) + alone * xp.eye(q.shape[2], dtype=x.dtype)
        return Written(matrix, v, xp.einsum("bhij,bhje,hed->bid", matrix, v, w["w_o"]))


def _shown(xp: Any, q: Any, rotations: Any, at: Site[Any]) -> Any:
    """How often [B, H, n, n] a query sees a key other than its own: token by token, over all rounds."""
    (batch, heads, n, _), chunk = q.shape, at.sizes["C"]
    times = xp.zeros((batch, heads, n, n), dtype=q.dtype)
    for b in range(batch):
        for h in range(heads):
            chunks: list[list[int]] = []
            for r in range(rotations.shape[2]):
                turned = q[b, h] @ rotations[h, :, r]
                hashes = xp.cat((turned, -turned), -1).argmax(-1).tolist()
                order = sorted(range(n), key=lambda i: (hashes[i], i))
                chunks += [order[start : start + chunk] for start in range(0, n, chunk)]
            for last, own in zip([chunks[-1], *chunks], chunks, strict=False):
                for i in own:
                    for j in (*last, *own):
                        times[b, h, i, j] += i != j and (j < i or not at.mask.causal)
    return times


reformer = Reformer()
