"""Refusing what would go wrong between ranks that were not given the same."""

from __future__ import annotations

from copy import copy

import torch

from costmodel.errors import InputError
from validate.communication import Transport

#: Bytes in which ranks tell each other their shapes.
TEXT = 256


def check_alike(shapes: str, transport: Transport, device: torch.device) -> None:
    """Compare the text of this rank's shapes with that of every other, by messages that are not counted.

    Raises:
        InputError: where they differ, telling what each rank has.
    """
    aside = copy(transport)  # the same ranks, counted apart
    aside.sent = dict(transport.sent)
    text = shapes.encode()[:TEXT]
    rows = torch.zeros(1, TEXT, dtype=torch.uint8)
    rows[0, : len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    rows = rows.to(device)
    for axis in reversed(transport.mesh.axes.values()):
        rows = aside.all_gather(rows, axis, 0)
    found = [bytes(row.tolist()).rstrip(b"\0").decode() for row in rows.cpu()]
    if set(found) != {text.decode()}:
        told = "; ".join(f"rank {rank} has {other}" for rank, other in enumerate(found))
        raise InputError("shapes on this rank", shapes, f"every rank needs the same: {told}", "cut with shard(...)")
