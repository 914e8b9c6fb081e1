"""The one place that defines the symbols of every formula and what they mean."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from costmodel.expression import Expression, symbol_named

if TYPE_CHECKING:
    import sympy

MEANING: dict[str, str] = {
    "B": "batch: sequences in the global batch",
    "L": "sequence length: tokens of one sequence, over all ranks",
    "L_M": "tokens of a second sequence (cross-attention)",
    "D_M": "width of a second sequence (cross-attention)",
    "T": "tokens of one sequence that were cached before",
    "D": "model width",
    "V": "vocabulary size",
    "F": "hidden width of the feed-forward layer (of one expert)",
    "H": "query heads",
    "H_kv": "key-value heads",
    "d": "head dimension of queries and keys",
    "e": "head dimension of values",
    "w": "sliding window: keys that a query sees, itself included",
    "w_s": "tokens that a token sees to each side",
    "w_n": "window of the branch for near tokens: keys that a query sees, itself included",
    "l": "stride between the tokens that a strided head sees, and tokens of the window of the other heads",
    "G": "global tokens: all see them, and they see all",
    "m_s": "tokens that the shortest segments of dilated attention keep",
    "l_c": "levels within a chunk of 2^l_c tokens (log-linear attention)",
    "l_s": "levels of states of chunks (log-linear attention)",
    "n_s": "branches of dilated attention, each with segments of another length",
    "x_r": "factor of the dilation from one branch to the next",
    "x_m": "factor of the tokens that a segment keeps from one branch to the next",
    "n_r": "random blocks that a block of queries sees",
    "C": "tokens of a chunk",
    "n_h": "rounds of hashing (Reformer)",
    "b": "tokens of a block that is chosen as one",
    "S": "blocks that a query sees, its own included",
    "m": "random features, or landmarks",
    "L_max": "the longest sequence that positions are made for",
    "f": "width of the network that makes filters",
    "n_f": "frequencies among the features of a place",
    "r_x": "rank of the projection to the token shift",
    "r_g": "rank of the projection to a gate",
    "D_i": "inner channels",
    "N": "entries of a channel's state",
    "r_w": "rank of the projection to a decay",
    "r_a": "rank of the projection to a removal rate",
    "r_dt": "rank of the projection to a step",
    "K": "taps of a short convolution",
    "J": "levels of a tree of convolutions (MultiresConv)",
    "D_S": "hidden width of an MLP along the sequence (MLP-Mixer)",
    "Z": "channels of a gate along the sequence (gMLP)",
    "R": "keys, queries and values of a token (Mamba-3)",
    "r": "rank of a projection",
    "k": "rows that keys and values are projected to (Linformer)",
    "w_b": "tokens at this distance or farther have no position biases (AFT-local)",
    "r_p": "rank of the position biases (AFT)",
    "r_q": "rank of the query latent (MLA)",
    "r_kv": "rank of the key-value latent (MLA)",
    "H_i": "heads of the index that chooses tokens (DSA)",
    "d_i": "dimension without position of an index head (DSA); d_r more turn",
    "d_n": "head dimension without position (MLA), or that does not turn (Mamba-3)",
    "d_r": "head dimension with rotary position (MLA), or that turns (Mamba-3)",
    "E": "experts",
    "E_a": "experts active for one token",
    "F_s": "hidden width of the shared experts together",
    "P": "ranks over which the sequence is spread",
    "P_d": "data-parallel ranks",
    "P_t": "tensor-parallel ranks",
    "P_u": "Ulysses ranks: they exchange heads for sequence (of a tile: they gather queries; of a product: gradients)",
    "P_c": "context-parallel ranks: a ring, or an all-gather of keys and values",
    "rank_d": "this rank's index among the data-parallel ranks",
    "rank_t": "this rank's index among the tensor-parallel ranks",
    "rank_u": "this rank's index among the Ulysses ranks",
    "rank_c": "this rank's index among the context-parallel ranks",
    "s": "bytes of one element of the model's dtype",
    "a": "bytes of one element of the accumulation dtype (4: float32)",
    "g": "bytes of one element of a gradient on the wire",
    "t": "edge of the tile that the fused attention kernel works in",
}


@cache
def symbol(name: str) -> Expression:
    """The symbol of that name.

    Raises:
        KeyError: for a name without a meaning above.
    """
    if name not in MEANING:
        raise KeyError(f"no symbol named {name!r}; add it to costmodel.symbols.MEANING")
    return symbol_named(name)


@cache
def sympy_symbol(name: str) -> sympy.Symbol:
    """The SymPy symbol of that name, always with the same assumptions: two that differ in them do not cancel."""
    import sympy

    sign = {"nonnegative": True} if name.startswith("rank") else {"positive": True}
    return sympy.Symbol(name, integer=True, **sign)
