"""The whole data layer on the real data sets of ../shared/data."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fedstart.data.partitions import IID, ByDomain, Dirichlet, Natural, heterogeneity
from fedstart.data.sources import load
from fedstart.data.tasks import federate, only, split_classes, tasks

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

pytestmark = [pytest.mark.data, pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is missing")]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache, so that every set is decoded once."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(
    ("name", "columns", "shape", "classes", "tests"),
    [
        ("femnist", ("writer_id",), (31_276, 1, 28, 28), 62, 3_215),
        ("tiny_imagenet_subset", (), (8_000, 3, 64, 64), 200, 2_000),
        ("pacs64", ("domain",), (9_991, 3, 64, 64), 7, 0),
    ],
)
def test_real_sources(cache, name, columns, shape, classes, tests):
    examples = load(f"path:{DATA / name}", columns=columns, cache=cache)
    assert tuple(examples.inputs.shape) == shape and len(examples.class_names) == classes
    assert int(examples.columns["split"].sum() if tests else 0) == tests and ("split" in examples.columns) == bool(
        tests
    )
    assert len(np.unique(examples.labels)) == classes
    table = pq.read_table(sorted((DATA / name).glob("[at][lr]*.parquet"))[0])
    for row in (0, 777, 5_000):
        image = Image.open(io.BytesIO(table["image"][row].as_py()["bytes"])).convert("RGB" if shape[1] == 3 else "L")
        assert np.array_equal(
            examples.inputs[row].numpy(), np.asarray(image).reshape(*shape[2:], -1).transpose(2, 0, 1)
        )


def test_real_cifar_statistics_are_the_known_ones(cache):
    examples = load(f"path:{DATA / 'cifar100'}", label="fine_label", cache=cache)
    assert np.allclose(examples.mean, (0.5071, 0.4865, 0.4409), atol=1e-4)
    assert np.allclose(examples.std, (0.2673, 0.2564, 0.2762), atol=1e-4)
    assert np.bincount(examples.labels).tolist() == [600] * 100 and examples.columns["split"].sum() == 10_000
    with pytest.raises(ValueError, match=r"several label columns \(fine_label, coarse_label\)"):
        load(f"path:{DATA / 'cifar100'}", cache=cache)


def test_cifar100_as_coprefl_uses_it(cache):
    """Merged: 60,000 rows; 80 classes, 5 % withheld, 100 IID clients of 456; 20 classes in tasks of 5, 10 clients."""
    examples = load(f"path:{DATA / 'cifar100'}", label="fine_label", cache=cache)
    assert len(examples) == 60_000
    pretraining, held_out = split_classes(examples, 20)
    federation = federate(
        examples,
        classes=pretraining,
        partition=IID(),
        clients=100,
        seed=0,
        name="pre-training",
        test_fraction=0,
        withheld=0.05,
    )
    assert federation.parts["train"].sizes.tolist() == [456] * 100
    ten = tasks(
        examples, classes=held_out, count=10, classes_per_task=5, clients=10, partition=Dirichlet(alpha=0.5), seed=0
    )
    for task in ten:
        assert task.label_counts("train").sum() + task.label_counts("test").sum() == 3000
        assert min(task.classes) >= 80
        assert 0.2 < heterogeneity(task) < 0.7
    decoded = list(cache.iterdir())
    coarse = load(f"path:{DATA / 'cifar100'}", label="coarse_label", cache=cache)
    assert len(coarse.class_names) == 20 and list(cache.iterdir()) == decoded
    assert np.array_equal(coarse.inputs[12_345].numpy(), examples.inputs[12_345].numpy())
    assert all(len(np.unique(coarse.labels[examples.labels == fine])) == 1 for fine in range(100))


def test_femnist_by_writer_with_the_official_split(cache):
    examples = load(f"path:{DATA / 'femnist'}", columns=("writer_id",), cache=cache)
    arguments = {"classes": range(62), "clients": None, "seed": 0, "name": "writers", "merge": False}
    federation = federate(examples, partition=Natural("writer_id", minimum=1), **arguments)
    assert federation.clients == 201
    assert len(federation.parts["train"].values) == 28_061 and len(federation.parts["test"].values) == 3_215
    larger = federate(examples, partition=Natural("writer_id", minimum=10), **arguments)
    assert larger.clients == 196 and larger.parts["train"].sizes.min() >= 10
    writers = examples.columns["writer_id"]
    for client in range(201):
        held = np.concatenate([federation.positions(part, client) for part in ("train", "test")])
        assert len(np.unique(writers[held])) == 1


def test_pacs_by_domain_and_with_a_domain_left_out(cache):
    examples = load(f"path:{DATA / 'pacs64'}", columns=("domain",), cache=cache)
    federation = federate(examples, classes=range(7), partition=ByDomain("domain"), clients=20, seed=0, name="domains")
    domains = examples.columns["domain"]
    held = [set(domains[federation.positions("train", client)]) for client in range(20)]
    assert all(len(values) == 1 for values in held)
    assert {value for values in held for value in values} == {"art_painting", "cartoon", "photo", "sketch"}
    rest = only(examples, "domain", ["art_painting", "cartoon", "photo"])
    assert len(rest) + len(only(examples, "domain", ["sketch"])) == 9_991
