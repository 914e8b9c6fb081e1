"""What a layer is to do, and the layer as a method that does it on one rank."""

from __future__ import annotations

from dataclasses import dataclass

from costmodel.arrangement import Way
from costmodel.block import Block, Share
from costmodel.documents import Documents
from costmodel.subject import Layer
from costmodel.workload import Phase, Workload
from validate.mesh import Mesh

#: Axes of the mesh that the sequence is spread over, outermost first.
SEQUENCE = ("context", "ulysses", "tensor")


@dataclass(frozen=True)
class Task:
    """What a layer is to do: how its mixer is spread and run, under which mask, in which pass.

    Attributes:
        way: the strategy, the mixer's kernel, and whether there are several tensor ranks.
        causal: whether a token sees only earlier ones.
        length: tokens of the sequence, for mixers that have weights for each of them; others take any length.
        documents: lengths of those that each sequence is packed with; none where a sequence is one.
    """

    way: Way
    causal: bool = True
    phase: Phase = "train"
    length: int | None = None
    documents: tuple[int, ...] = ()

    def workload(self, length: int, batch: int, cached: int = 0) -> Workload:
        """The task over sequences of so many tokens, their padding included.

        Raises:
            InputError: for documents with more tokens, or a pass that does not take them.
        """
        room = length - sum(self.documents)
        whole = (*self.documents, *([room] if room and self.documents else []))
        return Workload(length, batch, self.phase, self.causal, cached=cached, documents=whole)

    def block(self, layer: Layer, mesh: Mesh, length: int | None) -> Block:
        """A layer as a method over the op vocabulary, with the sizes of one rank, for sequences of so many tokens."""
        packed = Documents(self.documents) if self.documents else None
        ranks = mesh.ranks_along(SEQUENCE[:2])
        share = Share(mesh.ranks_along(["tensor"]), length, ranks, mesh.ranks_along(["ulysses"]), packed)
        return share.block(layer, self.way, mesh.axes, self.phase, self.causal)
