"""Random orders for many clients at once: permutations, keyed by their whole path, uniform, and unlike each other.

The draws are fixed by their seeds, so the chi-square tests always see the same numbers. Their limit is a probability
of 1 in 10,000; a mixing step left out misses it by hundreds of orders of magnitude.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedstart import keys

CLIENTS = np.arange(6000)
FIVE = np.full(6000, 5)
UNLIKELY = 1e-4


def orders(clients=CLIENTS, sizes=FIVE, *, seed=1, purpose="test", number=1, repeat=0):
    return keys.orders(seed, purpose, number, np.asarray(clients), np.asarray(sizes), repeat)


def assert_uniform(cells, count):
    """`cells` are numbers 0 .. count - 1 that should be equally frequent."""
    assert stats.chisquare(np.bincount(cells, minlength=count)).pvalue > UNLIKELY


def test_every_row_begins_with_a_permutation():
    sizes = np.random.default_rng(0).integers(1, 60, 500)
    found = orders(np.arange(500), sizes)
    assert found.shape == (500, sizes.max())
    for row, size in zip(found, sizes, strict=True):
        assert sorted(row[:size]) == list(range(size))


def test_a_clients_order_does_not_depend_on_the_others():
    clients, sizes = np.array([7, 3, 2**40, 0]), np.array([9, 40, 17, 1])
    together = orders(clients, sizes)
    for client, size, row in zip(clients, sizes, together, strict=True):
        np.testing.assert_array_equal(orders([client], [size])[0], row[:size])
    np.testing.assert_array_equal(orders(clients[::-1], sizes[::-1])[0, :1], together[3, :1])
    np.testing.assert_array_equal(orders(clients, [9, 2, 2, 50])[0, :9], together[0, :9])


@pytest.mark.parametrize("change", [{"seed": 2}, {"purpose": "other"}, {"number": 2}, {"repeat": 1}])
def test_every_step_of_the_path_gives_another_order(change):
    clients, sizes = np.arange(50), np.full(50, 20)
    assert not (orders(clients, sizes) == orders(clients, sizes, **change)).all(1).any()


def test_clients_have_different_orders():
    assert len(np.unique(orders(np.arange(2000), np.full(2000, 20)), axis=0)) == 2000


def test_no_path_is_another_ones_neighbour():
    """A sum of client and repeat alone would give client 1's first pass to client 0's second."""
    clients, sizes = np.arange(50), np.full(50, 20)
    passes = np.concatenate([orders(clients, sizes, repeat=repeat) for repeat in range(5)])
    assert len(np.unique(passes, axis=0)) == len(passes)


def test_all_orders_of_five_are_equally_likely():
    assert_uniform(np.unique(orders() @ 5 ** np.arange(5), return_inverse=True)[1], 120)


@pytest.mark.parametrize("size", [2, 7, 30])
def test_every_number_is_equally_likely_at_every_place(size):
    found = orders(CLIENTS, np.full(6000, size))
    for place in range(size):
        assert_uniform(found[:, place], size)


def test_adjacent_pairs_are_uniform():
    found = orders(CLIENTS, np.full(6000, 8))
    for place in range(7):
        left, right = found[:, place], found[:, place + 1]
        assert_uniform(left * 7 + right - (right > left), 56)


@pytest.mark.parametrize("change", [{"clients": CLIENTS + 1}, {"repeat": 1}, {"number": 2}, {"seed": 2}])
def test_orders_of_neighbouring_paths_are_independent(change):
    """Where each number stands in one order says nothing of where any number stands in the other."""
    first, second = orders().argsort(1), orders(**change).argsort(1)
    for number in range(5):
        for other in range(5):
            assert_uniform(first[:, number] * 5 + second[:, other], 25)


def test_every_client_alone_has_uniform_orders_over_rounds():
    found = np.stack([orders([3], [5], number=number)[0] for number in range(2000)])
    assert_uniform(np.unique(found @ 5 ** np.arange(5), return_inverse=True)[1], 120)


def test_large_clients_and_empty_ones():
    far = np.array([2**40, 2**40 - 1, 2**32, 2**31])
    with np.errstate(all="raise"):
        found = orders(far, [6, 0, 6, 3])
        assert found.shape == (4, 6)
        for k, size in ((0, 6), (2, 6), (3, 3)):
            assert sorted(found[k, :size]) == list(range(size))
        assert orders([1, 2], [0, 0]).shape == (2, 0)
        assert orders(np.zeros(0, int), np.zeros(0, int)).shape == (0, 0)
    for round_number in range(50):
        # Seeds of rounds fill 63 bits, so that some of these sums go around.
        assert sorted(orders(far, [5] * 4, number=round_number, repeat=2**20)[0]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint32, np.uint64])
def test_the_type_of_the_numbers_does_not_matter(kind):
    clients, sizes = np.array([5, 1]), np.array([3, 8])
    np.testing.assert_array_equal(orders(clients.astype(kind), sizes.astype(kind)), orders(clients, sizes))


def literal_order(client, size, seed, purpose, number, repeat):
    """The definition with Python's own whole numbers: recorded studies depend on it."""

    def mixed(value):
        value = value * 0x9E3779B97F4A7C15 % 2**64
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        return value ^ value >> 31

    path = mixed((mixed((client + keys.number(seed, purpose, number)) % 2**64) + repeat) % 2**64)
    return sorted(range(size), key=lambda place: mixed((path + place) % 2**64))


@pytest.mark.parametrize("path", [(0, "minibatches", 1, 0), (11, "query", 7, 3), (2**40, "other", 10**6, 500)])
def test_orders_are_what_they_are_defined_to_be(path):
    seed, purpose, number, repeat = path
    clients, sizes = np.array([0, 1, 77, 2**40]), np.array([6, 30, 1, 13])
    found = keys.orders(seed, purpose, number, clients, sizes, repeat)
    for client, size, row in zip(clients.tolist(), sizes.tolist(), found, strict=True):
        assert row[:size].tolist() == literal_order(client, size, *path)


def test_numbers_depend_on_the_whole_path():
    paths = [(1, "a"), (2, "a"), (1, "b"), (1, "a", 1), (1, "a", 1, 2), (1, "a", 12), (1, "a", 2, 1)]
    assert len({keys.number(*path) for path in paths}) == len(paths)
    assert all(0 <= keys.number(*path) < 2**63 for path in paths)
    same, again = (keys.generator(1, "a", 3).random(4) for _ in range(2))
    assert (same == again).all()
