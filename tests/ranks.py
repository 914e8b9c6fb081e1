"""Pools of ranks for tests, quick to start."""

from __future__ import annotations

from validate.launch import RankPool

#: What each rank would import for seconds; torch loads its compiler, of no use here, with the first custom gradient.
NEEDED = "torch._dynamo", "tests.validate.cases"


def ranks(count: int) -> RankPool:
    """So many, forked from a helper that has imported what they need."""
    return RankPool(count, needed=NEEDED)
