"""No carry: the result is there already, as when one token is decoded from a state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from costmodel.carry import Carry
from costmodel.ops.vocabulary import Vocabulary

T = TypeVar("T")


@dataclass(frozen=True)
class Direct(Carry[T]):
    """The mixed values [B, H, n, e] themselves."""

    value: T

    kind: ClassVar[str] = "nothing"

    def streams(self) -> tuple[T, ...]:
        return (self.value,)

    def on(self, streams: Sequence[T], parameters: Sequence[T] = ()) -> Direct[T]:
        return Direct(streams[0])

    def whole(self, ops: Vocabulary[T]) -> T:
        return self.value
