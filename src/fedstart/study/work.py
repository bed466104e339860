"""Running one cell, and many of them: in this process or side by side in others."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import torch

from fedstart.engines.local import LocalEngine
from fedstart.files import write_json
from fedstart.runs import Outcome, RunDirectory, execute
from fedstart.runs import Progress as Steps
from fedstart.starts import Card, Start
from fedstart.study.cells import Cell, Material, Run
from fedstart.study.schema import Study
from fedstart.types import Diverged

POLL_SECONDS = 0.5


class Progress(Protocol):
    """What a study tells whoever shows its progress; a unit is one round of one cell. It decides nothing."""

    def total(self, n: int) -> None:
        """Called once, first: `n` rounds in all cells together, those already done included."""
        ...

    def advance(self, text: str) -> None:
        """One more round is finished, or was found finished; `text` names its cell. May come from another thread."""
        ...


class Result(NamedTuple):
    """How a cell ended: `error` says why training diverged, None if it did not."""

    cell: Cell
    error: str | None


def run_cell(
    material: Material, cell: Cell, folder: Path, engine: LocalEngine, progress: Steps | None = None
) -> Result:
    """Runs a cell in `folder/<key>`, from its last checkpoint if there is one.

    A pre-training cell leaves its Start in `start/`. Training that diverges is a result, recorded in run.json.
    Raises ValueError when another process works on the cell, and OSError when it cannot be written.
    """
    directory = RunDirectory(folder / cell.key)
    with directory.locked(), one_torch_thread():
        if directory.status == "done":
            return Result(cell, None)
        if cell.kind == "pretrain":
            run = material.pretraining_run(cell.start, cell.seed)
            weights, part = material.begin(cell.start, cell.seed), None
        else:
            start = Start.load(folder / cell.origin / "start")
            run = material.downstream_run(cell.algorithm, cell.partition, cell.task, cell.seed, cell.begin)
            weights, part = material.transfer(start.weights, run.model.classes, cell.task, cell.seed), "test"
        directory.open(run.settings, run.fingerprints)
        write_json(directory.path / "cell.json", cell.place())
        try:
            outcome = execute(
                directory,
                run.method.method,
                run.model,
                run.federation,
                run.plan,
                weights,
                engine,
                evaluate=part,
                progress=progress,
            )
        except Diverged as error:
            return Result(cell, str(error))
        if cell.kind == "pretrain":
            Start(outcome.weights, _card(run, cell, outcome)).save(directory.path / "start")
        directory.finish()
        return Result(cell, None)


def run_cells(
    study: Study,
    material: Material,
    cells: Sequence[Cell],
    folder: Path,
    *,
    jobs: int,
    threads: int | None,
    progress: Progress,
) -> Iterator[Result]:
    """Runs cells that do not depend on each other and yields their results as they come.

    With one job they run in this process, with more in that many processes, each on `threads` threads (none = the
    cores shared among the jobs). Neither changes a bit of any result.
    """
    counter = _Counter(progress, folder)
    waiting = [cell for cell in cells if RunDirectory(folder / cell.key).status != "done"]
    for cell in cells:
        if cell not in waiting:
            counter.reach(cell, cell.rounds)
            yield Result(cell, None)
    if jobs == 1 or len(waiting) < 2:
        with LocalEngine(threads) as engine:
            for cell in waiting:
                yield run_cell(material, cell, folder, engine, _Steps(counter, cell))
                counter.reach(cell, cell.rounds)
    else:
        with counter.watching(waiting):
            for result in _in_processes(study, waiting, folder, jobs, threads):
                counter.reach(result.cell, result.cell.rounds)
                yield result


def title(cell: Cell) -> str:
    """A cell in a few words, for progress bars and messages."""
    if cell.kind == "pretrain":
        return f"pre-training {cell.start}, seed {cell.seed}"
    return f"{cell.start}, {cell.algorithm}, {cell.partition}, task {cell.task}, seed {cell.seed}"


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Sums on the server would have other bits for another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _card(run: Run, cell: Cell, outcome: Outcome) -> Card:
    return Card.of(
        run.model,
        run.federation,
        run.plan,
        method=run.method.entry.method,
        settings=run.settings["settings"],
        seed=cell.seed,
        cost=outcome.cost,
    )


def _in_processes(
    study: Study, cells: Sequence[Cell], folder: Path, jobs: int, threads: int | None
) -> Iterator[Result]:
    import joblib
    from joblib.externals.loky.process_executor import BrokenProcessPool

    content, origin = study.model_dump_json(), Origin(os.getpid(), os.getcwd())
    threads = threads or max(1, joblib.cpu_count() // jobs)
    parallel = joblib.Parallel(n_jobs=jobs, backend="loky", return_as="generator_unordered")
    with _deaf_children():
        results = parallel(joblib.delayed(_in_worker)(content, cell, folder, threads, origin) for cell in cells)
    try:
        yield from cast(Iterator[Result], results)
    except BrokenProcessPool:
        raise OSError(
            "a worker process was killed, perhaps for lack of memory; run again with fewer jobs "
            "(what is finished is kept)"
        ) from None


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C, which a terminal sends to them too: this process ends them itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Origin(NamedTuple):
    """The process that asks, and the directory that it reads relative paths from."""

    process: int
    directory: str


def _in_worker(study: str, cell: Cell, folder: Path, threads: int, origin: Origin) -> Result:
    _leash(origin.process)
    # A worker may be left over from an earlier study of the same process, begun in another directory.
    os.chdir(origin.directory)
    with LocalEngine(threads) as engine:
        return run_cell(_material(study, origin.directory), cell, folder, engine)


@functools.lru_cache(maxsize=1)
def _material(study: str, directory: str) -> Material:
    return Material(Study.model_validate_json(study))


@functools.cache
def _leash(parent: int) -> None:
    """Ends this worker soon after its parent is killed, so that it does not go on beside the next try."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="fedstart-leash", daemon=True).start()


class _Steps:
    """Counts the rounds of one cell that runs in this process."""

    def __init__(self, counter: _Counter, cell: Cell) -> None:
        self._counter, self._cell, self._rounds = counter, cell, 0

    def advance(self, text: str) -> None:
        self._rounds += 1
        self._counter.reach(self._cell, self._rounds)


class _Counter:
    """Turns "this cell has come so far" into single steps of a progress bar."""

    def __init__(self, progress: Progress, folder: Path) -> None:
        self._progress, self._folder = progress, folder
        self._reached: dict[str, int] = {}
        self._lock = threading.Lock()

    def reach(self, cell: Cell, rounds: int) -> None:
        with self._lock:
            for _ in range(rounds - self._reached.get(cell.key, 0)):
                self._progress.advance(title(cell))
            self._reached[cell.key] = max(rounds, self._reached.get(cell.key, 0))

    def watching(self, cells: Sequence[Cell]) -> _Watch:
        """A context in which the cells' files are looked at twice a second: workers need no channel to report by."""
        return _Watch(lambda: [self._look(cell) for cell in cells])

    def _look(self, cell: Cell) -> None:
        file = self._folder / cell.key / "rounds.jsonl"
        if file.exists():
            self.reach(cell, min(cell.rounds, file.read_bytes().count(b"\n")))


class _Watch:
    def __init__(self, look: Callable[[], object]) -> None:
        self._look, self._ended = look, threading.Event()
        self._thread = threading.Thread(target=self._run, name="fedstart-progress", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            self._look()
