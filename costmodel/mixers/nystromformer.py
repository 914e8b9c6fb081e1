"""Nystromformer: softmax attention by way of landmarks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from costmodel.carries.sliding import around
from costmodel.carries.total import Sums, total
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape, divide
from costmodel.masks import Mask
from costmodel.mixer import Hyperparameter, Site, Sizes, Unmasked, Weights, Written
from costmodel.mixers.heads import Headed
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.written import banded, softmax_matrix

T = TypeVar("T")

#: Steps of the pseudo-inverse.
ITERATIONS = 6


@dataclass(frozen=True)
class Landmarks(Sums[T]):
    """softmax(q K'^T) Z (softmax(Q' k^T) v), Q' and K' being means of m segments of queries and keys.

    There are two sums over tokens: first the landmarks, of which each rank has its own and gathers the others, then
    what they read of the values. Where the sequence is cut, the largest score of a landmark is not subtracted from
    exponents, as ranks would have to agree on it first; it cancels.

    Attributes:
        count: landmarks, m.
        scale: of the scores.
        kernel: ``"published"`` multiplies from the left, ``"reordered"`` from the right.
    """

    along: ClassVar[tuple[str, ...]] = ("q", "k", "v")

    q: T
    k: T
    v: T
    count: Dim
    scale: float
    kernel: str

    def over(self, ops: Vocabulary[T], line: Axis | None) -> T:
        queries, keys = (self._means(ops, x, line) for x in (self.q, self.k))
        out = ops.softmax(ops.contract("bhnd,bhmd->bhnm", self.q, keys), self.scale, Mask())
        between = ops.softmax(ops.contract("bhid,bhmd->bhim", queries, keys), self.scale, Mask())
        inverse = pseudo_inverse(ops, between)
        read = self._read(ops, queries, line)
        if self.kernel == "published":
            return ops.contract("bhnm,bhme->bhne", ops.contract("bhni,bhim->bhnm", out, inverse), read)
        return ops.contract("bhni,bhie->bhne", out, ops.contract("bhim,bhme->bhie", inverse, read))

    def _means(self, ops: Vocabulary[T], x: T, line: Axis | None) -> T:
        """Means [B, H, m, d] of the segments of all ranks."""
        b, h, n, d = ops.shape(x)
        here = self.count if line is None else divide(self.count, line.size)
        length = divide(n, here)
        sums = ops.reshape(ops.sum(ops.reshape(x, (b, h, here, length, d)), (3,)), (b, h, here, d))
        means = ops.scale(sums, 1 / length)
        return means if line is None else ops.all_gather(means, line, 2)

    def _read(self, ops: Vocabulary[T], queries: T, line: Axis | None) -> T:
        """Softmax attention of the landmarks over all tokens: [B, H, m, e]."""
        scores = ops.contract("bhmd,bhnd->bhmn", queries, self.k)
        if line is None:
            return ops.contract("bhmn,bhne->bhme", ops.softmax(scores, self.scale, Mask()), self.v)

        def body(ops: Vocabulary[Any], scores: Any) -> Any:
            weights = ops.map("exp", ops.scale(scores, self.scale))
            return weights, ops.sum(weights, (3,))

        weights, sums = ops.fused("exponentials and their sums", body, scores)
        read = total(ops, ops.contract("bhmn,bhne->bhme", weights, self.v), line)
        return ops.map("div", read, total(ops, sums, line))


def pseudo_inverse(ops: Vocabulary[T], a: T) -> T:
    """Z of a [B, H, m, m] whose rows sum up to 1, by equation 11: Z (13 - A Z (15 - A Z (7 - A Z))) / 4, repeated."""

    def first(ops: Vocabulary[Any], a: Any) -> Any:
        largest = ops.max(ops.sum(a, (2,)), (3,))
        return ops.permute(ops.map("div", a, largest), (0, 1, 3, 2))

    def less(ops: Vocabulary[Any], factor: float, x: Any, product: Any, share: float = 1.0) -> Any:
        def body(ops: Vocabulary[Any], x: Any, product: Any) -> Any:
            return ops.scale(ops.map("sub", ops.scale(x, factor), product), share)

        return ops.fused("step of the pseudo-inverse", body, x, product)

    z: T = ops.fused("start of the pseudo-inverse", first, a)
    for _ in range(ITERATIONS):
        az = _times(ops, a, z)
        inner = less(ops, 15, az, _times(ops, az, less(ops, 7, az, _times(ops, az, az))))
        z = less(ops, 13, z, _times(ops, z, inner), 0.25)
    return z


def _times(ops: Vocabulary[T], a: T, b: T) -> T:
    return ops.contract("bhij,bhjk->bhik", a, b)


class Nystromformer(Headed, Unmasked):
    """P is the softmax's matrix, interpolated from its columns and rows at landmarks, plus a convolution of the values.

    The pseudo-inverse starts from each head's own norm, the code's second option: its first takes the largest of all
    heads and sequences.
    """

    name: ClassVar[str] = "nystromformer"
    title: ClassVar[str] = "Nystromformer (landmarks)"
    template: ClassVar[str] = (
        "P = softmax(Q K'^T / sqrt(d)) Z softmax(Q' K^T / sqrt(d)),  Z = softmax(Q' K'^T / sqrt(d))^+,  V = X W_v"
    )
    source: ClassVar[str] = "Xiong et al. 2021, arXiv 2102.03902; github.com/mlpen/Nystromformer"
    structure: ClassVar[Structure] = Structure.LOW_RANK
    carry: ClassVar[type[Carry[Any]]] = Sums
    kernels: ClassVar[tuple[str, ...]] = ("published", "reordered")
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 12, "heads", cut=True),
        "head_dim": Hyperparameter("d", 64, "head dimension of queries and keys"),
        "value_dim": Hyperparameter("e", 64, "head dimension of values"),
        "landmarks": Hyperparameter("m", 64, "landmarks: means of segments of the sequence"),
        "taps": Hyperparameter("K", 33, "taps of the convolution of values, one for each head"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, H, e = m["D"], m["H"], m["e"]
        return super().weights(m) | {"w_v": (D, H, e), "taps": (H, m["K"]), "w_o": (H, e, D)}

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        q, k, v = read
        near = _convolved(ops, v, w["taps"], at)
        return Landmarks(q, k, v, at.sizes["m"], at.sizes["d"] ** -0.5, at.kernel, aside=(near,)), ()

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        return super().finish(ops, ops.add(mixed, at.aside[0]), w, at)

    def segments(self, m: Sizes) -> int:
        return int(m["m"])

    def overlap(self, m: Sizes) -> Dim:
        return around(m["K"], causal=False)[0]

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        q, k, v = (xp.einsum("bld,dhe->bhle", x, w[name]) for name in ("w_q", "w_k", "w_v"))
        near_q, near_k = (y.unflatten(2, (at.sizes["m"], -1)).mean(3) for y in (q, k))
        pairs = ((q, near_k), (near_q, near_k), (near_q, k))
        left, middle, right = (softmax_matrix(xp, a @ b.mT / a.shape[-1] ** 0.5, Mask()) for a, b in pairs)
        one = xp.eye(middle.shape[-1], dtype=x.dtype)
        z = middle.mT / middle.sum(-2).amax(-1)[..., None, None]
        for _ in range(ITERATIONS):
            az = middle @ z
            z = z @ (13 * one - az @ (15 * one - az @ (7 * one - az))) / 4
        matrix = left @ z @ right
        band = banded(xp, w["taps"], x.shape[1], around(at.sizes["K"], causal=False)[0])
        return Written(matrix, v, xp.einsum("bhle,hed->bld", (matrix + band) @ v, w["w_o"]))


def _convolved(ops: Vocabulary[T], v: T, taps: T, at: Site[T]) -> T:
    """The convolution of values [B, H, n, e] with taps [H, K], zeros beyond the ends."""
    b, h, n, e = ops.shape(v)
    channels = ops.reshape(ops.permute(v, (0, 1, 3, 2)), (b, h * e, n))
    padded = ops.halo(channels, 2, *around(at.sizes["K"], causal=False), at.line)
    mixed = ops.depthwise(padded, ops.repeat(taps, 0, e))
    return ops.permute(ops.reshape(mixed, (b, h, e, n)), (0, 1, 3, 2))


nystromformer = Nystromformer()
