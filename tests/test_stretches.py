"""How many tokens a rank must hold, against the rows that the traced layer asks its neighbours for."""

from __future__ import annotations

import pytest

from costmodel.arrangement import Way
from costmodel.mixer import Mixer, mixers
from costmodel.ops.halo import Edges
from costmodel.piece import Pieces
from costmodel.program import Leaf, operations
from costmodel.strategy import Strategy, strategies
from costmodel.subject import Subject, from_mixer
from costmodel.trace import Tracer, Widths
from costmodel.workload import Workload

LENGTH = 2**16


def overlaps(mixer: Mixer) -> bool:
    (layer,) = from_mixer(mixer.name).layers
    return mixer.overlap(layer.sizes) != 0


def in_a_row(mixer: Mixer, causal: bool) -> Strategy:
    """A strategy that lays the sequence's stretches on ranks one after the other."""
    known = (strategies.get(name) for name in strategies.names())
    return next(s for s in known if s.axes == ("context",) and issubclass(mixer.carry_for(causal), s.carries))


@pytest.mark.parametrize("name", [name for name in mixers.names() if overlaps(mixers.get(name))])
def test_ranks_hold_as_many_tokens_as_the_next_reads(name: str) -> None:
    subject = from_mixer(name)
    (layer,) = subject.layers
    way = Way(in_a_row(layer.mixer, subject.causal), layer.mixer.kernels[0], False)
    pieces = Pieces(
        Subject(name, subject.width, (layer,)),
        Workload(LENGTH, 1, "forward", subject.causal),
        way.strategy.axes,
        False,
        Tracer(Widths(2, 4, 4), tile=1),
    )
    asked = [
        max(found.primitive.left, found.primitive.right)
        for found, _ in operations(pieces.layer(layer, way).program.forward)
        if isinstance(found, Leaf) and isinstance(found.primitive, Edges)
    ]
    assert max(asked) == layer.mixer.overlap(layer.sizes)
