"""The two ends of a model: token embedding and output head."""

from __future__ import annotations

from typing import TypeVar

from costmodel.composite import rms_norm
from costmodel.dims import Shape
from costmodel.masks import Mask
from costmodel.mixer import Weights
from costmodel.ops.mesh import Axis
from costmodel.ops.model_ends import Lookup
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")


def embed(ops: Vocabulary[T], table: T, tokens: Shape) -> T:
    """Embeddings [B, n, D] of tokens [B, n]."""
    return ops.apply(Lookup(tokens), table)[0]


def logits(ops: Vocabulary[T], x: T, w: Weights) -> T:
    """Scores [B, n, V] of the next token, after the last norm."""
    return ops.contract("bld,dv->blv", rms_norm(ops, x, w["final_norm"]), w["head"])


def loss(ops: Vocabulary[T], x: T, w: Weights, axis: Axis | None, whole: bool = False) -> T:
    """Cross-entropy of a chunk of tokens, whose logits are dropped with the chunk.

    Loss and gradients of one chunk are computed before the next, so that only one chunk's logits are ever held
    (Wijmans et al. 2024, arXiv 2411.09009; Liger-Kernel). With tensor parallelism the vocabulary is cut, and maxima
    and sums of exponentials are exchanged.

    Args:
        whole: the chunk is all tokens, whose logits are cast to accumulation width as libraries in eager mode do, such
            as transformers and torchtitan: probabilities, their gradient and its cast are held at once.
    """

    def forward(ops: Vocabulary[T], x: T, head: T) -> tuple[T, tuple[T, ...]]:
        scores = ops.contract("bld,dv->blv", x, head)
        p = ops.softmax(ops.cast(scores, "accumulate") if whole else scores, 1, Mask())
        rows = ops.slice(p, 2, 0, 1)  # as many numbers as there are row sums
        if axis is not None:
            rows = ops.all_reduce(ops.cast(rows, "accumulate"), axis)
        return rows, (x, head, p)

    def backward(ops: Vocabulary[T], saved: tuple[T, ...], _: T) -> tuple[T, T]:
        x, head, p = saved
        surplus = ops.scale(p, 1)  # p minus one at the label
        if whole:
            surplus = ops.cast(surplus, "model")
        return ops.contract("blv,dv->bld", surplus, head), ops.contract("bld,blv->dv", x, surplus)

    hidden = rms_norm(ops, x, w["final_norm"])
    if axis is not None:
        hidden = ops.all_gather(hidden, axis, 1)
    result: T = ops.custom(forward, backward, hidden, w["head"])
    return result
