"""LongNet: dilated attention, in segments that grow as fast as the tokens in them thin out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from costmodel.carries.direct import Direct
from costmodel.carries.pattern import Pattern
from costmodel.carry import Carry
from costmodel.composite import rope
from costmodel.dims import Dim, Shape, ceil_div, divide, floor_div, minimum
from costmodel.masks import Mask
from costmodel.mixer import Hyperparameter, Kept, Site, Sizes, Weights, Written
from costmodel.mixers.heads import Patterned, first_head
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.written import kept, softmax_where, turned

T = TypeVar("T")


@dataclass(frozen=True)
class Branch:
    """Segments of ``kept`` times ``step`` tokens, of which each head sees every ``step``-th."""

    kept: Dim
    step: int

    @property
    def segment(self) -> Dim:
        return self.kept * self.step


def branches(m: Sizes) -> Iterator[Branch]:
    """From the shortest segments, which keep all tokens, to the longest."""
    for i in range(int(m["n_s"])):
        yield Branch(m["m_s"] * m["x_m"] ** i, int(m["x_r"]) ** i)


@dataclass(frozen=True)
class Dilated(Pattern[T]):
    """Softmax attention of q, k, v [B, H, n, d] over what all branches show, a token twice if two of them do.

    A rank holds whole segments, so nothing crosses a cut. Backward, each branch uses the log-sum-exp of all; thinned
    rows are not kept but read again.

    Attributes:
        heads: their numbers [H], which say where each begins.
        branches: the first with all tokens.
    """

    along: ClassVar[tuple[str, ...]] = ("q", "k", "v")
    of_heads: ClassVar[tuple[str, ...]] = ("heads",)

    q: T
    k: T
    v: T
    heads: T
    branches: tuple[Branch, ...]
    causal: bool
    scale: Dim

    def beside(self, ops: Vocabulary[T], line: Axis | None) -> T:
        mask, thinned = Mask(self.causal), any(branch.step > 1 for branch in self.branches)

        def forward(ops: Vocabulary[Any], heads: Any, *qkv: Any) -> tuple[Any, tuple[Any, ...]]:
            parts: list[Any] = []
            for branch in self.branches:
                q, k, v = (_segments(ops, x, branch, [heads]) for x in qkv)
                rows = *ops.shape(qkv[0])[:2], divide(ops.shape(qkv[0])[2], branch.step)
                out, lse = ops.attention(q, k, v, mask, self.scale)
                parts += ops.reshape(out, (*rows, ops.shape(out)[3])), ops.reshape(lse, rows)
            out, lse = parts if len(parts) == 2 else ops.fused("merge of branches", self._merged, heads, *parts)
            return out, (*qkv, out, lse, *([heads] if thinned else []))

        def backward(ops: Vocabulary[Any], saved: tuple[Any, ...], gradient: Any) -> tuple[Any, ...]:
            rows, heads = (*saved[:5], gradient), saved[5:]
            total = [ops.zeros_like(x, "accumulate") for x in saved[:3]]
            for branch in self.branches:
                q, k, v, out, lse, given = (_segments(ops, x, branch, heads) for x in rows)
                found = ops.attention_backward(q, k, v, out, lse, given, mask, self.scale)
                for sums, x in zip(total, found, strict=True):
                    ops.add_into(sums, _rows(ops, x, ops.shape(sums), branch, heads), 2)
            return (None, *(ops.cast(x, "model") for x in total))

        result: T = ops.custom(forward, backward, self.heads, *self.streams())
        return result

    def _merged(self, ops: Vocabulary[Any], heads: Any, *parts: Any) -> tuple[Any, Any]:
        """Output and log-sum-exp of all branches, from those of each, one after the other."""
        out, lse = ops.cast(parts[0], "accumulate"), ops.cast(parts[1], "accumulate")
        for i, branch in enumerate(self.branches[1:], 1):
            more = ops.spread(parts[2 * i], heads, branch.step)
            ops.merge(out, lse, more, ops.spread(parts[2 * i + 1], heads, branch.step, -math.inf))
        return ops.cast(out, "model"), lse


def _segments(ops: Vocabulary[T], x: T, branch: Branch, heads: Sequence[T]) -> T:
    """Segments as heads of their own: rows [B, H, n, ...] to [B, H n / w, w / r, ...]; heads are needed if r > 1."""
    b, h, n, *inner = ops.shape(x)
    rows = x if branch.step == 1 else ops.thin(x, heads[0], branch.step)
    return ops.reshape(rows, (b, h * divide(n, branch.segment), branch.kept, *inner))


def _rows(ops: Vocabulary[T], x: T, shape: Shape, branch: Branch, heads: Sequence[T]) -> T:
    """The way back, to rows of that shape with zeros between."""
    b, h, n, *inner = shape
    rows = ops.reshape(x, (b, h, divide(n, branch.step), *inner))
    return rows if branch.step == 1 else ops.spread(rows, heads[0], branch.step)


class LongNet(Patterned):
    """P = softmax over the tokens that n_s branches show: in branch i, every r_i-th of the own segment of w_i.

    r_i = x_r^i and w_i = m_s x_m^i r_i, so that a branch costs (x_m / x_r)^i times the first: linear in L. A token that
    two branches show counts twice, as weighting by softmax denominators has it. The published code takes these for
    constants going backward; here the gradient is exact, at the same cost.

    The paper also gathers the thinned keys of segments longer than a rank's tokens; here a rank holds whole segments.
    """

    name: ClassVar[str] = "longnet"
    title: ClassVar[str] = "LongNet: dilated attention"
    template: ClassVar[str] = (
        "P_ij ~ c_ij exp(q_i . k_j / sqrt(d)), c_ij: how many c < n_s have i and j in one segment of m_s (x_m x_r)^c "
        "tokens and i = j = h mod x_r^c, in head h;  V = X W_v"
    )
    source: ClassVar[str] = "Ding et al. 2023, arXiv 2307.02486, section 2.2; microsoft/torchscale dilated_attention.py"
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 12, "heads", cut=True),
        "head_dim": Hyperparameter("d", 64, "head dimension"),
        "kept": Hyperparameter("m_s", 2048, "tokens of the shortest segments"),
        "branches": Hyperparameter("n_s", 5, "branches, each with longer segments"),
        "dilation": Hyperparameter("x_r", 2, "factor of the dilation from branch to branch"),
        "growth": Hyperparameter("x_m", 1, "factor of the tokens that a segment keeps from branch to branch"),
    }

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        q, k, v = rope(ops, read[0], *at.tables), rope(ops, read[1], *at.tables), read[2]
        heads, scale = ops.numbers(first_head(at), at.sizes["H"]), at.sizes["d"] ** -0.5
        return Dilated(q, k, v, heads, tuple(branches(at.sizes)), at.mask.causal, scale), (k, v)

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        q, new = rope(ops, read[0], *at.tables), (rope(ops, read[1], *at.tables), read[2])
        seen = [ops.append(past, x, 2, at.cache_axis) for past, x in zip(at.cache, new, strict=True)]
        first, *others = branches(at.sizes)
        out, lse = _newest(ops, (q, *seen), first, at.sizes["d"] ** -0.5)
        out = ops.cast(out, "accumulate")
        for branch in others:
            back = ops.shape(seen[0])[2] - 1 - first_head(at)
            start = minimum(back - branch.step * floor_div(back, branch.step), at.sizes["H"])  # no head's turn: none
            count = ceil_div(at.sizes["H"] - start, branch.step)
            turn = [ops.slice(x, 1, start, count, branch.step) for x in (q, *seen)]
            part = _newest(ops, turn, branch, at.sizes["d"] ** -0.5)
            out, lse = ops.merge_heads(out, lse, part, start, branch.step)
        return Direct(ops.cast(out, "model"))

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        return (Kept((m["H"], tokens, m["d"]), tokens=True),) * 2

    def grain(self, m: Sizes) -> int:
        return int([*branches(m)][-1].segment)

    def rotary(self, m: Sizes) -> Dim:
        return m["d"]

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        q, k, v = (xp.einsum("bld,dhe->bhle", x, w[name]) for name in ("w_q", "w_k", "w_v"))
        q, k = (turned(xp, y, *at.tables) for y in (q, k))
        place, head = xp.arange(x.shape[1]), xp.arange(q.shape[1])[:, None]
        times: Any = 0
        for i in range(int(at.sizes["n_s"])):
            rate = at.sizes["x_r"] ** i
            segment = place // (at.sizes["m_s"] * (at.sizes["x_m"] * at.sizes["x_r"]) ** i)
            there = place % rate == head % rate
            times = times + ((segment[:, None] == segment) & there[:, :, None] & there[:, None, :]).double()
        shown = times * kept(xp, at.mask, *times.shape[1:])
        matrix = softmax_where(xp, xp.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5, shown)
        return Written(matrix, v, xp.einsum("bhij,bhje,hed->bid", matrix, v, w["w_o"]))


def _newest(ops: Vocabulary[T], qkv: Sequence[T], branch: Branch, scale: Dim) -> tuple[T, T]:
    """Output and log-sum-exp of the newest token in one branch, in heads whose turn it is, of all keys and values."""
    newest = ops.shape(qkv[1])[2] - 1
    before = floor_div(newest - branch.segment * floor_div(newest, branch.segment), branch.step)
    k, v = (ops.slice(x, 2, newest - before * branch.step, before + 1, branch.step) for x in qkv[1:])
    return ops.attention(qkv[0], k, v, Mask(), scale)


longnet = LongNet()
