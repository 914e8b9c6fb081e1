"""Log-linear attention: Mamba-2 with a state for every length of the past."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.direct import Direct
from costmodel.carries.state import Summed
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape
from costmodel.mixer import Hyperparameter, Kept, Site, Sizes, Weights
from costmodel.mixers.mamba2 import TAPS, Mamba2
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.chunk_pairs import spread
from costmodel.recurrences.levels import Levels, joined, read_levels
from costmodel.recurrences.pieces import convolution_step, short_convolution

T = TypeVar("T")


class LogLinear(Mamba2):
    """Mamba-2 whose entries of P are multiplied with lambda_i of the level of the pair: softplus(X w_l * level).

    Level 0 is the token itself, level b + 1 the piece of 2^b tokens that stands for bit b of i. The last level takes
    what is older than all of them; the code refuses such sequences (it has 8 levels of chunks, for 16 Ki tokens).
    """

    name: ClassVar[str] = "log-linear-mamba2"
    title: ClassVar[str] = "log-linear attention (Mamba-2 with states of many lengths)"
    template: ClassVar[str] = (
        "P_ij = lambda_i,level(i, j) exp(-exp(A) sum of dt_t, j < t <= i) C_i^T B_j dt_j,  V = silu(conv(X W_x)),  "
        "Y = P V + skip V"
    )
    source: ClassVar[str] = "Guo et al. 2025, arXiv 2506.04761; flash-linear-attention layers/log_linear_mamba2.py"
    structure: ClassVar[Structure] = Structure.HIERARCHICAL
    carry: ClassVar[type[Carry[Any]]] = Summed
    documents: ClassVar[bool] = False
    doubled: ClassVar[bool] = True
    kernels: ClassVar[tuple[str, ...]] = ("chunked",)
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        **{name: size for name, size in Mamba2.sizes.items() if name != "chunk"},
        "chunk_levels": Hyperparameter("l_c", 6, "levels within a chunk, of 2^l_c tokens"),
        "state_levels": Hyperparameter("l_s", 14, "levels of states of chunks"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        levels = 1 + m["l_c"] + m["l_s"]
        return super().weights(m) | {"w_l": (m["D"], m["H"], levels), "level": (m["H"], levels)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return (*super().inputs(m), "w_l")

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        z, *streams, raw, levels = read
        x, k, q = (short_convolution(ops, y, w[name], at) for y, name in zip(streams, TAPS, strict=True))
        v, decay = self.step(ops, x, raw, w)
        scales = self._scales(ops, levels, w)
        return Levels(q, k, v, decay, scales, int(at.sizes["l_c"]), aside=(z, x)), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        z, *streams, raw, levels = read
        states, full, *caches = at.cache
        convolved = zip(streams, TAPS, caches, strict=True)
        x, k, q = (convolution_step(ops, y, w[name], cache) for y, name, cache in convolved)
        v, decay = self.step(ops, x, raw, w)
        q, k = (spread(ops, y, at.sizes["H"]) for y in (q, k))
        token = q, k, v, decay, self._scales(ops, levels, w)
        out, *after = ops.fused("levels of a token", _decoded, *token, states, full)
        for cache, new in zip((states, full), after, strict=True):
            ops.append(cache, new, 0)
        return Direct(out, aside=(z, x))

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        """States of levels, here of single tokens; which of them are full, but for the last; convolutions."""
        levels = m["l_c"] + m["l_s"]
        states = Kept((m["H"], levels, m["d"], m["e"]), "accumulate"), Kept((m["H"], levels - 1), "accumulate")
        return (*states, *super().cache(m, tokens)[1:])

    def grain(self, m: Sizes) -> int:
        return int(2 ** m["l_c"])

    def written_weights(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Any:
        """lambda_i,level(i, j) [B, H, n, n]."""
        raw = xp.einsum("bld,dhe->bhle", x, w["w_l"]) * w["level"][:, None]
        scales = xp.log(1 + xp.exp(raw))
        n, levels = x.shape[1], scales.shape[3]
        i, j = xp.arange(n)[:, None], xp.arange(n)[None, :]
        weights = scales[..., :1] * (i == j)
        left = j < i
        for level in range(1, levels):
            size = 2 ** (level - 1)
            start = i - i % (2 * size)
            piece = (i % (2 * size) >= size) & (start <= j) & (j < start + size)
            piece = left if level == levels - 1 else piece
            weights = weights + scales[..., level : level + 1] * piece
            left = left & ~piece
        return weights

    def _scales(self, ops: Vocabulary[T], raw: T, w: Weights) -> T:
        """lambda [B, H, n, levels]."""

        def body(ops: Vocabulary[Any], raw: Any, level: Any) -> Any:
            return ops.map("softplus", ops.mul(raw, level))

        h, levels = ops.shape(w["level"])
        scales: T = ops.fused("scales of levels", body, raw, ops.reshape(w["level"], (h, 1, levels)))
        return scales


def _decoded(ops: Vocabulary[T], q: T, k: T, v: T, decay: T, scales: T, states: T, full: T) -> tuple[T, T, T]:
    """A token's output [B, H, 1, e], and the states and which are full after it."""
    b, h, levels, _, _ = ops.shape(states)
    faded = ops.mul(states, ops.map("exp", ops.reshape(decay, (b, h, 1, 1, 1))))
    own = ops.mul(ops.sum(ops.mul(q, k), (3,)), ops.slice(scales, 3, 0, 1))
    out = ops.add(ops.mul(v, own), read_levels(ops, q, faded, ops.slice(scales, 3, 1, levels)))
    new = ops.contract("bhcd,bhce->bhde", k, v)
    return (out, *joined(ops, faded, full, new))


log_linear = LogLinear()
