"""Partitions: what must hold for every kind, and what each kind promises."""

from __future__ import annotations

import heapq
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstart import keys, names
from fedstart.data import partitions
from fedstart.data.federation import Examples, Federation, Positions
from fedstart.data.partitions import IID, TABLE, ByDomain, Dirichlet, Natural, Shards, heterogeneity

RNG = keys.generator


def some_labels(count: int, classes: int, seed: int = 0) -> np.ndarray:
    return RNG(seed, "labels").integers(classes, size=count)


def federation_of(labels: np.ndarray, owners: np.ndarray) -> Federation:
    classes = int(labels.max()) + 1
    examples = Examples(
        "test", torch.zeros(len(labels), 1), labels, tuple(str(label) for label in range(classes)), fingerprint="0"
    )
    part = Positions.from_owners(owners, np.arange(len(labels)), int(owners.max()) + 1)
    return Federation("test", examples, {"train": part}, tuple(range(classes)))


by_labels = st.one_of(
    st.builds(IID, minimum=st.integers(1, 12), stratified=st.booleans()),
    st.builds(Dirichlet, alpha=st.floats(1e-6, 1e6), minimum=st.integers(1, 12)),
    st.builds(Shards, shards_per_client=st.integers(1, 5), minimum=st.integers(1, 12)),
)


@given(partition=by_labels, clients=st.integers(1, 40), spare=st.integers(0, 300), classes=st.integers(1, 12))
@settings(deadline=None)
def test_everything_is_owned_once_and_nobody_is_below_the_minimum(partition, clients, spare, classes):
    labels = some_labels(clients * partition.minimum + spare, classes)
    owners = partition.owners(labels, clients, RNG(1, "partition"), {})
    assert owners.shape == labels.shape and owners.dtype == np.int64
    sizes = np.bincount(owners, minlength=clients)
    assert len(sizes) == clients and sizes.min() >= partition.minimum
    again = partition.owners(labels, clients, RNG(1, "partition"), {})
    assert np.array_equal(owners, again)


@pytest.mark.parametrize("partition", [IID(), IID(stratified=True), Dirichlet(), Shards()])
def test_another_key_gives_another_partition_and_labels_are_left_alone(partition):
    labels = some_labels(500, 5)
    before = labels.copy()
    first = partition.owners(labels, 10, RNG(1, "partition"), {})
    assert not np.array_equal(first, partition.owners(labels, 10, RNG(2, "partition"), {}))
    assert np.array_equal(labels, before)


@pytest.mark.parametrize("partition", [IID(), Dirichlet(), Shards()])
def test_too_few_examples_are_refused_with_the_number_that_would_do(partition):
    with pytest.raises(ValueError, match=r"99 examples are too few for 10 clients with 10 each.*at most 9 clients"):
        partition.owners(some_labels(99, 3), 10, RNG(0, "partition"), {})
    with pytest.raises(ValueError, match="number of clients must be given"):
        partition.owners(some_labels(99, 3), None, RNG(0, "partition"), {})


@given(clients=st.integers(1, 30), count=st.integers(30, 400), stratified=st.booleans())
def test_iid_sizes_differ_by_at_most_one(clients, count, stratified):
    labels = some_labels(count, 7)
    owners = IID(minimum=1, stratified=stratified).owners(labels, clients, RNG(0, "partition"), {})
    assert np.ptp(np.bincount(owners, minlength=clients)) <= 1
    if stratified:
        for label in range(7):
            assert np.ptp(np.bincount(owners[labels == label], minlength=clients)) <= 1


def test_dirichlet_shares_have_the_mean_and_variance_of_the_distribution():
    """One large class: a client's share has mean 1/n and variance (1/n)(1 - 1/n) / (n alpha + 1)."""
    clients, size, alpha = 8, 20_000, 0.5
    labels = np.zeros(size, dtype=np.int64)
    draws = [
        np.bincount(Dirichlet(alpha=alpha, minimum=1).owners(labels, clients, RNG(seed, "p"), {}), minlength=clients)
        for seed in range(400)
    ]
    shares = np.array(draws) / size
    expected = (1 / clients) * (1 - 1 / clients) / (clients * alpha + 1)
    assert np.allclose(shares.mean(axis=0), 1 / clients, atol=4 * np.sqrt(expected / 400))
    assert shares.var() == pytest.approx(expected, rel=0.1)


def test_dirichlet_counts_are_within_one_of_share_times_class_size():
    clients, labels = 20, some_labels(5000, 6)
    owners = Dirichlet(alpha=1.0, minimum=1).owners(labels, clients, RNG(3, "partition"), {})
    rng = RNG(3, "partition")
    rng.permutation(len(labels))
    for label in range(6):
        expected = rng.dirichlet(np.ones(clients)) * (labels == label).sum()
        counts = np.bincount(owners[labels == label], minlength=clients)
        assert np.abs(counts - expected).max() <= 1 + 1e-6


def test_smaller_alpha_is_more_heterogeneous_and_a_huge_one_is_almost_iid():
    labels = some_labels(10_000, 10)
    values = [
        heterogeneity(federation_of(labels, Dirichlet(alpha=alpha).owners(labels, 20, RNG(0, "partition"), {})))
        for alpha in (0.05, 0.5, 5.0, 1e6)
    ]
    assert values[0] > 0.6 and values == sorted(values, reverse=True) and values[-1] < 0.02


def test_shards_give_few_classes_to_each_client():
    labels = np.repeat(np.arange(10), 60)
    owners = Shards(shards_per_client=2).owners(labels, 30, RNG(0, "partition"), {})
    assert np.bincount(owners).tolist() == [20] * 30
    assert max(len(np.unique(labels[owners == client])) for client in range(30)) <= 2


def test_natural_is_one_client_per_value_in_sorted_order_and_drops_small_ones():
    writers = np.array(["c"] * 12 + ["a"] * 10 + ["b"] * 9)
    owners = Natural("writer").owners(np.zeros(31, dtype=np.int64), None, RNG(0, "partition"), {"writer": writers})
    assert owners.tolist() == [1] * 12 + [0] * 10 + [-1] * 9


def test_natural_draws_the_number_of_clients_asked_for():
    writers = np.repeat(np.arange(30), 10)
    columns, labels = {"writer": writers}, np.zeros(300, dtype=np.int64)
    owners = Natural("writer").owners(labels, 7, RNG(0, "partition"), columns)
    drawn = [np.unique(writers[owners == client]) for client in range(7)]
    assert all(len(values) == 1 for values in drawn) and (owners == -1).sum() == 230
    assert [int(values[0]) for values in drawn] == sorted(int(values[0]) for values in drawn)
    assert not np.array_equal(owners, Natural("writer").owners(labels, 7, RNG(1, "partition"), columns))
    with pytest.raises(ValueError, match=r"30 of the 30 values of column 'writer'.*clients asked for: 31"):
        Natural("writer").owners(labels, 31, RNG(0, "partition"), columns)


@given(sizes=st.lists(st.integers(20, 300), min_size=1, max_size=4), extra=st.integers(0, 8), data=st.data())
@settings(deadline=None)
def test_by_domain_keeps_domains_apart_and_makes_the_smallest_client_as_large_as_can_be(sizes, extra, data):
    domain = np.array(data.draw(st.permutations(np.repeat(np.arange(len(sizes)), sizes).tolist())))
    clients = len(sizes) + extra
    owners = ByDomain("domain", minimum=1).owners(np.zeros(len(domain)), clients, RNG(0, "p"), {"domain": domain})
    counts = np.bincount(owners, minlength=clients)
    assert len(counts) == clients
    assert all(len(np.unique(domain[owners == client])) == 1 for client in range(clients))
    seatings = (s for s in itertools.product(range(1, extra + 2), repeat=len(sizes)) if sum(s) == clients)
    best = max(min(size // seats for size, seats in zip(sizes, seating, strict=True)) for seating in seatings)
    assert counts.min() == best


def test_by_domain_without_a_number_makes_one_client_per_domain_and_refuses_what_cannot_be():
    columns = {"domain": np.array(["art"] * 15 + ["photo"] * 40)}
    labels = np.zeros(55, dtype=np.int64)
    assert ByDomain("domain").owners(labels, None, RNG(0, "p"), columns).tolist() == [0] * 15 + [1] * 40
    with pytest.raises(ValueError, match="1 clients for 2 values of column 'domain'"):
        ByDomain("domain").owners(labels, 1, RNG(0, "p"), columns)
    with pytest.raises(ValueError, match=r"domain '(art|photo)' has \d+ examples for \d clients, fewer than 10"):
        ByDomain("domain").owners(labels, 6, RNG(0, "p"), columns)


@pytest.mark.parametrize("partition", [Natural("writer_id"), ByDomain("writer_id")])
def test_a_column_that_is_not_there_is_named(partition):
    with pytest.raises(ValueError, match="no column 'writer_id'; name it in `columns`"):
        partition.owners(np.zeros(20), None, RNG(0, "p"), {})
    with pytest.raises(ValueError, match="'writer_id'; did you mean 'writer'"):
        partition.owners(np.zeros(20), None, RNG(0, "p"), {"writer": np.zeros(20)})


@given(sizes=st.lists(st.integers(0, 60), min_size=1, max_size=12), minimum=st.integers(1, 20))
def test_repair_gives_the_sizes_of_moving_one_example_at_a_time_from_the_largest(sizes, minimum):
    if sum(sizes) < len(sizes) * minimum:
        sizes = [size + minimum for size in sizes]
    owners = RNG(0, "shuffle").permutation(np.repeat(np.arange(len(sizes)), sizes))
    repaired = partitions._repaired(owners, len(sizes), minimum, RNG(0, "repair"))
    lacking = sum(max(minimum - size, 0) for size in sizes)
    assert (repaired != owners).sum() == lacking
    largest = [-size for size in sizes if size >= minimum]
    heapq.heapify(largest)
    for _ in range(lacking):
        heapq.heapreplace(largest, largest[0] + 1)
    slow = sorted([-size for size in largest] + [minimum] * (len(sizes) - len(largest)))
    assert sorted(np.bincount(repaired, minlength=len(sizes)).tolist()) == slow


def test_repair_moves_a_random_choice_of_examples():
    owners = np.concatenate([np.zeros(100, dtype=np.int64), [1]])
    moved = [
        tuple(np.flatnonzero(partitions._repaired(owners, 2, 10, RNG(seed, "repair")) != owners)) for seed in (0, 1)
    ]
    assert len(moved[0]) == 9 and moved[0] != moved[1]
    donors = np.repeat([0, 1], 100)
    repaired = partitions._repaired(donors, 4, 20, RNG(0, "repair"))
    assert all(set(donors[repaired == client]) == {0, 1} for client in (2, 3))


def test_a_hundred_thousand_clients_do_not_take_long():
    """Far below the time a rejection loop would need; benchmarks/partition.py measures it."""
    labels = some_labels(300_000, 10)
    owners = Dirichlet(alpha=0.01, minimum=3).owners(labels, 100_000, RNG(0, "partition"), {})
    assert (np.bincount(owners, minlength=100_000) == 3).all()


def test_heterogeneity_by_hand():
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    assert heterogeneity(federation_of(labels, np.array([0, 0, 0, 0, 1, 1, 1, 1]))) == pytest.approx(0.5)
    assert heterogeneity(federation_of(labels, np.array([0, 0, 1, 1, 0, 0, 1, 1]))) == 0
    # Pooled (1/2, 1/2); client 0 holds (1, 0) of 2, client 1 (1/3, 2/3) of 6: (2 * 1/2 + 6 * 1/6) / 8.
    assert heterogeneity(federation_of(labels, np.array([0, 0, 1, 1, 1, 1, 1, 1]))) == pytest.approx(0.25)


@given(owners=st.lists(st.integers(0, 5), min_size=1, max_size=60), data=st.data())
def test_heterogeneity_lies_between_zero_and_one_and_pooling_removes_it(owners, data):
    labels = data.draw(st.lists(st.integers(0, 4), min_size=len(owners), max_size=len(owners)))
    federation = federation_of(np.array(labels), np.array(owners))
    assert 0 <= heterogeneity(federation) < 1
    assert heterogeneity(federation.pooled()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "given_settings", "message"),
    [
        ("dirichlet", {"alpha": 0}, "alpha: Input should be greater than 0"),
        ("dirichlet", {"alhpa": 1}, "did you mean 'alpha'"),
        ("iid", {"minimum": 0}, "minimum: Input should be greater than or equal to 1"),
        ("natural", {}, "column: Field required"),
        ("shards", {"shards_per_client": 0}, "shards_per_client"),
    ],
)
def test_wrong_settings_are_refused(name, given_settings, message):
    with pytest.raises(ValueError, match=message):
        names.build(TABLE[name], given_settings, "partition")


def test_every_kind_describes_its_settings():
    for cls in TABLE.values():
        assert all(setting.description for setting in names.describe(cls))
        assert "minimum" in {setting.name for setting in names.describe(cls)}
