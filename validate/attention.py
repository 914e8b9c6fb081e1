"""Fused attention on real tensors: torch's flash kernels, or products of a block of scores at a time.

Tensors are q [B, H, n_q, d], k [B, H_kv, n_k, d], v [B, H_kv, n_k, e], out [B, H, n_q, e] and lse [B, H, n_q], the
natural logarithm of the sum of the exponentials of the scaled and masked scores, in float32 or, for float64, float64.
No copy of keys or values is made for the query heads that share them, and no more scores are in memory than those of
``ROWS`` queries and ``COLUMNS`` keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from costmodel.masks import Mask

_aten: Any = torch.ops.aten

Triple = tuple[Tensor, Tensor, Tensor]

#: Queries and keys of a block, where a kernel cannot take the whole.
ROWS, COLUMNS = 256, 2048
#: A window narrower than this is not worth blocks of fewer queries.
FEWEST_ROWS = 64

#: From this version on torch's kernel for the CPU takes keys that query heads share (pytorch/pytorch#157893).
SHARED_KEYS = "2.9"


class Seen(Enum):
    """Which pairs of a piece the mask leaves."""

    ALL = "all"
    CAUSAL = "causal"  #: of a square, those on and below the diagonal
    SOME = "some"  #: as written out by ``kept``


@dataclass(frozen=True)
class Piece:
    """Queries and keys, each from one place up to another, that a kernel takes at once."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    seen: Seen

    def is_all(self, q: Tensor, k: Tensor) -> bool:
        return self.rows == (0, q.shape[2]) and self.columns == (0, k.shape[2])

    def of_queries(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        first, end = self.rows
        return tuple(x[:, :, first:end] for x in tensors)

    def of_keys(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        first, end = self.columns
        return tuple(x[:, :, first:end] for x in tensors)


def forward(qkv: Triple, mask: Mask, scale: float, flash: bool) -> tuple[Tensor, Tensor]:
    """Output [B, H, n, e] and log-sum-exp [B, H, n] of q [B, H, n, d], k [B, H_kv, m, d] and v [B, H_kv, m, e].

    A head of k and v serves H / H_kv heads of q. The log-sum-exp is in float32, or float64 for float64 tensors.

    Args:
        flash: whether torch's flash kernels may be used where they can be; else scores are materialised.
    """
    if mask.documents is not None:
        return _forward_documents(qkv, mask, scale, flash)
    work = _Work.of(qkv, mask, scale, flash)
    q, k, v = qkv
    if work.pieces[0].is_all(q, k):
        return work.forward(work.pieces[0], qkv)
    out = q.new_zeros(*q.shape[:3], v.shape[3])
    lse = q.new_full(q.shape[:3], -torch.inf, dtype=_wide_dtype(q))
    for rows, pieces in groupby(work.pieces, lambda piece: piece.rows):
        done = [work.forward(piece, (*piece.of_queries(q), *piece.of_keys(k, v))) for piece in pieces]
        block_out, block_lse = done[0]
        for more in done[1:]:
            block_out, block_lse = merge(_wide(block_out), block_lse, *more)
        out[:, :, slice(*rows)], lse[:, :, slice(*rows)] = block_out, block_lse
    return out, lse


def backward(qkv: Triple, known: Triple, mask: Mask, scale: float, flash: bool) -> Triple:
    """Triple of q, k and v.

    Args:
        known: the output, its log-sum-exp and its gradient, all of which may be over more keys than these.
    """
    if mask.documents is not None:
        return _backward_documents(qkv, known, mask, scale, flash)
    work = _Work.of(qkv, mask, scale, flash)
    q, k, v = qkv
    if work.pieces[0].is_all(q, k):
        return work.backward(work.pieces[0], qkv, known)
    dq, dk, dv = (torch.zeros_like(x, dtype=_wide_dtype(x)) for x in qkv)
    for piece in work.pieces:
        own = (*piece.of_queries(q), *piece.of_keys(k, v))
        found = work.backward(piece, own, piece.of_queries(*known))  # type: ignore[arg-type]
        for total, part in zip((*piece.of_queries(dq), *piece.of_keys(dk, dv)), found, strict=True):
            total.add_(part)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def merge(out: Tensor, lse: Tensor, block_out: Tensor, block_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Take attention over more keys into a running result, in place; see ``costmodel.ops.fused_attention.Merge``.

    out' = out + w (block_out - out) with w = exp(block_lse - lse'): one pass over the output.
    """
    weight = torch.sigmoid(block_lse - lse).masked_fill_(block_lse == -torch.inf, 0)  # also where neither sees a key
    out.lerp_(block_out.to(out.dtype), weight.to(out.dtype)[..., None])
    torch.logaddexp(lse, block_lse, out=lse)
    return out, lse


def kept(
    mask: Mask,
    n_q: int,
    n_k: int,
    device: torch.device | None = None,
    rows: tuple[int, int] | None = None,
    columns: tuple[int, int] | None = None,
) -> Tensor:
    """Which pairs [n_q, n_k] the mask leaves, each written out: the slow twin of ``Mask.useful_pairs``.

    Args:
        rows, columns: of queries and keys, where only some are asked for: the first, and the one after the last.
    """
    if mask.documents is not None:
        return _kept_in_documents(mask, n_q, n_k)
    rows, columns = rows or (0, n_q), columns or (0, n_k)
    query = torch.arange(*rows, device=device)[:, None] + n_k * mask.stride - n_q - mask.ahead
    key = (torch.arange(*columns, device=device)[None, :] + 1) * mask.stride - 1
    keep = torch.ones(query.shape[0], key.shape[1], dtype=torch.bool, device=device)
    if mask.causal:
        keep &= key <= query
    if mask.window is not None:
        keep &= (query - key < mask.window) & (key - query < mask.window)
    return keep


# Documents ------------------------------------------------------------------------------------------------------------


def _own_of_documents(mask: Mask, n_q: int, n_k: int) -> Iterator[tuple[slice, slice, Mask]]:
    """Queries and keys of one document each, and the mask inside it; whatever has no pair is left out."""
    assert mask.documents is not None
    for square in mask.where(n_q, n_k).squares(mask.documents):
        inside = Mask()
        if square.ruled:
            inside = replace(mask.within, ahead=0 if mask.causal or mask.window is None else square.ahead)
        yield slice(*square.rows), slice(*square.columns), inside


def _forward_documents(qkv: Triple, mask: Mask, scale: float, flash: bool) -> tuple[Tensor, Tensor]:
    q, k, v = qkv
    out = q.new_zeros(*q.shape[:3], v.shape[3], dtype=_wide_dtype(q))
    lse = q.new_full(q.shape[:3], -torch.inf, dtype=_wide_dtype(q))
    for rows, columns, inside in _own_of_documents(mask, q.shape[2], k.shape[2]):
        own = q[:, :, rows], k[:, :, columns], v[:, :, columns]
        merge(out[:, :, rows], lse[:, :, rows], *forward(own, inside, scale, flash))
    return out.to(q.dtype), lse


def _backward_documents(qkv: Triple, known: Triple, mask: Mask, scale: float, flash: bool) -> Triple:
    q, k, v = qkv
    totals = tuple(torch.zeros_like(x, dtype=_wide_dtype(x)) for x in qkv)
    for rows, columns, inside in _own_of_documents(mask, q.shape[2], k.shape[2]):
        own = q[:, :, rows], k[:, :, columns], v[:, :, columns]
        out, lse, gradient = (x[:, :, rows] for x in known)
        found = backward(own, (out, lse, gradient), inside, scale, flash)
        for total, part, places in zip(totals, found, (rows, columns, columns), strict=True):
            total[:, :, places].add_(part)
    dq, dk, dv = (total.to(x.dtype) for total, x in zip(totals, qkv, strict=True))
    return dq, dk, dv


def _kept_in_documents(mask: Mask, n_q: int, n_k: int) -> Tensor:
    """As ``kept``, from the number of each query and key and of the document that it is in."""
    assert mask.documents is not None
    place = mask.where(n_q, n_k)
    query, key = (torch.tensor([token for stretch in each for token in stretch]) for each in place.tokens())
    ends = torch.tensor([end for _, end in place.spans(mask.documents)])
    inside = torch.bucketize(query, ends, right=True)[:, None] == torch.bucketize(key, ends, right=True)[None, :]
    apart = query[:, None] - key[None, :]
    if mask.causal:
        inside &= apart >= 0
    return inside if mask.window is None else inside & (apart.abs() < mask.window)


# Pieces ---------------------------------------------------------------------------------------------------------------


def _simplest(mask: Mask, n_q: int, n_k: int) -> Mask:
    """The same pairs, without a rule that leaves out none."""
    if mask.window is not None and mask.window >= n_k:
        mask = replace(mask, window=None, ahead=0)
    return replace(mask, causal=False) if n_q == 1 and mask.window is None and mask.stride == 1 else mask


def _whole(mask: Mask, n_q: int, n_k: int) -> list[Piece]:
    """A rectangle, or one and a square with a diagonal, without blocks."""
    if not mask.causal:
        return [Piece((0, n_q), (0, n_k), Seen.ALL)]
    before = n_k - n_q
    square = Piece((0, n_q), (before, n_k), Seen.CAUSAL)
    return [Piece((0, n_q), (0, before), Seen.ALL), square] if before else [square]


def _blocks(mask: Mask, n_q: int, n_k: int, longest: int) -> Iterator[Piece]:
    """Blocks of queries, each with the keys that it sees, at most ``longest`` of them at once."""
    size = ROWS if mask.window is None or n_q <= ROWS else min(ROWS, max(FEWEST_ROWS, mask.window))
    for first in range(0, n_q, size):
        rows = first, min(first + size, n_q)
        (start, all_end), (all_start, end) = (_reach(mask, n_q, n_k, row) for row in (first, rows[1] - 1))
        if n_q <= ROWS and n_k <= COLUMNS:
            yield Piece(rows, (0, n_k), Seen.SOME)
        elif end - start <= COLUMNS:
            yield Piece(rows, (start, end), Seen.ALL if (start, end) == (all_start, all_end) else Seen.SOME)
        else:
            yield Piece(rows, (start, all_start), Seen.SOME)
            for place in range(all_start, all_end, longest):
                yield Piece(rows, (place, min(place + longest, all_end)), Seen.ALL)
            yield Piece(rows, (all_end, end), Seen.SOME)


def _reach(mask: Mask, n_q: int, n_k: int, row: int) -> tuple[int, int]:
    """The first key that a query sees, and the one after the last."""
    place = n_k * mask.stride - n_q - mask.ahead + row
    reached = (place + 1) // mask.stride
    start, end = 0, n_k
    if mask.causal:
        end = min(n_k, max(reached, 0))
    if mask.window is not None:
        start = max(0, place - mask.window + 1)
        end = min(end, place + mask.window)
    return min(start, end), end


@dataclass(frozen=True)
class _Work:
    """A kernel for all pieces of one call, and what they have in common."""

    mask: Mask
    lengths: tuple[int, int]
    scale: float
    flash: bool
    pieces: tuple[Piece, ...]
    biases: dict[tuple[int, int, int], Tensor]

    @classmethod
    def of(cls, qkv: Triple, mask: Mask, scale: float, flash: bool) -> _Work:
        q, k, _ = qkv
        lengths = n_q, n_k = q.shape[2], k.shape[2]
        mask = _simplest(mask, n_q, n_k)
        plain = mask.window is None and mask.stride == 1
        flash = flash and _flash_applies(*qkv) and (plain or q.device.type == "cpu")
        if flash and plain:
            pieces = _whole(mask, n_q, n_k)
        else:
            pieces = [p for p in _blocks(mask, n_q, n_k, n_k if flash else COLUMNS) if p.columns[0] < p.columns[1]]
        return cls(mask, lengths, scale, flash, tuple(pieces) or (Piece((0, n_q), (0, n_k), Seen.ALL),), {})

    def forward(self, piece: Piece, qkv: Triple) -> tuple[Tensor, Tensor]:
        bias = self.bias(piece, qkv[0])
        if not self.flash:
            return _forward_math(qkv, bias, self.scale)
        out, lse = _forward_flash(qkv, piece.seen is Seen.CAUSAL, bias, self.scale)
        # The kernel says 0 for a query that sees no key.
        return out, lse if bias is None else lse.masked_fill(bias.amax(-1) == -torch.inf, -torch.inf)

    def backward(self, piece: Piece, qkv: Triple, known: Triple) -> Triple:
        bias = self.bias(piece, qkv[0])
        if not self.flash:
            return _backward_math(qkv, known, bias, self.scale)
        return _backward_flash(qkv, known, piece.seen is Seen.CAUSAL, bias, self.scale)

    def bias(self, piece: Piece, q: Tensor) -> Tensor | None:
        """What is added to the piece's scores: 0, or -inf where the mask leaves out a pair; made once for like pieces.

        Pieces are alike when a step along queries goes with as many along keys.
        """
        if piece.seen is not Seen.SOME:
            return None
        sizes = [end - start for start, end in (piece.rows, piece.columns)]
        alike = (piece.columns[0] * self.mask.stride - piece.rows[0], *sizes)
        if alike not in self.biases:
            keep = kept(self.mask, *self.lengths, q.device, piece.rows, piece.columns)
            self.biases[alike] = torch.zeros(sizes, dtype=_wide_dtype(q), device=q.device).masked_fill_(
                ~keep, -torch.inf
            )
        return self.biases[alike]


# Flash kernels --------------------------------------------------------------------------------------------------------


def _flash_applies(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Torch's kernels need heads, queries, keys, one dtype, and values as wide as keys; on CUDA a half-width one."""
    fits = q.shape[3] == v.shape[3] and q.dtype == k.dtype and min(q.shape[2], *k.shape[1:3]) > 0
    if q.device.type == "cuda":
        return fits and q.dtype in (torch.float16, torch.bfloat16) and q.shape[3] % 8 == 0
    return fits and q.device.type == "cpu"


def _dense_last(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _for_heads(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values once for every query head; as they are where there are as many, or none."""
    if q.shape[1] == k.shape[1]:
        return k, v
    times = q.shape[1] // k.shape[1]
    return k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)


def _of_groups(gradient: Tensor, groups: int) -> Tensor:
    b, heads, *rest = gradient.shape
    return gradient if heads == groups else gradient.reshape(b, groups, heads // groups, *rest).sum(2)


def _shares_keys(q: Tensor) -> bool:
    return q.device.type == "cpu" and torch.__version__ >= SHARED_KEYS  # of a type that compares as versions do


def _forward_flash(qkv: Triple, causal: bool, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    q, k, v = (_dense_last(x) for x in qkv)
    if not _shares_keys(q):
        k, v = _for_heads(q, k, v)
    if q.device.type == "cuda":
        out, lse = _aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)[:2]
        return out, lse[..., : q.shape[2]]
    op = _aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = op(q, k, v, 0.0, causal, attn_mask=bias, scale=scale)
    return out, lse


def _backward_flash(qkv: Triple, known: Triple, causal: bool, bias: Tensor | None, scale: float) -> Triple:
    groups, (q, k, v) = qkv[1].shape[1], (_dense_last(x) for x in qkv)
    out, lse, gradient = _dense_last(known[0]), _finite(known[1]).contiguous(), _dense_last(known[2])
    if not _shares_keys(q):
        k, v = _for_heads(q, k, v)
    if q.device.type == "cuda":
        seed = torch.empty(2, dtype=torch.uint64, device=q.device)  # of dropout, which there is none of
        lengths = q.shape[2], k.shape[2]
        op = _aten._scaled_dot_product_flash_attention_backward
        operands = (gradient, q, k, v, out, lse, None, None, *lengths, 0.0, causal, seed, seed)
        dq, dk, dv = op(*operands, scale=scale)
    elif q.dtype.itemsize == 2 and not _multiplies_half():
        dq, dk, dv = _backward_widened((q, k, v), (out, lse, gradient), causal, bias, scale)
    else:
        dq, dk, dv = _backward_cpu((q, k, v), (out, lse, gradient), causal, bias, scale)
    return dq, _of_groups(dk, groups), _of_groups(dv, groups)


def _backward_cpu(qkv: Triple, known: Triple, causal: bool, bias: Tensor | None, scale: float) -> Triple:
    out, lse, gradient = known
    op = _aten._scaled_dot_product_flash_attention_for_cpu_backward
    dq, dk, dv = op(gradient, *qkv, out, lse, 0.0, causal, attn_mask=bias, scale=scale)
    return dq, dk, dv


def _multiplies_half() -> bool:
    """Whether the processor has products of 16-bit numbers; without, torch's backward kernel is 8 times slower."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _backward_widened(qkv: Triple, known: Triple, causal: bool, bias: Tensor | None, scale: float) -> Triple:
    """In float32, as many heads at a time as there are threads to work on them."""
    q, k, v = qkv
    (out, lse, gradient), share = known, q.shape[1] // k.shape[1]
    found = tuple(torch.empty_like(x) for x in qkv)
    at_once = -(-torch.get_num_threads() // q.shape[0])
    for head in range(0, k.shape[1], at_once):
        keys, queries = slice(head, head + at_once), slice(head * share, (head + at_once) * share)
        own = (q[:, queries].float(), k[:, keys].float(), v[:, keys].float())
        of_queries = out[:, queries].float(), lse[:, queries], gradient[:, queries].float()
        for whole, heads, part in zip(
            found, (queries, keys, keys), _backward_cpu(own, of_queries, causal, bias, scale), strict=True
        ):
            whole[:, heads] = part
    return found  # type: ignore[return-value]


# Scores in memory -----------------------------------------------------------------------------------------------------


def _wide_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _wide(x: Tensor) -> Tensor:
    return x.to(_wide_dtype(x))


def _exponential(scores: Tensor, lse: Tensor) -> Tensor:
    """exp(scores - lse), 0 in the rows of queries that see no key."""
    return torch.exp(scores - _finite(lse)[..., None])


def _finite(lse: Tensor) -> Tensor:
    """0 for queries that see no key, whose scores are all -inf: exp(-inf - 0) is 0, exp(-inf + inf) is not."""
    return lse.masked_fill(lse == -torch.inf, 0)


def _scores(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    scores = scale * (_wide(q) @ _wide(k).mT)
    return scores if bias is None else scores + bias


def _forward_math(qkv: Triple, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    q = qkv[0]
    k, v = _for_heads(*qkv)
    scores = _scores(q, k, bias, scale)
    lse = scores.logsumexp(-1)
    return (_exponential(scores, lse) @ _wide(v)).to(q.dtype), lse


def _backward_math(qkv: Triple, known: Triple, bias: Tensor | None, scale: float) -> Triple:
    """Five products, FlashAttention-2 (arXiv 2307.08691), algorithm 2."""
    q, groups = qkv[0], qkv[1].shape[1]
    k, v = _for_heads(*qkv)
    out, lse, gradient = known
    g = _wide(gradient)
    p = _exponential(_scores(q, k, bias, scale), lse)
    delta = (g * _wide(out)).sum(-1, keepdim=True)
    ds = scale * p * (g @ _wide(v).mT - delta)
    dq, dk, dv = ds @ _wide(k), ds.mT @ _wide(q), p.mT @ g
    return dq.to(q.dtype), _of_groups(dk.to(k.dtype), groups), _of_groups(dv.to(v.dtype), groups)
