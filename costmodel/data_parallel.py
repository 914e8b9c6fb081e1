"""Replicas of the weights: what they exchange, and what of their state they share out (ZeRO)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from costmodel.dims import Dim
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")


class Sharing(Enum):
    """What replicas do not each hold whole (Rajbhandari et al. 2020, arXiv 1910.02054, section 5)."""

    NOTHING = "replicated"
    OPTIMIZER = "zero-1"
    EVERYTHING = "zero-3"


@dataclass(frozen=True)
class Replicas:
    """The ranks that hold the same weights: all that differ in data, context or Ulysses index."""

    axis: Axis
    sharing: Sharing

    def held(self, sharing: Sharing) -> Dim:
        """How many ways a state is shared out, if sharing of at least this kind shares it."""
        order = list(Sharing)
        return self.axis.size if order.index(self.sharing) >= order.index(sharing) else 1

    def fetch(self, ops: Vocabulary[T], weights: T) -> T:
        """The whole weights [n] of a layer, before each pass through it."""
        return ops.all_gather(weights, self.axis, 0) if self.sharing is Sharing.EVERYTHING else weights

    def exchange(self, ops: Vocabulary[T], gradients: T) -> T:
        """The summed gradients of a layer: whole [n], or this rank's share [n / Z]."""
        if self.sharing is Sharing.NOTHING:
            return ops.all_reduce(gradients, self.axis)
        return ops.reduce_scatter(gradients, self.axis, 0)

    def publish(self, ops: Vocabulary[T], weights: T) -> T:
        """The whole weights [n] of a layer, after each rank has updated its share."""
        return ops.all_gather(weights, self.axis, 0) if self.sharing is Sharing.OPTIMIZER else weights
