"""Running one cell, and saying how far it has come."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import pyarrow
from pyarrow import parquet

from fedstart.engines.allocation import one_torch_thread
from fedstart.engines.local import LocalEngine
from fedstart.engines.personal import personalise
from fedstart.files import write_atomically, write_json
from fedstart.runs import Outcome, RunDirectory, execute
from fedstart.runs import Progress as Steps
from fedstart.starts import Card, Start
from fedstart.study import watching
from fedstart.study.cells import Cell, Material, Run
from fedstart.types import Counts, Diverged

POLL_SECONDS = 0.5


class Progress(Protocol):
    """What a study tells whoever shows its progress; a unit is one round of one cell. It decides nothing."""

    def total(self, n: int) -> None:
        """Called first: `n` rounds in all cells together, those already done included.

        Called once more, when settings have been chosen: what was chosen may have another number of rounds.
        """
        ...

    def advance(self, text: str) -> None:
        """One more round is finished, or was found finished; `text` names its cell. May come from another thread."""
        ...


class Result(NamedTuple):
    """How a cell ended: `error` says why training diverged, None if it did not."""

    cell: Cell
    error: str | None


def run_cell(
    material: Material, cell: Cell, folder: Path, threads: int | None, progress: Steps | None = None
) -> Result:
    """Runs a cell in `folder/<key>` on `threads` threads (none = one per core), from its last checkpoint if it has one.

    A pre-training cell leaves its Start in `start/`. After a downstream cell's last round each client fine-tunes the
    final weights, where the study asks for it. Training that diverges is a result, recorded in run.json.
    Raises ValueError when another process works on the cell, and OSError when it cannot be written.
    """
    directory = RunDirectory(folder / cell.key)
    with directory.locked(), one_torch_thread():
        if directory.status == "done":
            return Result(cell, None)
        if cell.kind == "pretrain":
            run = material.pretraining_run(cell.start, cell.seed, cell.case)
            weights, part = material.begin(cell.start, cell.seed, cell.case), None
        else:
            start = Start.load(folder / cell.origin / "start")
            place = (cell.start, cell.algorithm, cell.partition, cell.task, cell.seed)
            run = material.downstream_run(*place, cell.begin)
            classes = run.model.classes
            weights, part = material.transfer(cell.start, start.weights, classes, cell.task, cell.seed), "test"
        directory.open(run.settings, run.fingerprints)
        write_json(directory.path / "cell.json", cell.place())
        try:
            with LocalEngine(threads, run.execution) as engine:
                outcome = execute(
                    directory,
                    run.method.method,
                    run.model,
                    run.federation,
                    run.plan,
                    weights,
                    engine,
                    evaluate=part,
                    keep=watching.rounds(run),
                    progress=progress,
                )
                if run.personal:
                    own = personalise(engine, run.model, run.federation, run.personal, outcome.weights)
                    _add_personal(directory, own)
                if run.probes:
                    watching.look(directory, run, weights, outcome.weights, engine)
        except Diverged as error:
            directory.fail(error)
            return Result(cell, str(error))
        if cell.kind == "pretrain":
            Start(outcome.weights, _card(run, cell, outcome)).save(directory.path / "start")
        directory.finish()
        return Result(cell, None)


def title(cell: Cell) -> str:
    """A cell in a few words, for progress bars and messages."""
    if cell.kind == "pretrain":
        return f"pre-training {cell.start}{f' without {cell.case}' if cell.case else ''}, seed {cell.seed}"
    return f"{cell.start}, {cell.algorithm}, {cell.partition}, task {cell.task}, seed {cell.seed}"


def _add_personal(directory: RunDirectory, own: Counts) -> None:
    """Adds the scores of the clients' own models to clients.parquet, beside those of the model of all."""
    file = directory.path / "clients.parquet"
    table = parquet.read_table(file)
    table = table.append_column("personal_correct", pyarrow.array(own.correct, pyarrow.int64()))
    table = table.append_column("personal_loss", pyarrow.array(own.loss, pyarrow.float64()))
    stream = io.BytesIO()
    parquet.write_table(table, stream)
    write_atomically(file, stream.getvalue())


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


class Part:
    """Progress of one of the parts that a study runs in: its total is told together with the `others`' rounds."""

    def __init__(self, progress: Progress, others: int) -> None:
        self._progress, self._others = progress, others

    def total(self, n: int) -> None:
        """The part has `n` rounds."""
        self._progress.total(n + self._others)

    def advance(self, text: str) -> None:
        """One more round of the part is finished."""
        self._progress.advance(text)


class Counter:
    """Turns "this cell has come so far" into single steps of a progress bar. May be told from several threads."""

    def __init__(self, progress: Progress, folder: Path) -> None:
        self._progress, self._folder = progress, folder
        self._reached: dict[str, int] = {}
        self._lock = threading.Lock()

    def reach(self, cell: Cell, rounds: int) -> None:
        """So many rounds of the cell are finished, those told before included."""
        with self._lock:
            for _ in range(rounds - self._reached.get(cell.key, 0)):
                self._progress.advance(title(cell))
            self._reached[cell.key] = max(rounds, self._reached.get(cell.key, 0))

    def steps(self, cell: Cell) -> Steps:
        """What counts the rounds of a cell that runs in this process."""
        return _Steps(self, cell)

    @contextmanager
    def watching(self, running: Callable[[], Iterable[Cell]]) -> Iterator[None]:
        """Looks at the files of the running cells twice a second: workers need no channel to report by."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(POLL_SECONDS):
                for cell in list(running()):
                    self._look(cell)

        thread = threading.Thread(target=watch, name="fedstart-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _look(self, cell: Cell) -> None:
        file = self._folder / cell.key / "rounds.jsonl"
        if file.exists():
            self.reach(cell, min(cell.rounds, file.read_bytes().count(b"\n")))


class _Steps:
    def __init__(self, counter: Counter, cell: Cell) -> None:
        self._counter, self._cell, self._rounds = counter, cell, 0

    def advance(self, text: str) -> None:
        self._rounds += 1
        self._counter.reach(self._cell, self._rounds)
