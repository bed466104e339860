"""What a round of each method costs beside FedAvg's: time, largest memory, exchanges, passes forward and backward.

    python benchmarks/rounds.py [--model resnet18] [--clients 20] [--examples 456] [--rounds 1] [--methods ...]

Twenty clients, five local epochs, batches of 32, images of 32 x 32 made at random (what is on them takes no
time). Each method runs in a process of its own, so that its memory is its own; ratios are to fedavg, which always runs.
Prints the table of docs/cost.md, and by torch's counter how many operations a gradient and a Hessian product take.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from fedstart import names
from fedstart.data.federation import Examples, Federation, Positions
from fedstart.engines.execution import Execution
from fedstart.engines.local import LocalEngine
from fedstart.models import Model, load_architecture
from fedstart.training import train
from fedstart.types import Cost, Plan

CLASSES, SERVER = 80, 2400
METHODS = {
    "fedavg": ("fedavg", {}),
    "coprefl": ("coprefl", {}),
    "coprefl, scenario II": ("coprefl", {"scenario": "II"}),
    "coprefl, second order": ("coprefl", {"order": 2}),
    "fedmeta": ("fedmeta", {}),
    "fedmeta, second order": ("fedmeta", {"order": 2}),
    "qffl": ("qffl", {}),
    "scaffold": ("scaffold", {}),
    "feddyn": ("feddyn", {}),
    "sam": ("sam", {}),
    "perfedavg": ("perfedavg", {}),
    "perfedavg, HF": ("perfedavg", {"variant": "HF"}),
    "fedadam": ("fedadam", {}),
}
SETTINGS = {"resnet18": {"norm": "group", "stem": "cifar"}}


def federation(clients: int, examples: int) -> Federation:
    """Clients of so many random images each, and a server with as many as the paper's."""
    rng = np.random.default_rng(0)
    count = clients * examples + SERVER
    images = torch.from_numpy(rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8))
    images = images.contiguous(memory_format=torch.channels_last)
    classes = tuple(str(number) for number in range(CLASSES))
    labels = rng.integers(0, CLASSES, count)
    data = Examples("random", images, labels, classes, "random", (0.5,) * 3, (0.25,) * 3)
    parts = {"train": Positions(np.arange(clients + 1) * examples, np.arange(clients * examples))}
    return Federation("random", data, parts, tuple(range(CLASSES)), np.arange(clients * examples, count))


def network(options: argparse.Namespace) -> Model:
    """The model that was asked for."""
    return Model(load_architecture(options.model, SETTINGS.get(options.model, {})), (3, 32, 32), CLASSES)


def measure(name: str, options: argparse.Namespace) -> None:
    """Runs one method in this process and prints what it took as JSON."""
    method, settings = METHODS[name]
    algorithm = names.build(names.discover("fedstart.algorithms")[method], settings, method)
    model = network(options)
    plan = Plan(rounds=options.rounds, local_epochs=5, batch_size=32, lr=0.001)
    data, seconds, cost = federation(options.clients, options.examples), [], Cost()
    weights = model.init(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with LocalEngine(execution=Execution(precision=options.precision)) as engine:
        begin = time.perf_counter()
        for finished in train(algorithm, model, data, plan, weights, engine):
            seconds.append(time.perf_counter() - begin)
            cost, begin = finished.cost, time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model_bytes = sum(tensor.nbytes for tensor in weights.values())
    print(json.dumps({"seconds": seconds, "before": before, "peak": peak, "model": model_bytes, **asdict(cost)}))


def operations(model: Model) -> tuple[float, float]:
    """Floating point operations of a gradient and of a product with the Hessian, per example."""
    module, images = model.module(), torch.zeros(2, 3, 32, 32)
    parameters = list(module.parameters())
    counts = []
    for again in (False, True):
        with FlopCounterMode(display=False) as counter:
            loss = cross_entropy(module(images), torch.tensor([0, 1]))
            gradient = torch.autograd.grad(loss, parameters, create_graph=again)
            if again:
                torch.autograd.grad(gradient, parameters, [torch.ones_like(one) for one in gradient])
        counts.append(counter.get_total_flops() / len(images))
    return counts[0], counts[1]


def main() -> None:
    """Measures all methods asked for and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--examples", type=int, default=456, help="of each client; CoPreFL's CIFAR-100 has 456")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        measure(options.only, options)
        return
    wanted = ["fedavg", *(name for name in options.methods if name != "fedavg")]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in wanted}
    for _ in range(options.repeats):
        for name in wanted:
            command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
            printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[name].append(json.loads(printed))
            print(f"{name}: {found[name][-1]['seconds']}", file=sys.stderr, flush=True)
    seconds = {name: statistics.median(s for run in runs for s in run["seconds"]) for name, runs in found.items()}
    print("| method | s a round | / fedavg | memory above data MB | models | exchanges | forward | backward |")
    print("|" + "---|" * 8)
    for name, runs in found.items():
        one = runs[0]
        above = max(run["peak"] - run["before"] for run in runs) * 1024
        print(
            f"| {name} | {seconds[name]:.2f} | {seconds[name] / seconds['fedavg']:.2f} | {above / 1e6:.0f} | "
            f"{above / one['model']:.1f} | {one['exchanges']} | {one['examples']:,} | {one['backward']:,} |"
        )
    gradient, product = operations(network(options))
    print(f"\nGFLOP an example: gradient {gradient / 1e9:.2f}, Hessian product {product / 1e9:.2f}")


if __name__ == "__main__":
    main()
