"""One point of the growth curves, measured in a process of its own: `growth.py` starts it and reads what it prints."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fedstart import keys, tree
from fedstart.algorithms.fedavg import FedAvg
from fedstart.algorithms.scaffold import Scaffold
from fedstart.data.federation import Examples, Federation, Positions
from fedstart.engines.execution import Execution
from fedstart.engines.local import LocalEngine
from fedstart.models import Model, load_architecture
from fedstart.training import draw, train
from fedstart.types import Plan

CLASSES = 10
MEGA = 1e6
METHODS = {"fedavg": FedAvg, "scaffold": Scaffold}
SHAPE = {"mlp": (60,), "cnn": (1, 28, 28)}
SMALL: dict[str, dict[str, object]] = {"mlp": {"hidden": [8]}, "cnn": {"channels": [2, 2], "hidden": 8}}


@dataclass(frozen=True)
class Point:
    """What is measured: `rounds` rounds after a first that is not counted.

    `threads` None is one per core; `together` clients are stacked in one pass of a thread.
    `pool` examples are shared by all clients, whatever their number: a client holds `examples` positions in them.
    """

    clients: int = 10_000
    cohort: int = 100
    examples: int = 10
    method: str = "fedavg"
    model: str = "mlp"
    settings: Mapping[str, object] | None = None
    threads: int | None = None
    together: int = 1
    rounds: int = 20
    pool: int = 10_000


@dataclass(frozen=True)
class Measured:
    """Seconds of each round and of one draw of a cohort; memory in bytes, as the operating system counts it.

    `data`, `index` and `rounds` are what the examples, the clients' positions and the rounds add, one after the
    other; `rounds` at its peak. `resident` is what remains behind each round, `seen` the clients that took part.
    """

    seconds: list[float]
    draw: float
    process: int
    data: int
    index: int
    rounds: int
    model: int
    parameters: int
    resident: list[int]
    seen: list[int]


class Series(NamedTuple):
    """Points along one line, and what was measured at each."""

    points: list[Point]
    measured: list[Measured]

    def seconds(self) -> np.ndarray:
        """Median seconds of a round at each point."""
        return np.array([statistics.median(found.seconds) for found in self.measured])

    def memory(self) -> np.ndarray:
        """Bytes that the rounds added at their peak, at each point."""
        return np.array([found.rounds for found in self.measured], dtype=float)

    def examples(self) -> np.ndarray:
        """Examples that the cohort holds, at each point."""
        return np.array([point.cohort * point.examples for point in self.points])


def measure(point: Point) -> Measured:
    """Runs the rounds in this process and watches it."""
    process = memory()
    examples = make_examples(point)
    before_index = memory()
    plan = Plan(rounds=point.rounds + 1, cohort=point.cohort, local_epochs=1, batch_size=10, lr=0.01)
    federation = make_federation(examples, point)
    draw_seconds = time_draw(federation, plan)
    after_index = memory()
    with LocalEngine(point.threads, Execution(together=point.together)) as engine:
        # Libraries and threads are loaded by the first round of any model; they are no part of this model's memory.
        warm_up(engine, point)
        before = memory()
        reset_peak()
        model = make_model(point, point.settings or SMALL[point.model])
        weights = model.init(0)
        rounds = train(METHODS[point.method](), model, federation, plan, weights, engine)
        seconds, resident = [], []
        for _ in range(plan.rounds):
            begin = time.perf_counter()
            next(rounds)
            seconds.append(time.perf_counter() - begin)
            resident.append(memory() - before)
        peak = memory("VmHWM") - before
    return Measured(
        seconds=seconds[1:],
        draw=draw_seconds,
        process=process,
        data=before_index - process,
        index=after_index - before_index,
        rounds=peak,
        model=tree.nbytes(weights),
        parameters=sum(tensor.numel() for tensor in weights.values()),
        resident=resident,
        seen=seen(federation, plan),
    )


def make_examples(point: Point) -> Examples:
    """Random features or images: their content does not matter for time and memory."""
    draws = keys.generator(0, "growth")
    shape = (point.pool, *SHAPE[point.model])
    if point.model == "mlp":
        inputs = torch.from_numpy(draws.random(shape, dtype=np.float32))
    else:
        inputs = torch.from_numpy(draws.integers(0, 256, shape, dtype=np.uint8))
    labels = draws.integers(0, CLASSES, len(inputs))
    return Examples("random", inputs, labels, tuple("0123456789"), "random")


def make_federation(examples: Examples, point: Point) -> Federation:
    """Every client holds as many positions of the pool, drawn at random, as the point says."""
    offsets = np.arange(point.clients + 1) * point.examples
    values = keys.generator(0, "positions").integers(0, len(examples), int(offsets[-1]))
    federation = Federation("random", examples, {"train": Positions(offsets, values)}, tuple(range(CLASSES)))
    federation.batch(values[:1])
    return federation


def make_model(point: Point, settings: Mapping[str, object]) -> Model:
    """The point's architecture with these settings."""
    return Model(load_architecture(point.model, settings), SHAPE[point.model], CLASSES)


def time_draw(federation: Federation, plan: Plan, repeats: int = 20) -> float:
    """Seconds to draw one cohort: the mean over some rounds, the first not counted."""
    draw(federation, plan, 1)
    begin = time.perf_counter()
    for number in range(repeats):
        draw(federation, plan, number)
    return (time.perf_counter() - begin) / repeats


def seen(federation: Federation, plan: Plan) -> list[int]:
    """How many different clients have taken part after each round. Drawn again, so that it takes no memory before."""
    clients: set[int] = set()
    counts = []
    for number in range(1, plan.rounds + 1):
        clients.update(draw(federation, plan, number))
        counts.append(len(clients))
    return counts


def warm_up(engine: LocalEngine, point: Point) -> None:
    """Two rounds of a very small model on a federation of its own."""
    small = make_model(point, SMALL[point.model])
    images = torch.zeros(40, *SHAPE[point.model], dtype=torch.float32 if point.model == "mlp" else torch.uint8)
    examples = Examples("small", images, np.zeros(40, dtype=np.int64), tuple("0123456789"), "small")
    parts = {"train": Positions(np.arange(5) * 10, np.arange(40))}
    federation = Federation("small", examples, parts, tuple(range(CLASSES)))
    plan = Plan(rounds=2, local_epochs=1, batch_size=10, lr=0.01)
    for _ in train(METHODS[point.method](), small, federation, plan, small.init(0), engine):
        pass


def memory(what: str = "VmRSS") -> int:
    """Bytes of this process that are resident now (VmRSS) or were at most (VmHWM)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[what].split()[0]) * 1024


def reset_peak() -> None:
    """The peak counts from here on; otherwise making the examples would hide what rounds take."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    print(json.dumps(asdict(measure(Point(**json.loads(sys.argv[1]))))))
