"""Control flow as one rank goes through it: written once for its tensors and for their shapes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

from costmodel.dims import Dim
from costmodel.ops.mesh import Axis
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")


class OneRank(Vocabulary[T]):
    """A reader that knows its rank, and how long every loop is."""

    @abstractmethod
    def hand_over(self, axis: Axis, what: str, hop: int, sent: tuple[T, ...], like: tuple[T, ...]) -> tuple[T, ...]:
        """Send tensors to the rank ``hop`` places on; what comes from the one as far before.

        Args:
            like: what comes: its shapes, and its values where there is no rank before.
        """

    def when(self, condition: Any, then: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
        return then() if condition else otherwise()

    def visiting(self, axis: Axis, step: Any) -> Dim:
        return (axis.rank - step) % axis.size

    def visitors(self, axis: Axis, step: Any, earlier: bool | None, own: bool = False) -> tuple[tuple[Dim, Dim], ...]:
        return ((self.visiting(axis, step), 1),)

    def relay(
        self,
        axis: Axis,
        start: tuple[T, ...],
        body: Callable[[tuple[T, ...]], tuple[T, ...]],
        reverse: bool = False,
        behind: bool = False,
    ) -> tuple[T, ...]:
        hop = -1 if reverse else 1
        given = self.hand_over(axis, "relay, waiting for the state", hop, (), start)
        self.hand_over(axis, "relay, passing the state on", hop, body(given), ())
        return given

    def pass_on(self, axis: Axis, start: tuple[T, ...], own: tuple[T, ...], reverse: bool = False) -> tuple[T, ...]:
        return self.hand_over(axis, "passing a state on", -1 if reverse else 1, own, start)

    def prefix(
        self,
        axis: Axis,
        own: tuple[T, ...],
        combine: Callable[[tuple[T, ...], tuple[T, ...]], tuple[T, ...]],
        reverse: bool = False,
    ) -> tuple[T, ...]:
        distance, position = 1, axis.size - 1 - axis.rank if reverse else axis.rank
        while distance < axis.size:
            hop = -distance if reverse else distance
            given = self.hand_over(axis, f"prefix, {distance} ranks on", hop, own, own)
            own = combine(given, own) if position >= distance else own
            distance *= 2
        return own
