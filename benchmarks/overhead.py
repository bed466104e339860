"""One FedAvg round in fedstart against the usual hand-written PyTorch loop that takes the same steps.

    python benchmarks/overhead.py [--repeats 7]

Prints seconds (median) and the ratio fedstart / loop for: a two-convolution CIFAR CNN (50 clients x 50 images,
batch 10) on two threads against torch's own two, and on one against one; ResNet-18 with GroupNorm (4 clients x
64 images, batch 32). The loop is a lean one: images normalised beforehand, no DataLoader, one torch.optim.SGD
per client, weights averaged as they come. Its CNN is written as usual (convolution, ReLU, pooling) and computes
the same function, which is checked. Repeats alternate between the two, so a busy machine hits both.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedstart import keys
from fedstart.algorithms.fedavg import FedAvg
from fedstart.data.federation import Examples, Federation, Positions
from fedstart.engines.local import LocalEngine
from fedstart.models import Model, load_architecture
from fedstart.training import train
from fedstart.types import Plan, Weights


def make_federation(clients: int, images: int) -> Federation:
    """Random 32 x 32 colour images; the content does not matter for time."""
    draws = keys.generator(0, "benchmark")
    count = clients * images
    inputs = torch.from_numpy(draws.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8))
    labels = draws.integers(0, 10, count)
    names = tuple("0123456789")
    examples = Examples("random", inputs, labels, names, "random", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    owners = np.repeat(np.arange(clients), images)
    return Federation(
        "random", examples, {"train": Positions.from_owners(owners, np.arange(count), clients)}, tuple(range(10))
    )


def hand_written_cnn() -> torch.nn.Module:
    """The network of `cnn3x3` as most people write it."""
    layers = OrderedDict(
        conv1=nn.Conv2d(3, 32, 3, padding=1),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(32, 64, 3, padding=1),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        hidden=nn.Linear(4096, 128),
        relu3=nn.ReLU(),
        fc=nn.Linear(128, 10),
    )
    return nn.Sequential(layers)


def hand_written_round(
    module: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor, clients: int, plan: Plan
) -> Weights:
    """What most federated scripts do, with everything ready in memory."""
    images = len(labels) // clients
    total: Weights = {}
    for client in range(clients):
        local = copy.deepcopy(module)
        local.train()
        optimizer = torch.optim.SGD(local.parameters(), lr=plan.lr)
        order = client * images + torch.randperm(images)
        for batch in order.split(plan.batch_size):
            optimizer.zero_grad()
            cross_entropy(local(inputs[batch]), labels[batch]).backward()
            optimizer.step()
        for name, tensor in local.state_dict().items():
            total[name] = total[name] + tensor / clients if name in total else tensor / clients
    return total


def compare(name: str, architecture: str, clients: int, images: int, batch: int, threads: int, repeats: int) -> None:
    """Prints one line: both medians and the ratio."""
    federation = make_federation(clients, images)
    model = Model(load_architecture(architecture, {}), federation.examples.shape, 10)
    weights = model.init(0)
    plan = Plan(rounds=1, local_epochs=1, batch_size=batch, lr=0.01)
    module = hand_written_cnn() if architecture == "cnn3x3" else model.module()
    module.load_state_dict(weights)
    inputs, labels = federation.batch(np.arange(clients * images))
    inputs = inputs.contiguous()
    torch.testing.assert_close(module(inputs[:8]), model.apply(weights, inputs[:8]))
    torch.set_num_threads(threads)
    with LocalEngine(threads) as engine:
        runs: dict[str, Callable[[], object]] = {
            "loop": lambda: hand_written_round(module, inputs, labels, clients, plan),
            "fedstart": lambda: list(train(FedAvg(), model, federation, plan, weights, engine)),
        }
        seconds: dict[str, list[float]] = {key: [] for key in runs}
        for repeat in range(repeats + 1):
            for key, run in runs.items():
                start = time.perf_counter()
                run()
                if repeat:
                    seconds[key].append(time.perf_counter() - start)
    loop, ours = (statistics.median(seconds[key]) for key in ("loop", "fedstart"))
    print(
        f"{name:36} threads {threads}  loop {loop:7.3f} s  fedstart {ours:7.3f} s  ratio {ours / loop:.3f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    for threads in (2, 1):
        compare("CNN, 50 clients x 50, batch 10", "cnn3x3", 50, 50, 10, threads, repeats)
    for threads in (2, 1):
        compare("ResNet-18, 4 clients x 64, batch 32", "resnet18", 4, 64, 32, threads, max(3, repeats // 2))


if __name__ == "__main__":
    main()
