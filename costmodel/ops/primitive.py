"""What a primitive of the vocabulary has to say about itself, in one place.

Its shape rule, its FLOPs by class, its memory traffic, its backward rule (over the vocabulary again), and the kernel
family that calibration times. How it runs on real tensors is registered by ``validate``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from costmodel.dims import Dim, Shape
from costmodel.tensor import Tensor

if TYPE_CHECKING:
    from costmodel.ops.vocabulary import Vocabulary

#: Classes of FLOP. A device runs each at its own rate, so that no time follows from their sum.
FLOP_CLASSES = ("contraction", "elementwise", "special", "reduction", "fft", "sort", "gather")

Flops = Mapping[str, Dim]


class Reading(Enum):
    """Which FLOPs of a masked operation are counted."""

    USEFUL = "useful"  #: only the query-key pairs that the mask leaves
    EXECUTED = "executed"  #: what the kernel does, whole tiles included
    DENSE = "dense"  #: as if there were no mask: what torch's counter reports
    MODEL = "model"  #: dense and without recomputation: the convention of MFU (PaLM, arXiv 2204.02311, appendix B)


@dataclass(frozen=True)
class Spec:
    """Shape and element width in bytes of an output; ``view_of`` names the input whose memory it shares.

    Outputs that are not differentiable, such as indices, come after those that are.
    """

    shape: Shape
    width: Dim
    view_of: int | None = None
    differentiable: bool = True


class Primitive(ABC):
    """One operation of the vocabulary. Subclasses are small frozen dataclasses."""

    family: ClassVar[str]

    @property
    def kernel(self) -> str:
        """Which of the family's kernels it is: those of one name differ in their sizes only."""
        return type(self).__name__

    @abstractmethod
    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        """Shape rule.

        Raises:
            ValueError: when the inputs' shapes do not fit together.
        """

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        """FLOP by class (a multiply-add is 2)."""
        return {}

    def front(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Dim:
        """FLOP to which a kernel's fixed work is in proportion: in fused attention one key of every query; or none."""
        return 0

    def overheads(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, Dim]:
        """What a kernel does besides its FLOP and its traffic: how many ``line`` (rows that it goes through one by
        one), bytes of ``left`` and ``right`` operands that are copied first, of them those whose rows are a page or
        more ``apart``, bytes of a product's ``result``, bytes that are read ``again``, or ``scores`` of a softmax.
        """
        return {}

    def missed(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Mapping[str, tuple[Dim, Dim]]:
        """What takes time as far as the last-level cache does not hold it, with the bytes that it would have to hold:
        bytes of what a kernel writes and reads ``between`` operands and results, rows at random places (``far``).
        """
        return {}

    @property
    def uneven(self) -> bool:
        """Whether a fused attention has tiles of queries with more work than others."""
        return False

    def tiles(self, inputs: Sequence[Tensor]) -> Dim:
        """Tiles of queries of a fused attention, each the work of one multiprocessor; or none."""
        return 0

    def traffic(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[Dim, Dim]:
        """Bytes read from and written to device memory; every input and output once unless a rule says otherwise."""
        return sum(t.bytes for t in inputs), sum(t.bytes for t in outputs)

    def backward(
        self, ops: Vocabulary[Any], inputs: Sequence[Any], outputs: Sequence[Any], gradients: Sequence[Any]
    ) -> Sequence[Any]:
        """Gradients of the inputs, over the vocabulary; a function in place of one is called only if it is needed.

        Raises:
            NotImplementedError: for a primitive that only appears inside a stated backward.
        """
        raise NotImplementedError(f"{type(self).__name__} has no backward rule; state one with ops.custom")


class View(Primitive):
    """A primitive that moves nothing: its output is its input's memory in another shape."""

    family = "view"

    def traffic(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[Dim, Dim]:
        return 0, 0


class Entrywise(Primitive):
    """A primitive whose output is like its first input, for 1 FLOP an entry."""

    family = "elementwise"

    def outputs(self, *inputs: Tensor) -> tuple[Spec, ...]:
        return (Spec(inputs[0].shape, inputs[0].width),)

    def flops(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], reading: Reading) -> Flops:
        return {"elementwise": outputs[0].elements}
