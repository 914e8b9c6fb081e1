"""Processes as ranks, started once for all tests of a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.ranks import ranks
from validate.launch import RankPool


@pytest.fixture(scope="session")
def pool() -> Iterator[RankPool]:
    with ranks(4) as started:
        yield started


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors here are tiny, and the ranks need the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
