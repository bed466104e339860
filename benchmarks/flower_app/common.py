"""What server and nodes of the benchmark agree on; importing it makes `echo` one of fedstart's methods."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from flwr.serverapp import Grid

import fedstart.algorithms
from fedstart.data.federation import Examples, Federation, Positions
from fedstart.engines.flower import FlowerEngine, Nodes, Patience
from fedstart.models import Model, load_architecture
from fedstart.training import train
from fedstart.types import Plan

fedstart.algorithms.__path__.append(str(Path(__file__).parent / "methods"))

FEATURES, CLASSES = 64, 10


def model(hidden: int) -> Model:
    """Two hidden layers of `hidden` units: 1,000 of them make 1.1 million parameters."""
    return Model(load_architecture("mlp", {"hidden": [hidden, hidden]}), (FEATURES,), CLASSES)


def federation(clients: int) -> Federation:
    """Client k has k + 1 examples."""
    owners = np.repeat(np.arange(clients), np.arange(clients) + 1)
    examples = Examples(
        "echo", torch.zeros(len(owners), FEATURES), owners.astype(np.int64) % CLASSES, tuple("0123456789"), "echo"
    )
    parts = {"train": Positions.from_owners(owners, np.arange(len(owners)), clients)}
    return Federation("echo", examples, parts, tuple(range(CLASSES)))


def rounds(grid: Grid, clients: int, number: int, hidden: int) -> list[float]:
    """Runs `number` rounds; the seconds of each. The nodes have introduced themselves before the first begins."""
    from fedstart.algorithms.echo import Echo  # pyright: ignore[reportMissingImports]

    patience = Patience(nodes=clients, join_seconds=120, reply_seconds=300)
    nodes, network = Nodes("echo", grid, patience), model(hidden)
    assert len(nodes.eligible) == clients
    seconds, started = [], time.perf_counter()
    plan = Plan(rounds=number, local_steps=1)
    for finished in train(Echo(), network, nodes, plan, network.init(0), FlowerEngine(grid, patience)):
        assert not finished.missing, finished.missing
        seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
    return seconds
