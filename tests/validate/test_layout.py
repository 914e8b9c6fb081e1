"""Layouts and meshes, which are arithmetic and need no ranks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from validate.layout import LAYOUTS, Level, pieces, place, shard, shard_nested, unshard, unshard_nested
from validate.mesh import ORDER, Mesh


@given(st.integers(1, 5), st.sampled_from(LAYOUTS), st.integers(1, 3), st.integers(0, 2))
def test_unshard_undoes_shard(ranks: int, layout: str, size: int, dim: int) -> None:
    shape = [2, 3, 4]
    shape[dim] = 2 * ranks * size
    whole = torch.arange(math.prod(shape)).view(shape)
    parts = [shard(whole, dim, ranks, rank, layout) for rank in range(ranks)]
    assert torch.equal(unshard(parts, dim, layout), whole)


def test_zigzag_pairs_early_tokens_with_late_ones() -> None:
    # 2 P = 6 pieces of 2 tokens; rank r holds pieces r and 5 - r.
    tokens = torch.arange(12)
    held = [shard(tokens, 0, 3, rank, "zigzag").tolist() for rank in range(3)]
    assert held == [[0, 1, 10, 11], [2, 3, 8, 9], [4, 5, 6, 7]]


def test_stripes_deal_tokens_out_in_turn() -> None:
    tokens = torch.arange(6)
    assert [shard(tokens, 0, 3, rank, "striped").tolist() for rank in range(3)] == [[0, 3], [1, 4], [2, 5]]


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from(LAYOUTS)), min_size=1, max_size=3), st.integers(1, 2))
def test_nested_levels(drawn: list[tuple[int, str]], size: int) -> None:
    levels = [Level(*level) for level in drawn]
    whole = torch.arange(size * math.prod(2 * level.ranks for level in levels))
    ranks = [[]]
    for level in levels:
        ranks = [[*rank, index] for rank in ranks for index in range(level.ranks)]
    parts = [shard_nested(whole, 0, levels, rank) for rank in ranks]
    assert torch.equal(unshard_nested(parts, 0, levels), whole)
    assert torch.equal(torch.cat(parts).sort().values, whole)


@pytest.mark.parametrize(("size", "layout"), [(7, "contiguous"), (6, "zigzag")])
def test_pieces_that_do_not_divide_are_refused(size: int, layout: str) -> None:
    with pytest.raises(ValueError, match=f"{size} entries do not divide into [24] pieces of a {layout} layout"):
        pieces(size, 2, 0, layout)


def test_unknown_layouts_are_refused() -> None:
    with pytest.raises(ValueError, match="no layout named 'zagzig'; known: contiguous, zigzag, striped"):
        pieces(4, 2, 0, "zagzig")


def test_a_shard_in_one_piece_is_a_view_and_place_writes_it_back() -> None:
    whole = torch.zeros(4)
    shard(whole, 0, 2, 1).fill_(1)
    place(whole, torch.full((2,), 2.0), 0, 2, 0)
    assert whole.tolist() == [2, 2, 1, 1]


meshes = st.dictionaries(st.sampled_from(ORDER), st.integers(1, 3))


@given(meshes)
def test_every_rank_has_its_own_place(sizes: dict[str, int]) -> None:
    ranks = math.prod(sizes.values())
    on_ranks = [Mesh.of(sizes, rank) for rank in range(ranks)]
    places = {tuple(axis.rank for axis in mesh.axes.values()) for mesh in on_ranks}
    assert on_ranks[0].ranks == ranks == len(places)
    assert {name: axis.size for name, axis in on_ranks[0].axes.items()} == {k: n for k, n in sizes.items() if n > 1}


@given(meshes)
def test_the_ranks_of_a_line_differ_in_one_place(sizes: dict[str, int]) -> None:
    for rank in range(math.prod(sizes.values())):
        mesh = Mesh.of(sizes, rank)
        for name, axis in mesh.axes.items():
            line = mesh.line(name)
            assert line[axis.rank] == rank
            for index, other in enumerate(line):
                axes = Mesh.of(sizes, other).axes
                assert axes[name].rank == index
                assert all(axes[each] == mesh.axes[each] for each in mesh.axes if each != name)


def test_errors_of_meshes() -> None:
    with pytest.raises(ValueError, match="no axis named \\['depth'\\]; the axes of a mesh are data, context"):
        Mesh.of({"depth": 2})
    with pytest.raises(ValueError, match="rank 2 is not in a mesh of 2 ranks"):
        Mesh.of({"data": 2}, 2)
    with pytest.raises(ValueError, match=r"along axis 'tensor', which the mesh .* does not have"):
        Mesh.of({"data": 2}).line("tensor")


def test_a_mesh_does_not_depend_on_the_order_of_its_axes() -> None:
    assert Mesh.of({"context": 2, "data": 2}) == Mesh.of({"data": 2, "context": 2, "tensor": 1})


def test_context_ranks_may_follow_each_other() -> None:
    # Rank = ulysses * 3 + context; a sequence still goes through Ulysses ranks within context ranks.
    mesh = Mesh.of({"context": 3, "ulysses": 2}, rank=4, context_inside=True)
    assert (mesh.axes["ulysses"].rank, mesh.axes["context"].rank) == (1, 1)
    assert mesh.line("context") == (3, 4, 5)
    assert mesh.line("ulysses") == (1, 4)
    assert mesh.line("sequence") == (0, 3, 1, 4, 2, 5)


def test_the_line_of_a_sequence_goes_through_ulysses_ranks_within_context_ranks() -> None:
    # Rank = ((data * 2 + context) * 2 + ulysses) * 2 + tensor.
    assert Mesh.of(dict.fromkeys(ORDER, 2), rank=9).line("sequence") == (9, 11, 13, 15)
    assert Mesh.of({"context": 3, "tensor": 2}, rank=3).line("sequence") == (1, 3, 5)
