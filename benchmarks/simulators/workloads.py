"""What is trained: four workloads, made once as `.npy` files that every simulator reads.

All train one epoch per client and round, so (d), with 200 images in batches of 10, takes tau = 20 steps.
"""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import networks
import numpy as np

MEAN, STD = 0.5, 0.25
"""Images are given to the network as `(pixel / 255 - MEAN) / STD`."""
TEST = 1000
"""Examples behind those of the clients, for `--evaluate`."""
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@dataclass(frozen=True)
class Workload:
    """One kind of round: `cohort` of `clients` clients with `examples` examples each, one epoch of SGD.

    `network` is fedstart's name of the architecture, `settings` fedstart's settings for it. (b) has the clients of
    FEMNIST where that is at hand. `rounds` are measured in each run, after one that is not.
    """

    name: str
    title: str
    network: str
    settings: dict[str, object]
    shape: tuple[int, ...]
    classes: int
    clients: int
    examples: int
    cohort: int
    batch_size: int
    rounds: int
    lr: float = 0.01


WORKLOADS = {
    "a": Workload(
        name="a",
        title="CIFAR-10 CNN of pfl-research's benchmark, 1,000 clients x 50 images, 50 a round, batch 10",
        network="simple_cnn",
        settings={},
        shape=(3, 32, 32),
        classes=10,
        clients=1000,
        examples=50,
        cohort=50,
        batch_size=10,
        rounds=5,
    ),
    "b": Workload(
        name="b",
        title="FEMNIST CNN (LEAF) by writer, 20 clients a round, batch 20",
        network="cnn",
        settings={},
        shape=(1, 28, 28),
        classes=62,
        clients=200,
        examples=140,
        cohort=20,
        batch_size=20,
        rounds=3,
    ),
    "c": Workload(
        name="c",
        title="MLP 60-64-10, 10,000 clients x 20 examples, 500 a round, batch 10",
        network="mlp",
        settings={"hidden": [64]},
        shape=(60,),
        classes=10,
        clients=10000,
        examples=20,
        cohort=500,
        batch_size=10,
        rounds=5,
    ),
    "d": Workload(
        name="d",
        title="ResNet-18 with GroupNorm, 20 clients, 20 steps each, batch 10",
        network="resnet18",
        settings={},
        shape=(3, 32, 32),
        classes=10,
        clients=20,
        examples=200,
        cohort=20,
        batch_size=10,
        rounds=1,
    ),
}


@dataclass(frozen=True)
class Data:
    """The arrays of a workload.

    Client k has the examples `offsets[k]` to `offsets[k + 1]`; the last TEST examples are for the central evaluation.
    `cohorts[r]` lists the clients of round r. `initial` holds the initial weights by name.
    """

    folder: Path

    def read(self, name: str) -> np.ndarray:
        """A whole array: `inputs` (float32, normalised) or `pixels` (uint8, images only), of shape (n + TEST, *shape);
        `labels`, of shape (n + TEST,)."""
        return np.load(self.folder / f"{name}.npy")

    @cached_property
    def offsets(self) -> np.ndarray:
        return self.read("offsets")

    @cached_property
    def cohorts(self) -> np.ndarray:
        return self.read("cohorts")

    @cached_property
    def initial(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / "initial.npz") as file:
            return dict(file)

    @property
    def clients(self) -> int:
        return len(self.offsets) - 1

    def sizes(self, clients: np.ndarray) -> np.ndarray:
        """Examples of each of the clients."""
        return np.diff(self.offsets)[clients]

    def by_client(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The inputs and labels of every client: parts of one copy in memory."""
        inputs, labels = self.read("inputs"), self.read("labels")
        return [(inputs[a:b], labels[a:b]) for a, b in itertools.pairwise(self.offsets)]

    def client(self, client: int) -> tuple[np.ndarray, np.ndarray]:
        """The inputs and labels of one client, read from the disk alone."""
        return self._rows(slice(self.offsets[client], self.offsets[client + 1]))

    def test(self) -> tuple[np.ndarray, np.ndarray]:
        """The inputs and labels of the central evaluation."""
        return self._rows(slice(-TEST, None))

    def _rows(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        inputs = np.load(self.folder / "inputs.npy", mmap_mode="r")
        labels = np.load(self.folder / "labels.npy", mmap_mode="r")
        return np.array(inputs[rows]), np.array(labels[rows])


def load(workload: Workload, folder: Path) -> Data:
    """What `prepare` wrote for the workload."""
    return Data(folder / workload.name)


def prepare(workload: Workload, folder: Path, rounds: int) -> Data:
    """Writes the arrays of a workload, with cohorts for `rounds` rounds, to a folder of its own in `folder`."""
    target = folder / workload.name
    target.mkdir(parents=True)
    draws = np.random.default_rng(0)
    real = sorted((SHARED / "femnist").glob("train*.parquet")) if workload.name == "b" else []
    if real:
        raw, labels, sizes = _femnist(real)
    else:
        raw, labels, sizes = _random(workload, draws)
    test = draws.integers(0, len(labels), TEST)
    raw, labels = np.concatenate([raw, raw[test]]), np.concatenate([labels, labels[test]])
    if raw.dtype == np.uint8:
        np.save(target / "pixels.npy", raw)
        inputs = np.lib.format.open_memmap(target / "inputs.npy", mode="w+", dtype=np.float32, shape=raw.shape)
        for begin in range(0, len(raw), 5000):
            inputs[begin : begin + 5000] = (raw[begin : begin + 5000].astype(np.float32) / 255 - MEAN) / STD
        inputs.flush()
    else:
        np.save(target / "inputs.npy", raw.astype(np.float32))
    np.save(target / "labels.npy", labels.astype(np.int64))
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    np.save(target / "offsets.npy", offsets)
    np.save(target / "cohorts.npy", _cohorts(workload, len(sizes), rounds))
    state = networks.build(workload.network, workload.shape, workload.classes).state_dict()
    np.savez(target / "initial.npz", **{name: tensor.numpy() for name, tensor in state.items()})
    (target / "workload.json").write_text(json.dumps({**asdict(workload), "real": bool(real)}))
    return Data(target)


def _random(workload: Workload, draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random content, which does not matter for time; the sizes of (b) then vary as those of writers do."""
    sizes = np.full(workload.clients, workload.examples)
    if workload.name == "b":
        sizes = np.clip(draws.lognormal(np.log(workload.examples), 0.3, workload.clients), 20, 400).astype(int)
    count = int(sizes.sum())
    labels = draws.integers(0, workload.classes, count)
    if len(workload.shape) == 3:
        return draws.integers(0, 256, (count, *workload.shape), dtype=np.uint8), labels, sizes
    return draws.standard_normal((count, *workload.shape), dtype=np.float32), labels, sizes


def _femnist(files: list[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All training images, labels and sizes, writer after writer, each writer's in random order.

    In the order of the file, simulators that do not shuffle would see a writer's classes one after the other.
    """
    import pyarrow.parquet as parquet
    from PIL import Image

    images, labels, writers = [], [], []
    for file in files:
        table = parquet.read_table(file, columns=["image", "label", "writer_id"])
        for row in table.column("image").to_pylist():
            images.append(np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("L"))[None])
        labels += table.column("label").to_pylist()
        writers += table.column("writer_id").to_pylist()
    _, owners = np.unique(np.array(writers), return_inverse=True)
    order = np.lexsort((np.random.default_rng(0).random(len(owners)), owners))
    return np.stack(images)[order], np.array(labels)[order], np.bincount(owners)


def _cohorts(workload: Workload, clients: int, rounds: int) -> np.ndarray:
    """The cohorts that fedstart draws, so that the others can be given the same; shape (rounds, cohort)."""
    from fedstart import keys

    drawn = np.tile(np.arange(clients), (rounds, 1))
    if workload.cohort < clients:
        for number in range(1, rounds + 1):
            generator = keys.generator(0, "cohort", number)
            drawn[number - 1, : workload.cohort] = np.sort(generator.choice(clients, workload.cohort, replace=False))
    return drawn[:, : workload.cohort]
