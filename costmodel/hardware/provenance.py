"""Where the numbers of a hardware profile come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import msgspec

from costmodel.hardware.profile import Profile
from costmodel.hardware.quantity import Quantity

#: How a number is known, the best first.
KINDS = ("measured", "datasheet", "cited", "derived", "assumed")


def numbers(noun: object, path: str = "") -> Iterator[tuple[str, Quantity]]:
    """Every number of a profile, with where it stands in the file."""
    if isinstance(noun, Quantity):
        yield path, noun
    elif isinstance(noun, tuple):
        for index, child in enumerate(noun):
            yield from numbers(child, f"{path}[{index}]")
    elif isinstance(noun, dict):
        for key, child in noun.items():
            yield from numbers(child, f"{path}.{key}")
    elif isinstance(noun, msgspec.Struct):
        for key in noun.__struct_fields__:
            yield from numbers(getattr(noun, key), f"{path}.{key}" if path else key)


def kinds(profile: Profile) -> dict[str, int]:
    """How many numbers are known in which way."""
    counted = Counter[str](quantity.kind for _, quantity in numbers(profile))
    return {kind: counted[kind] for kind in KINDS if counted[kind]}
