"""What mixers with the delta rule share: short convolutions, keys and queries of unit length, the state of decoding."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, TypeVar

from costmodel.carries.direct import Direct
from costmodel.carries.state import State
from costmodel.carry import Carry, Structure
from costmodel.dims import Dim, Shape
from costmodel.mixer import Hyperparameter, Kept, Mixer, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.chunk_pairs import spread
from costmodel.recurrences.delta import Delta, step
from costmodel.recurrences.matrix_states import KERNELS
from costmodel.recurrences.pieces import convolution_step, short_convolution, unit
from costmodel.written import causal_convolution, delta_matrix

T = TypeVar("T")

STREAMS = "w_q", "w_k", "w_v"
TAPS = "taps_q", "taps_k", "taps_v"


def delta_sizes(heads: int, head_dim: int, value_dim: int) -> dict[str, Hyperparameter]:
    """The sizes of a delta rule, by their usual values."""
    return {
        "heads": Hyperparameter("H", heads, "heads", cut=True),
        "head_dim": Hyperparameter("d", head_dim, "head dimension of queries and keys"),
        "value_dim": Hyperparameter("e", value_dim, "head dimension of values"),
        "taps": Hyperparameter("K", 4, "taps of the short convolution"),
        "chunk": Hyperparameter("C", 64, "tokens of a chunk"),
    }


class DeltaRule(Mixer):
    """A mixer around ``costmodel.recurrences.delta``; subclasses say what beta, decay and output gate are."""

    structure: ClassVar[Structure] = Structure.SEMISEPARABLE
    carry: ClassVar[type[Carry[Any]]] = State
    kernels: ClassVar[tuple[str, ...]] = KERNELS
    causality: ClassVar[str] = "causal"
    documents: ClassVar[bool] = True

    @abstractmethod
    def gate_weights(self, m: Sizes) -> dict[str, Shape]:
        """Weights beside those of queries, keys, values, convolutions, norm and output."""

    @abstractmethod
    def gate_inputs(self) -> tuple[str, ...]:
        """Those of them that read the input."""

    @abstractmethod
    def gates(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[T, T | None, tuple[T, ...]]:
        """beta [B, H, n, 1], the logarithm of decay [B, H, n, 1 or d] if there is any, and what ``finish`` needs."""

    @abstractmethod
    def written_gates(self, xp: Any, x: Any, w: Weights) -> tuple[Any, Any]:
        """beta and the logarithm of decay by their definition."""

    @abstractmethod
    def written_norm(self, xp: Any, mixed: Any, x: Any, w: Weights) -> Any:
        """What the output projection reads, by its definition."""

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, H, d, e, K = (m[name] for name in ("D", "H", "d", "e", "K"))
        G = _groups(m)
        read = {"w_q": (D, G, d), "w_k": (D, G, d), "w_v": (D, H, e)}
        taps = {"taps_q": (G, d, K), "taps_k": (G, d, K), "taps_v": (H, e, K)}
        return {**read, **self.gate_weights(m), **taps, "norm": (e,), "w_o": (H, e, D)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return (*STREAMS, *self.gate_inputs())

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        q, k, v = (short_convolution(ops, y, w[name], at) for y, name in zip(read[:3], TAPS, strict=True))
        q, k = _units(ops, q, k, at)
        beta, decay, aside = self.gates(ops, read[3:], w, at)
        return Delta(q, k, v, beta, decay, at.sizes["C"], at.kernel, aside=aside), ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        convolved = zip(read[:3], TAPS, at.cache[1:], strict=True)
        q, k, v = (convolution_step(ops, y, w[name], cache) for y, name, cache in convolved)
        q, k = _units(ops, q, k, at)
        beta, decay, aside = self.gates(ops, read[3:], w, at)
        k, v, beta = (_one(ops, y) for y in (k, v, beta))
        after = step(ops, at.cache[0], (k, v, beta), None if decay is None else _one(ops, decay))
        state = ops.append(at.cache[0], after, 0)
        return Direct(ops.contract("bhnd,bhde->bhne", q, state), aside=aside)

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        before = m["K"] - 1
        keys, values = Kept((_groups(m) * m["d"], before)), Kept((m["H"] * m["e"], before))
        return Kept((m["H"], m["d"], m["e"]), "accumulate"), keys, keys, values

    def grain(self, m: Sizes) -> int:
        return int(m["C"])

    def overlap(self, m: Sizes) -> Dim:
        return m["K"] - 1

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["H"], _groups(m)

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        streams = (xp.einsum("bld,dhe->bhle", x, w[name]) for name in STREAMS)
        q, k, v = (causal_convolution(xp, y, w[name]) for y, name in zip(streams, TAPS, strict=True))
        q, k = (y * (y.square().sum(-1, True) + 1e-5) ** -0.5 for y in (q, k))
        q, k = (y.repeat_interleave(at.sizes["H"] // y.shape[1], 1) for y in (q, k))
        matrix = delta_matrix(xp, q * q.shape[-1] ** -0.5, k, *self.written_gates(xp, x, w))
        normed = self.written_norm(xp, matrix @ v, x, w)
        return Written(matrix, v, xp.einsum("bhle,hed->bld", normed, w["w_o"]))


def exponential_decay(ops: Vocabulary[T], raw: T, bias: T, rate: T) -> T:
    """-exp(rate) softplus(raw + bias), as one kernel: raw [B, H, n, d or 1], bias [H, 1, d or 1], rate [H, 1, 1]."""

    def body(ops: Vocabulary[Any], raw: Any, bias: Any, rate: Any) -> Any:
        dt = ops.map("softplus", ops.add(ops.cast(raw, "accumulate"), bias))
        return ops.map("neg", ops.mul(dt, ops.map("exp", rate)))

    decay: T = ops.fused("decay", body, raw, bias, rate)
    return decay


def _units(ops: Vocabulary[T], q: T, k: T, at: Site[T]) -> tuple[T, T]:
    """Queries and keys of unit length, for each head."""
    heads = at.sizes["H"]
    q, k = ops.scale(unit(ops, q), at.sizes["d"] ** -0.5), unit(ops, k)
    return spread(ops, q, heads), spread(ops, k, heads)


def _groups(m: Sizes) -> Dim:
    """Heads of queries and keys, each of which serves a group of heads of values."""
    return m.get("H_kv", m["H"])


def _one(ops: Vocabulary[T], x: T) -> T:
    """One token's entries [B, H, d], of [B, H, 1, d]."""
    b, h, _, d = ops.shape(x)
    return ops.reshape(x, (b, h, d))
