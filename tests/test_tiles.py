"""Tiles: every pair once, whatever there is room for, and never more held than that."""

import weakref

import pytest
import torch
from torch import nn

import jacana
from jacana.linearization.tiles import Room, tiles

ROOMS = [Room(1, 1, 8), Room(2, 3, 8), Room(2, 7, 8), Room(3, 11, 4), Room(3, 40, 1), Room(4, 40, 7), Room(50, 50, 50)]


def visited(room, n, m=None):
    """How often each pair was visited, and the sizes of what passed together."""
    lin = jacana.linearize(nn.Linear(2, 3))
    x1 = lin.examples(torch.randn(n, 2), "x")
    x2 = None if m is None else lin.examples(torch.randn(m, 2), "x")
    count, sizes = torch.zeros(n, n if m is None else m), []

    def visit(one, other):
        (i, first), (j, second) = one, other
        count[i : i + first.n, j : j + second.n] += 1
        sizes.append((first.n, second.n))

    tiles(lambda some: lin.features(some, torch.float64), visit, x1, x2, room, progress=False)
    return count, sizes


@pytest.mark.parametrize("room", ROOMS, ids=str)
@pytest.mark.parametrize(("n", "m"), [(5, 13), (13, 5), (7, 7), (1, 9)])
def test_each_pair_is_visited_once(room, n, m):
    count, sizes = visited(room, n, m)
    assert torch.equal(count, torch.ones(n, m))
    for size in sizes:
        held, passing = size if n <= m else reversed(size)
        assert held <= room.slab
        assert passing <= max(room.block, room.slab - held)


@pytest.mark.parametrize("room", ROOMS, ids=str)
def test_of_one_set_with_itself_the_lower_half_is_visited_once(room):
    count, _ = visited(room, 13)
    assert torch.equal(count.tril(), torch.ones(13, 13).tril())
    assert count.max() == 1


@pytest.mark.parametrize(
    ("room", "wanted"),
    [
        (Room(2, 9, 100), [4, 4, 4, 1]),  # five are held, and four more fit
        (Room(2, 6, 100), [2] * 6 + [1]),  # one more fits, less than goes through the network at once
        (Room(2, 100, 6), [6, 6, 1]),
        (Room(2, 100, 100), [13]),
        (Room(20, 5, 100), [13]),
    ],
    ids=str,
)
def test_as_many_pass_together_as_fit_beside_those_held(room, wanted):
    assert [passing for _, passing in visited(room, 5, 13)[1]] == wanted


def test_what_has_passed_is_not_held():
    lin = jacana.linearize(nn.Linear(2, 3))
    x1, x2 = (lin.examples(torch.randn(n, 2), "x") for n in (3, 12))
    alive, most = [], []

    def features(some):
        found = lin.features(some, torch.float64)
        alive.append(weakref.ref(found))
        most.append(sum(ref() is not None for ref in alive))
        return found

    tiles(features, lambda one, other: None, x1, x2, Room(3, 3, 100), progress=False)
    assert max(most) == 2, "the slab, and a block that passes it"
