"""What the runner of every simulator does alike: reads its job, notes when each round ended, and writes what it saw.

`run.py` starts a runner as `python RUNNER.py JOB`, where JOB is JSON with the fields of `Job`.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import math
import platform
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from workloads import WORKLOADS, Data, Workload, load


@dataclass(frozen=True)
class Job:
    """What one process has to do. `rounds` includes the first, which is not counted; `began` is monotonic time."""

    folder: str
    workload: str
    rounds: int
    evaluate: bool
    variant: str
    packages: tuple[str, ...]
    began: float
    out: str

    @property
    def work(self) -> Workload:
        return WORKLOADS[self.workload]

    @cached_property
    def data(self) -> Data:
        return load(self.work, Path(self.folder))

    def steps(self, clients: Sequence[int] | np.ndarray) -> int:
        """SGD steps of one round of these clients."""
        return int(np.ceil(self.data.sizes(np.asarray(clients)) / self.work.batch_size).sum())


def read_job() -> Job:
    """The job that this process was started for."""
    return Job(**json.loads(sys.argv[1]))


@dataclass
class Recorder:
    """Notes the end of each round, and checks that the work was the work that was asked for.

    `counted` is the number of SGD steps that the runner saw in the first round, by whatever means it has.
    """

    job: Job
    ends: list[float] = field(default_factory=list)
    cohorts: list[Sequence[int]] = field(default_factory=list)

    def end_round(self, clients: Sequence[int] | None = None) -> None:
        """To be called when a round has ended; `clients` if they were not those of `job.data.cohorts`."""
        self.ends.append(time.monotonic())
        self.cohorts.append(self.job.data.cohorts[len(self.ends) - 1] if clients is None else clients)

    def finish(
        self,
        counted: int,
        weights: Mapping[str, np.ndarray],
        initial: Mapping[str, np.ndarray] | None = None,
        note: str = "",
    ) -> None:
        """Writes the result. Raises ValueError if rounds or steps are missing, or the weights did not move.

        `initial` are the initial weights, where the simulator holds them in a form of its own.
        """
        job, initial = self.job, initial or self.job.data.initial
        steps = [job.steps(clients) for clients in self.cohorts]
        if len(self.ends) != job.rounds:
            raise ValueError(f"{len(self.ends)} rounds ended, expected {job.rounds}")
        if counted != steps[0]:
            raise ValueError(f"counted {counted} SGD steps in the first round, expected {steps[0]}")
        if {name: np.shape(value) for name, value in weights.items()} != {k: v.shape for k, v in initial.items()}:
            raise ValueError("the weights at the end are not those of the model")
        change = sum(float(np.square(np.float64(weights[name]) - initial[name]).sum()) for name in initial)
        moved = math.sqrt(change / sum(float(np.square(np.float64(value)).sum()) for value in initial.values()))
        if not 1e-6 < moved < 1:
            raise ValueError(f"the weights moved by {moved} of their norm")
        result = {
            "start": self.ends[0] - job.began,
            "seconds": list(np.diff(self.ends)),
            "steps": steps[1:],
            "clients": [len(clients) for clients in self.cohorts[1:]],
            "counted": counted,
            "moved": moved,
            "rss": _peak_memory(),
            "versions": {
                "python": platform.python_version(),
                **{name: importlib.metadata.version(name) for name in job.packages},
            },
            "note": note,
        }
        Path(job.out).write_text(json.dumps(result))


def _peak_memory() -> int:
    """This process's largest resident memory so far, in bytes; 0 where the system does not say.

    Not `ru_maxrss`: that begins with the memory of the process that started this one.
    """
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else 0


class StepCounter:
    """Counts the steps of all torch optimisers until `stop`, so that the rounds that are measured have no hook."""

    def __init__(self) -> None:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self._counter = itertools.count()
        self._hook = register_optimizer_step_post_hook(lambda *_: self._seen(next(self._counter)))
        self.steps = 0

    def _seen(self, number: int) -> None:
        self.steps = max(self.steps, number + 1)

    def stop(self) -> None:
        """Takes the hook out; can be called again."""
        self._hook.remove()


def arrays(state: Mapping[str, object]) -> dict[str, np.ndarray]:
    """A torch state dict as arrays."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in state.items()}  # type: ignore[attr-defined]
