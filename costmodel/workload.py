"""What is to be run: how long a sequence, in which pass, at which precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from costmodel.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from costmodel.documents import Documents

Phase = Literal["forward", "train", "prefill", "decode"]
PHASES: tuple[Phase, ...] = ("forward", "train", "prefill", "decode")

#: Precisions of gradients that several ranks add to: as they are accumulated, or the dtype of the model.
GradientPrecision = Literal["fp32", "model"]
GRADIENTS: tuple[GradientPrecision, ...] = ("fp32", "model")

#: Bytes of one element, by dtype.
WIDTHS = {"bf16": 2, "fp16": 2, "fp32": 4, "fp8": 1}

#: More tokens than this are taken for a slip.
LONGEST = 2**40


@dataclass(frozen=True)
class Workload:
    """One step of one job.

    Attributes:
        length: tokens of a sequence; when decoding, of the cache with the new token.
        batch: sequences, over all devices.
        phase: ``forward``; ``train`` (forward, backward, gradient exchange, optimizer); ``prefill`` (forward, and the
            cache is kept); ``decode`` (one token for every sequence).
        dtype: of weights, activations and what is sent.
        cache_bytes: bytes of one element of the key-value cache.
        cached: tokens of each sequence that were taken in before, and whose cache is at hand; only for ``prefill``.
        whole_logits: of a training step, whether the loss is taken of all tokens at once, instead of some at a time
            whose logits are dropped.
        documents: lengths of the documents that each sequence is packed with, in their order; none where a sequence is
            one.
        gradient: precision of gradients that several ranks add to, on their way between them: those of keys and values
            in a ring, and in reduce-scatters.

    Raises:
        InputError: for a number out of range.
        UnknownNameError: for an unknown pass, dtype or precision.
    """

    length: int
    batch: int = 1
    phase: Phase = "forward"
    causal: bool = True
    dtype: str = "bf16"
    cache_bytes: float | None = None
    cached: int = 0
    whole_logits: bool = False
    documents: tuple[int, ...] = ()
    gradient: GradientPrecision = "fp32"

    def __post_init__(self) -> None:
        for field, value, limit in (("--seq", self.length, LONGEST), ("--batch", self.batch, 2**30)):
            if not 1 <= value <= limit:
                raise InputError(
                    field, value, f"must be between 1 and {limit}", f"nearest: {min(max(value, 1), limit)}"
                )
        if self.phase not in PHASES:
            raise UnknownNameError("pass", self.phase, PHASES)
        if not 0 <= self.cached <= LONGEST:
            raise InputError("--cached", self.cached, f"must be between 0 and {LONGEST}")
        if self.cached and self.phase != "prefill":
            rule = f"only a prefill adds to a cache; a {self.phase} pass has none, or counts it in its length"
            raise InputError("--cached", self.cached, rule, "add --pass prefill")
        if self.whole_logits and self.phase != "train":
            rule = f"only training takes a loss; a {self.phase} pass has logits of the last token"
            raise InputError("--whole-logits", True, rule, "add --pass train")
        if self.dtype not in WIDTHS:
            raise UnknownNameError("dtype", self.dtype, WIDTHS)
        self._check_gradient()
        self._check_documents()

    def _check_gradient(self) -> None:
        if self.gradient not in GRADIENTS:
            raise UnknownNameError("precision of gradients", self.gradient, GRADIENTS)
        if self.gradient != "fp32" and self.phase != "train":
            rule = f"only training has gradients; a {self.phase} pass sends none"
            raise InputError("--gradient", self.gradient, rule, "add --pass train")

    def _check_documents(self) -> None:
        if not self.documents:
            return
        if self.phase == "decode" or self.cached:
            rule = "documents are packed for passes over whole sequences: no decoding, and no cached tokens"
            raise InputError("--documents", len(self.documents), rule)
        if min(self.documents) < 1 or sum(self.documents) != self.length:
            told = f"{len(self.documents)} documents of {sum(self.documents)} tokens"
            rule = f"each has tokens, and together they have the {self.length} of the sequence"
            raise InputError("--documents", told, rule)

    @property
    def packed(self) -> Documents | None:
        """The documents, if there are any."""
        from costmodel.documents import Documents

        return Documents(self.documents) if self.documents else None

    @property
    def width(self) -> int:
        """Bytes of one element."""
        return WIDTHS[self.dtype]

    @property
    def gradient_width(self) -> int:
        """Bytes of one element of gradients between ranks."""
        return self.width if self.gradient == "model" else max(4, self.width)

    @property
    def cache_width(self) -> float:
        """Bytes of one element of the cache."""
        return self.width if self.cache_bytes is None else self.cache_bytes
