"""Attention masks, and how many query-key pairs they leave.

A mask is aligned to the end, as in FlashAttention: the last query sees the last key. With n_q queries and n_k >= n_q
keys, query i stands at key position n_k - n_q + i.
"""

from __future__ import annotations

from dataclasses import dataclass

from costmodel.dims import Dim, ceil_div, clip, divide, floor_div, maximum, minimum


@dataclass(frozen=True)
class Mask:
    """Which keys a query sees: all, or those up to itself (causal), or the last ``window`` of these.

    A window without causality sees ``window - 1`` keys on either side, and needs as many queries as keys.
    """

    causal: bool = False
    window: Dim | None = None

    def useful_pairs(self, n_q: Dim, n_k: Dim) -> Dim:
        """Query-key pairs that the mask leaves.

        >>> Mask(causal=True).useful_pairs(4, 4), Mask(causal=True, window=2).useful_pairs(4, 4)
        (10, 7)
        >>> Mask().useful_pairs(2, 5), Mask(window=2).useful_pairs(4, 4)
        (10, 10)
        """
        if self.window is None:
            return n_q * n_k - (_triangle(n_q - 1) if self.causal else 0)
        if not self.causal:
            w = minimum(self.window, n_k)
            return n_k * (2 * w - 1) - w * (w - 1)
        before = n_k - n_q
        ramp = clip(self.window - 1 - before, 0, n_q)
        return ramp * (before + 1) + _triangle(ramp - 1) + (n_q - ramp) * self.window

    def executed_pairs(self, n_q: Dim, n_k: Dim, tile: Dim) -> Dim:
        """Pairs that a kernel working in ``tile`` x ``tile`` squares computes: every square with an unmasked pair.

        >>> Mask(causal=True).executed_pairs(4, 4, 2), Mask(causal=True).executed_pairs(4, 4, 1)
        (12, 10)
        """
        rows, columns = ceil_div(n_q, tile), ceil_div(n_k, tile)
        before = n_k - n_q
        if self.causal:
            end = _triangle(rows - 1) + (rows - 1) * ceil_div(before, tile) + columns
        elif self.window is not None:
            ahead = minimum(ceil_div(self.window - 1, tile), rows)
            end = _triangle(rows) + rows * ahead - _triangle(ahead)
        else:
            end = rows * columns
        skipped: Dim = 0
        if self.window is not None:
            first = floor_div(before - self.window + 1, tile)
            skipped = _triangle(maximum(rows + first, 0) - 1) - _triangle(maximum(first, 0) - 1)
        return (end - skipped) * tile * tile


def _triangle(n: Dim) -> Dim:
    """1 + 2 + ... + n."""
    return divide(n * (n + 1), 2)
