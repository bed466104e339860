"""Which cells run next, and on how many threads: cells packed onto cores, with never more threads than cores.

A cell is ready when the cell whose start it begins from is done. Among the ready the one with the longest way to go
comes first: its own work and the longest of the cells that wait for it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fedstart.study.cells import Cell, Material
from fedstart.types import Plan

SLACK = 0.25
"""A cell this little above its share of the cores gets no further thread: threads of one cell wait for each other."""


class Load(NamedTuple):
    """What a cell asks of a machine.

    `work` is about how many examples its rounds train on, each pass counted; `width` the most threads that help it,
    which are the clients of a round, or the groups of them that are trained together.
    """

    work: float
    width: int


class Placement(NamedTuple):
    """A cell that starts now, on so many threads."""

    cell: Cell
    threads: int


class Packing:
    """The cells of a study that are still to run: at most `jobs` at a time, on `cores` cores together.

    A cell whose origin is not among `loads` is ready at once. With `threads` every cell runs on that many, whatever
    the cores; without, `jobs` is at most `cores`. What `start` returns depends on the calls so far alone.
    """

    def __init__(self, loads: Mapping[Cell, Load], *, jobs: int, cores: int, threads: int | None = None) -> None:
        self.jobs = jobs if threads else min(jobs, cores)
        self._loads, self._free, self._threads = loads, cores, threads
        self._left = sum(load.work for load in loads.values())
        self._running: dict[str, int] = {}
        self._waiting: dict[str, list[Cell]] = {}
        keys = {cell.key for cell in loads}
        for cell in loads:
            if cell.origin in keys:
                self._waiting.setdefault(cell.origin, []).append(cell)
        self._place = {cell: number for number, cell in enumerate(loads)}
        self._ready: list[tuple[float, int, Cell]] = []
        self._admit(cell for cell in loads if cell.origin not in keys)

    def start(self) -> list[Placement]:
        """The cells to start now; they count as running until `finish`. Empty at the end, and while others run."""
        shares: list[_Share] = []
        while self._ready and len(self._running) < self.jobs and (self._free > 0 or self._threads):
            share = self._next()
            shares.append(share)
            self._running[share.cell.key] = share.threads
            self._free -= share.threads
        if not self._threads:
            self._spread(shares)
        return [Placement(share.cell, share.threads) for share in shares]

    def finish(self, cell: Cell, *, failed: bool) -> None:
        """A running cell ended: its threads are free, and what waited for it is ready, or dropped if it failed."""
        self._free += self._running.pop(cell.key)
        waited = self._waiting.pop(cell.key, [])
        if failed:
            self._left -= sum(self._loads[dropped].work for dropped in waited)
        else:
            self._admit(waited)

    def _admit(self, cells: Iterable[Cell]) -> None:
        for cell in cells:
            heapq.heappush(self._ready, (-self._way(cell), self._place[cell], cell))

    def _way(self, cell: Cell) -> float:
        """A cell's work and that of the longest cell that waits for it."""
        later = (self._loads[waiting].work for waiting in self._waiting.get(cell.key, ()))
        return self._loads[cell].work + max(later, default=0.0)

    def _next(self) -> _Share:
        """The cell with the longest way, on as many threads as it needs to end when all else could have ended."""
        negative, _, cell = heapq.heappop(self._ready)
        load = self._loads[cell]
        needed = math.ceil(self._free * -negative / self._left - SLACK) if self._left > 0 else 1
        self._left -= load.work
        return _Share(cell, load.width, -negative, self._threads or max(1, min(needed, load.width, self._free)))

    def _spread(self, shares: Sequence[_Share]) -> None:
        """Gives the cores that no other cell is ready for to those with the longest way for each of their threads."""
        while self._free > 0 and (wider := [share for share in shares if share.threads < share.width]):
            share = max(wider, key=lambda share: share.way / share.threads)
            share.threads += 1
            self._running[share.cell.key] += 1
            self._free -= 1


@dataclass
class _Share:
    cell: Cell
    width: int
    way: float
    threads: int


def load(material: Material, cell: Cell) -> Load:
    """What a cell of the study asks for: rounds x clients of a round x passes over a mean client's examples.

    Where clients fine-tune the final weights, what all of them pass over then comes to it.
    """
    personal = None
    if cell.kind == "downstream":
        method = material.parts.algorithms[cell.algorithm]
        plan, personal = method.plan, method.personal
        federation = material.tasks(cell.partition, cell.seed)[cell.task]
    else:
        federation, plan = material.prepared(cell.start, cell.seed, cell.case)
    clients = len(federation.eligible)
    cohort = min(plan.cohort or clients, clients)
    examples = float(federation.parts["train"].sizes.sum() / clients)
    work = plan.rounds * cohort * _passed(plan, examples) + (clients * _passed(personal, examples) if personal else 0)
    together = material.execution(cell.kind, cell.start).together if plan.rounds else 1
    return Load(work, math.ceil(cohort / together))


def _passed(plan: Plan, examples: float) -> float:
    """Examples that one client passes over in its local training."""
    if plan.local_steps:
        return plan.local_steps * min(plan.batch_size, examples)
    return (plan.local_epochs or 0) * examples
