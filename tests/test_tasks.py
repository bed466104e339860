"""Federations and tasks: who holds which rows, that it is the same for everybody, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstart import keys
from fedstart.data.partitions import IID, ByDomain, Dirichlet, Natural, Shards, heterogeneity
from fedstart.data.synthetic import Synthetic, synthetic
from fedstart.data.tasks import federate, load_partition, only, save_partition, split_classes, tasks, withhold


@pytest.fixture(scope="module")
def examples():
    return synthetic(Synthetic(classes=8, examples=1600, size=2))


@pytest.fixture(scope="module")
def official(examples):
    """The same with an official split: every fifth row is a test row."""
    split = (np.arange(len(examples)) % 5 == 0).astype(np.int64)
    return replace(examples, columns={**examples.columns, "split": split})


def make(examples, **changed):
    given_settings = {"classes": range(8), "partition": Dirichlet(), "clients": 20, "seed": 0, "name": "test"}
    return federate(examples, **{**given_settings, **changed})


@given(
    fraction=st.floats(0.01, 0.99),
    clients=st.integers(1, 30),
    seed=st.integers(0, 5),
    partition=st.sampled_from([IID(), Dirichlet(alpha=0.1), Shards(), ByDomain("group", minimum=2)]),
)
@settings(deadline=None)
def test_parts_are_apart_and_cover_the_rows_of_the_classes(examples, fraction, clients, seed, partition):
    if isinstance(partition, ByDomain):
        clients += 10
    federation = make(
        examples, classes=(1, 4, 6), clients=clients, seed=seed, partition=partition, test_fraction=fraction
    )
    assert federation.clients == clients and federation.classes == (1, 4, 6)
    train, test = federation.parts["train"], federation.parts["test"]
    held = np.sort(np.concatenate([train.values, test.values]))
    assert np.array_equal(held, np.flatnonzero(np.isin(examples.labels, (1, 4, 6))))
    total = train.sizes + test.sizes
    assert np.array_equal(test.sizes, np.clip(np.floor(fraction * total + 0.5), 1, total - 1))
    assert all(np.all(np.diff(part[client]) > 0) for part in (train, test) for client in range(clients))


def test_the_test_part_is_a_random_choice_of_the_clients_examples(examples):
    federation = make(examples, clients=1, partition=IID(), test_fraction=0.25)
    assert np.abs(federation.label_counts("test") / 400 - 1 / 8).max() < 0.05
    others = make(examples, clients=1, partition=IID(), test_fraction=0.25, seed=1)
    assert not np.array_equal(federation.positions("test", 0), others.positions("test", 0))


def test_without_test_fraction_there_is_no_test_part_and_all_rows_train(examples):
    federation = make(examples, test_fraction=0.0)
    assert set(federation.parts) == {"train"}
    assert len(federation.parts["train"].values) == 1600


def test_the_same_seed_gives_the_same_federation_and_another_seed_another(examples):
    assert make(examples).fingerprint == make(examples).fingerprint
    assert make(examples).fingerprint != make(examples, seed=1).fingerprint


def test_withheld_rows_reach_no_client_and_can_be_had_back(examples):
    federation = make(examples, withheld=0.05, classes=range(6), test_fraction=0.0)
    rows = np.flatnonzero(examples.labels < 6)
    given_out, kept = withhold(rows, 0.05, 0)
    assert len(kept) == 60
    assert np.array_equal(np.sort(federation.parts["train"].values), given_out)
    assert np.array_equal(np.sort(np.concatenate([given_out, kept])), rows)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": (1, 8)}, r"no class 8 \(allowed: 0 to 7\)"),
        ({"classes": (1, 1)}, "one or more different labels"),
        ({"classes": ()}, "one or more different labels"),
        ({"test_fraction": 1.0}, "test_fraction must be at least 0 and below 1"),
        ({"withheld": 1.0}, "withheld must be at least 0 and below 1"),
        ({"clients": 161}, "1600 examples are too few for 161 clients"),
        ({"clients": 1600, "partition": IID(minimum=1)}, "client 0 has 1 examples; a train and a test part need 2"),
        ({"merge": False}, "synthetic has no official splits"),
        ({"partition": Natural("writer")}, "unknown natural column 'writer'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(examples, changed, message):
    with pytest.raises(ValueError, match=message) as caught:
        make(examples, **changed)
    assert "\n" not in str(caught.value)


def test_natural_leaves_the_number_of_clients_to_the_column(examples):
    federation = make(examples, partition=Natural("group"), clients=None)
    assert federation.clients == 10
    groups = examples.columns["group"]
    assert [set(groups[federation.positions("test", client)]) for client in range(10)] == [{g} for g in range(10)]


def test_official_test_rows_follow_the_train_labels(official):
    federation = make(official, merge=False, partition=Dirichlet(alpha=0.3), clients=10)
    split = official.columns["split"]
    assert np.array_equal(np.sort(federation.parts["train"].values), np.flatnonzero(split == 0))
    assert np.array_equal(np.sort(federation.parts["test"].values), np.flatnonzero(split == 1))
    train, test = federation.label_counts("train"), federation.label_counts("test")
    quota = train * (test.sum(axis=0) / train.sum(axis=0))
    assert np.abs(test - quota).max() < 1 + 1e-9
    assert (test[train == 0] == 0).all()
    assert heterogeneity(federation, "test") > 0.3


@pytest.mark.parametrize("seed", range(3))
def test_small_clients_of_many_classes_keep_their_share_of_official_test_rows(official, seed):
    """What rounding takes in one class it gives back in the next: totals are within one of the exact share."""
    federation = make(official, merge=False, partition=IID(), clients=120, seed=seed)
    train, test = federation.label_counts("train"), federation.label_counts("test")
    quota = train * (test.sum(axis=0) / train.sum(axis=0))
    assert np.abs(test.sum(axis=1) - quota.sum(axis=1)).max() < 1
    assert federation.parts["test"].sizes.min() >= 1


def test_a_client_without_official_test_rows_is_an_error(official):
    with pytest.raises(ValueError, match=r"is left without official test examples \(\d+ of 640 clients\)"):
        make(official, merge=False, partition=IID(minimum=1), clients=640)


@pytest.mark.parametrize(("partition", "clients"), [(Natural("group"), None), (ByDomain("group"), 25)])
def test_official_test_rows_follow_the_column(official, partition, clients):
    federation = make(official, merge=False, partition=partition, clients=clients)
    groups = official.columns["group"]
    for client in range(federation.clients):
        held = {int(g) for part in ("train", "test") for g in groups[federation.positions(part, client)]}
        assert len(held) == 1
    assert len(federation.parts["test"].values) == 320


def test_tasks_depend_on_their_number_only_and_differ(examples):
    arguments = {"classes": (7, 5, 3, 2, 1), "classes_per_task": 3, "clients": 5, "seed": 4}
    short = tasks(examples, count=2, partition=IID(), **arguments)
    long = tasks(examples, count=8, partition=IID(), **arguments)
    assert [task.fingerprint for task in short] == [task.fingerprint for task in long[:2]]
    assert len({task.fingerprint for task in long}) == 8
    assert all(task.classes == tuple(sorted(set(task.classes))) and len(task.classes) == 3 for task in long)
    assert {label for task in long for label in task.classes} <= {1, 2, 3, 5, 7}
    assert len({task.classes for task in long}) > 1
    assert [task.name for task in short] == ["synthetic task 0", "synthetic task 1"]


def test_tasks_have_the_same_classes_under_every_partition_and_order_of_classes(examples):
    arguments = {"count": 5, "classes_per_task": 3, "clients": 5, "seed": 4}
    first = tasks(examples, classes=(1, 2, 3, 5, 7), partition=IID(), **arguments)
    second = tasks(examples, classes=(7, 5, 3, 2, 1), partition=Dirichlet(), **arguments)
    assert [task.classes for task in first] == [task.classes for task in second]
    with pytest.raises(ValueError, match=r"6 classes per task asked for \(allowed: 1 to 5\)"):
        tasks(examples, classes=range(5), partition=IID(), **{**arguments, "classes_per_task": 6})


def test_classes_are_split_into_two_sides(examples):
    assert split_classes(examples, 3) == ((0, 1, 2, 3, 4), (5, 6, 7))
    assert split_classes(examples, [6, 0]) == ((1, 2, 3, 4, 5, 7), (0, 6))
    for held_out in (0, 8, 9, -1):
        with pytest.raises(ValueError, match=r"cannot hold out -?\d of 8 classes \(allowed: 1 to 7\)"):
            split_classes(examples, held_out)
    with pytest.raises(ValueError, match="no class 8"):
        split_classes(examples, [8])
    with pytest.raises(ValueError, match="none is left for pre-training"):
        split_classes(examples, range(8))


def test_only_keeps_the_rows_of_some_values(examples):
    some = only(examples, "group", [3, 1])
    rows = np.flatnonzero(np.isin(examples.columns["group"], [1, 3]))
    assert np.array_equal(some.labels, examples.labels[rows])
    assert np.array_equal(some.inputs.numpy(), examples.inputs.numpy()[rows])
    assert set(some.columns["group"]) == {1, 3} and some.fingerprint != examples.fingerprint
    with pytest.raises(ValueError, match="unknown value of column 'group' '10'"):
        only(examples, "group", [10])
    with pytest.raises(ValueError, match="unknown column 'groop'; did you mean 'group'"):
        only(examples, "groop", [1])


def test_a_partition_comes_back_from_its_file(examples, tmp_path):
    federation = make(examples, classes=(2, 5), clients=7)
    save_partition(federation, tmp_path / "partition.parquet")
    again = load_partition(examples, tmp_path / "partition.parquet")
    assert again.fingerprint == federation.fingerprint and again.classes == (2, 5) and again.name == "test"
    assert [file.name for file in tmp_path.iterdir()] == ["partition.parquet"]
    first = (tmp_path / "partition.parquet").read_bytes()
    save_partition(federation, tmp_path / "partition.parquet")
    assert (tmp_path / "partition.parquet").read_bytes() == first


def test_a_partition_file_is_refused_for_other_examples_and_when_damaged(examples, tmp_path):
    file = tmp_path / "partition.parquet"
    save_partition(make(examples), file)
    with pytest.raises(ValueError, match="made from other examples than synthetic, or altered"):
        load_partition(synthetic(Synthetic(classes=8, examples=1600, size=2, seed=1)), file)
    with pytest.raises(ValueError, match=r"made from other examples than synthetic \(100 rows\)"):
        load_partition(synthetic(Synthetic(examples=100)), file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a readable partition"):
        load_partition(examples, file)
    with pytest.raises(ValueError, match="not a readable partition"):
        load_partition(examples, tmp_path / "nowhere.parquet")


@given(
    counts=st.lists(st.lists(st.integers(0, 30), min_size=3, max_size=3), min_size=2, max_size=6),
    tested=st.lists(st.integers(0, 40), min_size=3, max_size=3),
)
@settings(deadline=None)
def test_followers_hand_out_every_row_that_somebody_trains_on(counts, tested):
    from fedstart.data.tasks import _followers

    table = np.array(counts)
    clients = len(table)
    owners = np.repeat(np.repeat(np.arange(clients), 3), table.ravel())
    labels = np.repeat(np.tile(np.arange(3), clients), table.ravel())
    test_labels = np.repeat(np.arange(3), tested)
    given_out = _followers(labels, owners, test_labels, clients, keys.generator(0, "test"))
    for label in range(3):
        here = np.bincount(given_out[test_labels == label] + 1, minlength=clients + 1)
        if table[:, label].sum() == 0:
            assert here[0] == tested[label]
            continue
        assert here[0] == 0
        quota = table[:, label] * tested[label] / table[:, label].sum()
        assert np.abs(here[1:] - quota).max() < 1 + 1e-6
