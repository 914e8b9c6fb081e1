"""All-gather of what is chosen from: every rank then chooses for its own queries, and attends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from costmodel.carries.selection import Selection
from costmodel.carry import Carry
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary
from costmodel.strategy import Requirement, Situation, Strategy, equal_stretches

T = TypeVar("T")


class SelectGather(Strategy):
    """Keys, values and summaries are gathered whole; keys and values again in the backward pass.

    Nothing less than all is sent, because nothing less is sure to be enough. Which blocks a rank needs is known only
    once its queries have chosen. Its L / P queries, in G groups of heads that choose for themselves, may ask another
    rank for min(L / (P b), G S L / P) different blocks: all that this has, as G S b >= 1. So an exchange of what was
    chosen, in buffers of a fixed size, sends as much as the all-gather and the requests besides; smaller buffers would
    have to refuse some inputs. Even the total that a rank can need, G S L / P blocks, is less than all L / b only over
    P > G S b ranks (at usual sizes NSA 1,024, DSA 2,048, MoBA 196,608), and choices that were drawn at random would
    leave out exp(-G S b / P) of all blocks: on 128 ranks 0.03 % for NSA.

    A query reads as many blocks wherever it stands, but for the first few: contiguous stretches are balanced enough.
    """

    name: ClassVar[str] = "select-gather"
    title: ClassVar[str] = "all-gather of keys, values and block summaries; every rank chooses blocks"
    source: ClassVar[str] = "Grattafiori et al. 2024 (Llama 3), arXiv 2407.21783, section 3.3.2, with chosen blocks"
    carries: ClassVar[tuple[type[Carry[Any]], ...]] = (Selection,)
    axes: ClassVar[tuple[str, ...]] = ("context",)

    def requirements(self, at: Situation) -> Iterator[Requirement]:
        return equal_stretches(at)

    def apply(self, ops: Vocabulary[T], axes: Mapping[str, Axis], carry: Selection[T]) -> T:
        return carry.across(ops, axes["context"])


select_gather = SelectGather()
