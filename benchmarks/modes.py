"""The ways in which the local engine can compute, against each other and against the machine's limit, in one run.

    python benchmarks/modes.py [--repeats 5] [--work simple_cnn cnn cnn3x3 mlp resnet18]

First the peak of this machine: the best rate of one thread times the cores, for float32 and bfloat16 convolutions
and for copying. Then for each model a line for each mode: seconds of one FedAvg round (median, fastest, slowest),
its rate in floating-point operations (forward and backward passes, as torch counts them) and share of the peak for
that precision, and how far the weights are from the default's (norm of the difference, over that of the weights).
Repeats alternate between the modes, so a busy machine hits all. `chosen` is what calibration takes, measured anew.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from fedstart import keys, tree
from fedstart.algorithms.fedavg import FedAvg
from fedstart.data.federation import Examples, Federation, Positions
from fedstart.engines.calibration import calibrate, supports_bfloat16
from fedstart.engines.execution import Execution
from fedstart.engines.local import LocalEngine
from fedstart.models import Model, load_architecture
from fedstart.training import train
from fedstart.types import Plan


@dataclass(frozen=True)
class Work:
    """One round of FedAvg: clients, examples of each, and how they train."""

    shape: tuple[int, ...]
    clients: int
    examples: int
    cohort: int
    batch: int
    settings: dict[str, Any] = field(default_factory=dict)

    def federation(self) -> Federation:
        """Random examples; their content does not matter for time."""
        draws, count = keys.generator(0, "benchmark"), self.clients * self.examples
        images = len(self.shape) == 3
        inputs = (
            draws.integers(0, 256, (count, *self.shape), np.uint8)
            if images
            else draws.normal(size=(count, *self.shape)).astype(np.float32)
        )
        statistic = ((0.5,) * self.shape[0], (0.25,) * self.shape[0]) if images else ((), ())
        names = tuple("0123456789")
        examples = Examples("random", torch.from_numpy(inputs), draws.integers(0, 10, count), names, "", *statistic)
        owners = np.repeat(np.arange(self.clients), self.examples)
        parts = {"train": Positions.from_owners(owners, np.arange(count), self.clients)}
        return Federation("random", examples, parts, tuple(range(10)))


WORK = {
    "simple_cnn": Work((3, 32, 32), 1000, 50, 50, 10),
    "cnn": Work((1, 28, 28), 40, 140, 10, 20),
    "cnn3x3": Work((3, 32, 32), 40, 448, 5, 32),
    "mlp": Work((60,), 10000, 20, 500, 10, {"hidden": [64]}),
    "resnet18": Work((3, 32, 32), 4, 40, 4, 10),
}


def modes(model: Model, small: bool) -> list[Execution]:
    """Each choice by itself, and together."""
    found = [Execution(), Execution(linear="onednn")]
    if len(model.shape) == 3:
        found.append(Execution(channels_last=False))
    if supports_bfloat16():
        found += [Execution(precision="bfloat16"), Execution(precision="bfloat16", channels_last=False)][
            : len(found) - 1
        ]
    return found + [Execution(together=stack) for stack in ((8, 32, 128) if small else (4,))]


def rate(call: Any, amount: float, seconds: float = 1.0) -> float:
    """`amount` per second of repeated calls, in 10^9."""
    for _ in range(3):
        call()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        call()
        count += 1
    return amount * count / (time.perf_counter() - began) / 1e9


def peaks() -> dict[str, float]:
    """10^9 operations (or bytes) per second of one thread, times the cores."""
    threads, cores = torch.get_num_threads(), joblib.cpu_count()
    torch.set_num_threads(1)
    inputs = torch.randn(4, 64, 28, 28).contiguous(memory_format=torch.channels_last)
    layer = torch.nn.Conv2d(64, 64, 3, padding=1)
    layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    work = 2 * 4 * 28 * 28 * 64 * 64 * 9
    source = torch.randn(4_000_000)
    target = torch.empty_like(source)
    with torch.inference_mode():
        found = {"float32": rate(lambda: layer(inputs), work)}
        layer, inputs = layer.bfloat16(), inputs.bfloat16()
        found["bfloat16"] = rate(lambda: layer(inputs), work)
        found["copy"] = rate(lambda: target.copy_(source), 2 * source.nbytes)
    torch.set_num_threads(threads)
    return {name: value * cores for name, value in found.items()}


def operations(model: Model, federation: Federation, work: Work) -> float:
    """Floating-point operations of one round: forward and backward passes of every example."""
    module = model.module()
    inputs, labels = federation.batch(np.arange(work.batch))
    with FlopCounterMode(display=False) as counter:
        cross_entropy(module(inputs), labels).backward()
    return counter.get_total_flops() / work.batch * work.cohort * work.examples


def compare(name: str, work: Work, repeats: int, peak: dict[str, float]) -> None:
    """Prints the lines of one model."""
    federation = work.federation()
    model = Model(load_architecture(name, work.settings), work.shape, 10)
    weights, plan = model.init(0), Plan(rounds=1, cohort=work.cohort, local_epochs=1, batch_size=work.batch, lr=0.01)
    with tempfile.TemporaryDirectory() as folder:
        chosen = calibrate(model, federation, plan, folder=Path(folder))
    tried = [*modes(model, name == "mlp"), chosen]
    total = operations(model, federation, work)
    print(
        f"\n{name} {work.shape}: {work.cohort} clients x {work.examples}, batch {work.batch}; {total / 1e9:.1f} GFLOP"
    )
    times: list[list[float]] = [[] for _ in tried]
    found = []
    engines = [LocalEngine(execution=execution) for execution in tried]
    for repeat in range(repeats + 1):
        for place, engine in enumerate(engines):
            began = time.perf_counter()
            (last,) = train(FedAvg(), model, federation, plan, weights, engine)
            if repeat:
                times[place].append(time.perf_counter() - began)
            else:
                found.append(last.state.weights)
    size = tree.norm(found[0])
    for place, execution in enumerate(tried):
        words = ", ".join(
            f"{key}={value}" for key, value in asdict(execution).items() if value != getattr(Execution(), key)
        )
        label = ("chosen: " if place == len(tried) - 1 else "") + (words or "default")
        seconds = statistics.median(times[place])
        print(
            f"  {label:56} {seconds:8.4f} s "
            f"({min(times[place]):.4f} to {max(times[place]):.4f})  {total / seconds / 1e9:6.1f} GFLOP/s "
            f"{100 * total / seconds / 1e9 / peak[execution.precision]:3.0f} %  "
            f"difference {tree.norm(tree.subtract(found[place], found[0])) / size:.1e}",
            flush=True,
        )
        engines[place].close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", nargs="+", choices=list(WORK), default=list(WORK))
    given = parser.parse_args()
    peak = peaks()
    print(
        f"peak of {joblib.cpu_count()} cores: float32 {peak['float32']:.0f}, bfloat16 {peak['bfloat16']:.0f} GFLOP/s, "
        f"copying {peak['copy']:.0f} GB/s; torch {torch.__version__}"
    )
    for name in given.work:
        compare(name, WORK[name], given.repeats, peak)


if __name__ == "__main__":
    main()
