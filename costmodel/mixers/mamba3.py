"""Mamba-3: a state space with trapezoidal inputs and turning channels, without a short convolution."""

from __future__ import annotations

from collections.abc import Mapping
from math import pi
from typing import Any, ClassVar, TypeVar

from costmodel.carries.direct import Direct
from costmodel.carries.state import State
from costmodel.carry import Carry, Structure
from costmodel.composite import rms_norm
from costmodel.dims import Dim, Shape, divide
from costmodel.mixer import Hyperparameter, Kept, Mixer, Site, Sizes, Weights, Written
from costmodel.ops.vocabulary import Vocabulary
from costmodel.recurrences.resets import reset
from costmodel.recurrences.trapezoid import KERNELS, Trapezoid, turned
from costmodel.written import turned as complex_turned

T = TypeVar("T")

#: What the R values, gates and outputs of a token are multiplied with, if there is more than one.
SEVERAL = "mimo_x", "mimo_z", "mimo_o"

#: The least rate of decay.
FLOOR = 1e-4


class Mamba3(Mixer):
    """Keys B and queries C are normed and shared by all heads but for biases; angles are sums of pi tanh(.) dt.

    Of rank 1 it is the single-input form (SISO). Of rank R, the multi-input form (MIMO), a token has R keys, queries
    and values x o_r; R outputs are gated and summed up, each with weights of its own. Its state is no larger, and
    products with it are of matrices, not of vectors: R times the FLOPs for the same bytes. A chunk then has 64 / R
    tokens in the code. Without a norm before the output projection.

    The definition is that of the layer and the step kernel of state-spaces/mamba; but halves of the turned channels are
    the pairs (as in its kernel of rank R), not neighbours, which is another order of the channels and nothing else.
    """

    name: ClassVar[str] = "mamba3"
    title: ClassVar[str] = "Mamba-3 (trapezoidal inputs, turning state; SISO or MIMO)"
    template: ClassVar[str] = (
        "P_ij = exp(sum of A_t dt_t, j < t <= i) (R_i C_i)^T (R_j B_j) (u_j dt_j + [j < i] (1 - u_{j+1}) dt_{j+1}),  "
        "Y = (P V + skip V) silu(X W_z); of rank R, P_is,jr with R_i C_is, R_j B_jr and V_r, "
        "Y = sum over s of o_s (P V + skip V)_s silu(z_s X W_z)"
    )
    source: ClassVar[str] = (
        "arXiv 2603.15569; state-spaces/mamba modules/mamba3.py, ops/triton/mamba3/mamba3_siso_step.py, "
        "ops/cute/mamba3/mamba3_step_fn.py (several inputs); "
        "flash-linear-attention layers/mamba3.py"
    )
    structure: ClassVar[Structure] = Structure.SEMISEPARABLE
    carry: ClassVar[type[Carry[Any]]] = State
    kernels: ClassVar[tuple[str, ...]] = KERNELS
    causality: ClassVar[str] = "causal"
    documents: ClassVar[bool] = True
    sizes: ClassVar[Mapping[str, Hyperparameter]] = {
        "heads": Hyperparameter("H", 64, "heads", cut=True),
        "rope_dim": Hyperparameter("d_r", 64, "entries of the state that turn, two for an angle"),
        "nope_dim": Hyperparameter("d_n", 64, "entries of the state that do not"),
        "value_dim": Hyperparameter("e", 64, "head dimension of x"),
        "mimo_rank": Hyperparameter("R", 1, "keys, queries and values of a token: 1 for SISO, 4 is usual for MIMO"),
        "chunk": Hyperparameter("C", 64, "tokens of a chunk"),
    }

    def weights(self, m: Sizes) -> dict[str, Shape]:
        D, H, e, d, R = m["D"], m["H"], m["e"], m["d_r"] + m["d_n"], int(m["R"])
        read = {"w_z": (D, H, e), "w_x": (D, H, e), "w_b": (D, R, d), "w_c": (D, R, d), "w_r": (D, divide(m["d_r"], 2))}
        steps = {"w_dt": (D, H, 1), "w_a": (D, H, 1), "w_u": (D, H, 1), "b_dt": (H,)}
        norms = {"norm_b": (d,), "norm_c": (d,), "bias_b": (H, R, d), "bias_c": (H, R, d)}
        several: dict[str, Shape] = {} if R == 1 else dict.fromkeys(SEVERAL, (H, R, e))
        return {**read, **steps, **norms, **several, "skip": (H,), "w_o": (H, e, D)}

    def inputs(self, m: Sizes) -> tuple[str, ...]:
        return "w_z", "w_x", "w_b", "w_c", "w_r", "w_dt", "w_a", "w_u"

    def project(
        self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]
    ) -> tuple[Carry[T], tuple[T, ...]]:
        z, v = read[:2]
        k, q, turns, decay, own, following = self._read(ops, read[2:], w, at)
        n = ops.shape(v)[2]
        following = reset(ops, following, at.packed(n))  # nothing follows on the last token of a document
        following = ops.slice(ops.halo(following, 2, 0, 1, at.line), 2, 1, n)
        weights = w["bias_c"], w["bias_b"], *((w["mimo_x"],) if at.sizes["R"] > 1 else ())
        carry = Trapezoid(q, k, v, turns, decay, own, following, weights, at.sizes["C"], at.kernel, aside=(z, v))
        return carry, ()

    def decode(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> Carry[T]:
        z, v = read[:2]
        k, q, turns, decay, own, following = self._read(ops, read[2:], w, at)
        state, angle, last_k, last_v = at.cache
        angles = ops.append(angle, ops.add(angle, turns), 0)
        q, k = (ops.fused("turned", turned, y, w[name], angles) for y, name in ((q, "bias_c"), (k, "bias_b")))
        before, now = (self._values(ops, y, w, at) for y in (last_v, v))
        b, h, _, r, d = ops.shape(k)
        q, k = (ops.reshape(y, (b, h, r, d)) for y in (q, k))
        before = ops.contract("bhrd,bhre->bhde", ops.mul(last_k, following), before)
        now = ops.contract("bhrd,bhre->bhde", ops.mul(k, own), now)
        after = ops.add(ops.mul(ops.add(state, before), ops.map("exp", decay)), now)
        state = ops.append(state, after, 0)
        ops.append(last_k, k, 0)
        ops.append(last_v, v, 0)
        mixed = ops.contract("bhrd,bhde->bhre", q, state)
        return Direct(ops.reshape(mixed, (b, h, 1, r * at.sizes["e"])), aside=(z, v))

    def finish(self, ops: Vocabulary[T], mixed: T, w: Weights, at: Site[T]) -> T:
        h, e, r = (at.sizes[name] for name in ("H", "e", "R"))
        b, _, n, _ = ops.shape(mixed)
        several = tuple(ops.reshape(w[name], (h, 1, r, e)) for name in SEVERAL if name in w)
        mixed = ops.reshape(mixed, (b, h, n, r, e))
        aside = (ops.reshape(y, (b, h, n, 1, e)) for y in at.aside)
        gated = ops.fused("skip and gate", _gated, mixed, *aside, ops.reshape(w["skip"], (h, 1, 1, 1)), *several)
        return ops.contract("bhle,hed->bld", ops.reshape(gated, (b, h, n, e)), w["w_o"])

    def usual_width(self, sizes: Mapping[str, int]) -> int:
        return sizes["heads"] * sizes["value_dim"] // 2

    def cache(self, m: Sizes, tokens: Dim) -> tuple[Kept, ...]:
        H, e, d = m["H"], m["e"], m["d_r"] + m["d_n"]
        angle = Kept((H, 1, divide(m["d_r"], 2)), "accumulate")
        return Kept((H, d, e), "accumulate"), angle, Kept((H, m["R"], d)), Kept((H, 1, e))

    def grain(self, m: Sizes) -> int:
        return int(m["C"])

    def overlap(self, m: Sizes) -> Dim:
        return 1

    def query_heads(self, m: Sizes) -> tuple[Dim, Dim]:
        return m["H"], m["H"]

    def written(self, xp: Any, x: Any, w: Weights, at: Site[Any]) -> Written:
        z, v, raw_dt, raw_a, raw_u = (
            xp.einsum("bld,dhe->bhle", x, w[f"w_{name}"]) for name in ("z", "x", "dt", "a", "u")
        )
        dt = xp.log(1 + xp.exp(raw_dt + w["b_dt"].view(-1, 1, 1)))
        kept = xp.exp(-xp.log(1 + xp.exp(raw_a)).clamp(min=FLOOR) * dt)
        u = 1 / (1 + xp.exp(-raw_u))
        angles = (xp.tanh(x @ w["w_r"])[:, None] * dt * pi).cumsum(2)
        q, k = (self._written_key(xp, x, w, name, angles, at) for name in "cb")
        rank = at.sizes["R"]
        x_r, z_r, o_r = (w[name][:, None] for name in SEVERAL) if rank > 1 else (1, 1, 1)
        v, z = (v[:, :, :, None] * x_r).flatten(2, 3), (z[:, :, :, None] * z_r).flatten(2, 3)
        matrix = _trapezoid_matrix(xp, q, k, (kept, kept * dt * (1 - u), u * dt))
        matrix = matrix + xp.diag_embed(w["skip"][:, None].expand(*v.shape[:3]))
        gated = (matrix @ v) * z / (1 + xp.exp(-z))
        mixed = (gated.unflatten(2, (-1, rank)) * o_r).sum(3)
        return Written(matrix, v, xp.einsum("bhle,hed->bld", mixed, w["w_o"]))

    def _written_key(self, xp: Any, x: Any, w: Weights, name: str, angles: Any, at: Site[Any]) -> Any:
        """Queries or keys [B, H, n, R, d], normed, with their bias, and turned."""
        y = xp.einsum("bld,dre->blre", x, w[f"w_{name}"])
        y = y * (y.square().mean(-1, True) + 1e-5) ** -0.5 * w[f"norm_{name}"]
        y = y[:, None] + w[f"bias_{name}"][:, None]
        turning, waves = at.sizes["d_r"], (angles.cos()[..., None, :], angles.sin()[..., None, :])
        return xp.cat((complex_turned(xp, y[..., :turning], *waves), y[..., turning:]), -1)

    def _values(self, ops: Vocabulary[T], v: T, w: Weights, at: Site[T]) -> T:
        """The values [B, H, R, e] of one token's v [B, H, 1, e]."""
        return ops.mul(v, w["mimo_x"]) if at.sizes["R"] > 1 else v

    def _read(self, ops: Vocabulary[T], read: tuple[T, ...], w: Weights, at: Site[T]) -> tuple[T, ...]:
        """k, q [B, 1, n, R, d], turns [B, H, n, d_r/2]; log decay, and what a token and the one before it count for."""
        *keys, raw_turn, raw_dt, raw_a, raw_u = read
        b, r, n, d = ops.shape(keys[0])
        k, q = (
            ops.reshape(ops.permute(rms_norm(ops, y, w[name]), (0, 2, 1, 3)), (b, 1, n, r, d))
            for y, name in zip(keys, ("norm_b", "norm_c"), strict=True)
        )
        bias = ops.reshape(w["b_dt"], (at.sizes["H"], 1, 1))
        dt, *steps = ops.fused("steps", _steps, raw_dt, raw_a, raw_u, bias)
        turn = ops.reshape(raw_turn, (b, 1, n, ops.shape(raw_turn)[2]))
        return k, q, ops.fused("turns", _turns, dt, turn), *steps


def _steps(ops: Vocabulary[Any], raw_dt: Any, raw_a: Any, raw_u: Any, bias: Any) -> Any:
    """dt, the logarithm of decay, u dt and (1 - u) dt: [B, H, n, 1] each."""
    dt = ops.map("softplus", ops.add(ops.cast(raw_dt, "accumulate"), bias))
    rate = ops.shift(ops.map("relu", ops.shift(ops.map("softplus", raw_a), -FLOOR)), FLOOR)
    u = ops.map("sigmoid", raw_u)
    return dt, ops.map("neg", ops.mul(dt, rate)), ops.mul(dt, u), ops.mul(dt, ops.map("complement", u))


def _turns(ops: Vocabulary[Any], dt: Any, raw: Any) -> Any:
    return ops.scale(ops.mul(dt, ops.map("tanh", raw)), pi)


def _gated(ops: Vocabulary[Any], mixed: Any, z: Any, v: Any, skip: Any, *several: Any) -> Any:
    """(mixed + skip v) silu(z) [B, H, n, R, e], with v and z by rank where there are several, and summed over these."""
    if not several:
        return ops.mul(ops.add(mixed, ops.mul(v, skip)), ops.map("silu", z))
    own_v, own_z, own_o = several
    skipped = ops.add(mixed, ops.mul(ops.mul(v, own_v), skip))
    gated = ops.mul(skipped, ops.map("silu", ops.mul(z, own_z)))
    return ops.sum(ops.mul(gated, own_o), (3,))


def _trapezoid_matrix(xp: Any, q: Any, k: Any, steps: tuple[Any, Any, Any]) -> Any:
    """P [B, H, n R, n R], token by token: the outputs for values that are unit vectors.

    Args:
        q, k: [B, H, n, R, d]; the R rows of a token are next to each other in P.
        steps: what is kept of the state, and what the token before and this one count for: [B, H, n, 1] each.
    """
    b, h, n, r, d = k.shape
    kept, before, now = steps
    added = xp.einsum("bhtrd,trm->bhtdm", k, xp.eye(n * r, dtype=k.dtype).view(n, r, n * r))
    state, rows = xp.zeros((b, h, d, n * r), dtype=k.dtype), []
    for t in range(n):
        state = state * kept[:, :, t, :, None] + added[:, :, t] * now[:, :, t, :, None]
        if t:
            state = state + added[:, :, t - 1] * before[:, :, t, :, None]
        rows.append(q[:, :, t] @ state)
    return xp.cat(rows, 2)


mamba3 = Mamba3()
