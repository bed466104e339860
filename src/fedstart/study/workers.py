"""Running many cells: one after the other in this process, or packed onto the cores in processes of their own."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import joblib

from fedstart.engines.execution import Execution
from fedstart.runs import RunDirectory
from fedstart.study.cells import Cell, Material
from fedstart.study.packing import Packing, Placement, load
from fedstart.study.schema import Study
from fedstart.study.work import POLL_SECONDS, Counter, Progress, Result, run_cell

IDLE_SECONDS = 300
"""A worker without work ends after this long; until then the next study of this process finds its data loaded."""
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)
"""The libraries below torch would each take all cores in every worker."""


def run_cells(
    material: Material,
    cells: Sequence[Cell],
    folder: Path,
    *,
    jobs: int,
    threads: int | None,
    progress: Progress,
) -> Iterator[Result]:
    """Runs cells, each after the one that it begins from, and yields their results as they come.

    Cells whose origin failed are left out. With one job they run in this process, with more side by side in as many
    processes, each on `threads` threads (none = as `Packing` shares out the cores). Neither changes a bit of any
    result.
    """
    counter = Counter(progress, folder)
    loads = {}
    for cell in cells:
        if RunDirectory(folder / cell.key).status == "done":
            counter.reach(cell, cell.rounds)
            yield Result(cell, None)
        else:
            loads[cell] = load(material, cell)
    packing = Packing(loads, jobs=min(jobs, len(loads)), cores=joblib.cpu_count(), threads=threads)
    if packing.jobs < 2:
        while placed := packing.start():
            cell = placed[0].cell
            result = run_cell(material, cell, folder, threads, counter.steps(cell))
            packing.finish(cell, failed=result.error is not None)
            counter.reach(cell, cell.rounds)
            yield result
    else:
        for result in _in_processes(material, packing, folder, counter):
            counter.reach(result.cell, result.cell.rounds)
            yield result


def _in_processes(material: Material, packing: Packing, folder: Path, counter: Counter) -> Iterator[Result]:
    from joblib.externals.loky.process_executor import BrokenProcessPool

    workers, ended = _Workers(material, folder, packing.jobs), False
    running: dict[Future[Result], Cell] = {}
    try:
        with counter.watching(lambda: running.values()):
            while True:
                for placement in packing.start():
                    running[workers.submit(placement)] = placement.cell
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    result = future.result()
                    packing.finish(running.pop(future), failed=result.error is not None)
                    yield result
        ended = True
    except BrokenProcessPool:
        raise OSError(
            "a worker process was killed, perhaps for lack of memory; run again with fewer jobs "
            "(what is finished is kept)"
        ) from None
    finally:
        if not ended:
            workers.kill()


class Errand(NamedTuple):
    """What a worker is told besides its cell: who asks, where relative paths begin, the study, how to compute it."""

    process: int
    directory: str
    study: str
    executions: tuple[tuple[str, Execution], ...]


class _Workers:
    """Processes that run cells; they outlive the study, so that the next one finds them with their data loaded."""

    def __init__(self, material: Material, folder: Path, count: int) -> None:
        from joblib.externals.loky import get_reusable_executor

        study, executions = material.study.model_dump_json(), tuple(sorted(material.executions.items()))
        self._folder, self._errand = folder, Errand(os.getpid(), os.getcwd(), study, executions)
        with _deaf_children():
            self._executor = get_reusable_executor(count, timeout=IDLE_SECONDS, env=ONE_THREAD)

    def submit(self, placement: Placement) -> Future[Result]:
        """The cell's result, once a worker has run it."""
        with _deaf_children():
            return self._executor.submit(_in_worker, placement, self._folder, self._errand)

    def kill(self) -> None:
        """Ends the processes at once; what they had not saved is lost."""
        self._executor.shutdown(kill_workers=True)


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started inside never see Ctrl-C, which a terminal sends to them too: this process ends them itself."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_worker(placement: Placement, folder: Path, errand: Errand) -> Result:
    _leash(errand.process)
    # A worker may be left over from an earlier study of the same process, begun in another directory.
    os.chdir(errand.directory)
    return run_cell(_material(errand), placement.cell, folder, placement.threads)


@functools.lru_cache(maxsize=1)
def _material(errand: Errand) -> Material:
    return Material(Study.model_validate_json(errand.study), dict(errand.executions))


@functools.cache
def _leash(parent: int) -> None:
    """Ends this worker soon after its parent is killed, so that it does not go on beside the next try."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="fedstart-leash", daemon=True).start()
