"""Run directories: one training run on disk, which can be killed at any moment and goes on with the same bits.

run.json              settings, versions, data fingerprints, status (running, done, failed) and error
rounds.jsonl          one line per round
checkpoint.safetensors  the state after a round (see `checkpoints`)
clients.parquet       per-client scores of the final weights
timing.json           seconds per round; nothing that a result depends on
"""

from __future__ import annotations

import io
import json
import math
import platform
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import filelock
import torch

from fedstart import __version__, checkpoints
from fedstart.files import cannot, first_difference, read_json, remove_temporary_files, write_atomically, write_json
from fedstart.models import Model
from fedstart.scores import Scores
from fedstart.training import Engine, Who, train
from fedstart.types import Algorithm, Cost, Counts, Diverged, Plan, Round, State, Weights

FORMAT = 1
LOCK_SECONDS = 30.0


class Progress(Protocol):
    """What `execute` tells whoever shows progress: one call for each round. It returns and writes nothing."""

    def advance(self, text: str) -> None:
        """One more round is finished; `text` says where, in a few words."""
        ...


class Outcome(NamedTuple):
    """What a finished run leaves: final weights, their counts (None without evaluation), and the cost of all rounds."""

    weights: Weights
    counts: Counts | None
    cost: Cost


class RunDirectory:
    """The files of one run. Every file is written whole; `rounds.jsonl` grows by lines and is cut back on resume."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def status(self) -> str:
        """`new`, `running`, `done` or `failed`."""
        file = self.path / "run.json"
        return read_json(file)["status"] if file.exists() else "new"

    def kept(self, number: int) -> Path:
        """The file of the weights after round `number` (see `checkpoints`), where `execute` was asked to keep them."""
        return self.path / f"round-{number:05}.safetensors"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the directory against other processes; the lock goes with the process, however that ends.

        Raises ValueError when another process keeps it for more than half a minute.
        """
        self._make()
        try:
            with filelock.FileLock(self.path / ".lock", timeout=LOCK_SECONDS):
                yield
        except filelock.Timeout:
            raise ValueError(f"{self.path} is in use by another process") from None

    def open(self, settings: Mapping[str, Any], fingerprints: Mapping[str, str] | None = None) -> None:
        """Creates the run, or takes up the one that is there.

        Raises ValueError, naming the first setting that differs, when a run with other settings or data is there,
        and when the directory holds other files.
        """
        self._make()
        remove_temporary_files(self.path)
        wanted = json.loads(json.dumps({"settings": settings, "fingerprints": fingerprints or {}}, allow_nan=False))
        file = self.path / "run.json"
        if file.exists():
            held = read_json(file)
            if difference := first_difference({key: held.get(key) for key in wanted}, wanted):
                raise ValueError(f"{self.path} holds another run: {difference}; choose another directory")
            if held["status"] == "done":
                return
        elif any(entry.name != ".lock" for entry in self.path.iterdir()):
            raise ValueError(f"{self.path} is not empty and holds no run.json; choose another directory")
        versions = {"fedstart": __version__, "torch": torch.__version__, "python": platform.python_version()}
        write_json(file, {"format": FORMAT, **wanted, "versions": versions, "status": "running", "error": None})

    def append_round(
        self,
        round: Round,
        extra: Mapping[str, float | None] | None = None,
        unscored: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        """Adds the line of a round; `extra` holds further numbers (accuracy in percent, test loss).

        `unscored` says of each client that gave no scores why it did not.
        """
        line = {
            "round": round.number,
            "loss": _number(round.loss),
            "clients": list(round.clients),
            "info": {name: _number(value) for name, value in round.info.items()},
            "cost": asdict(round.cost),
            **({"missing": {str(client): why for client, why in round.missing.items()}} if round.missing else {}),
            **({"unscored": {str(client): why for client, why in unscored.items()}} if unscored else {}),
            **{name: _number(value) for name, value in (extra or {}).items()},
        }
        file = self.path / "rounds.jsonl"
        try:
            with open(file, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise cannot("write", file, error) from None

    def rounds(self) -> list[dict[str, Any]]:
        """The lines of `rounds.jsonl`, in order, up to the first that a crash left unreadable."""
        file = self.path / "rounds.jsonl"
        lines: list[dict[str, Any]] = []
        for line in file.read_bytes().splitlines(keepends=True) if file.exists() else ():
            try:
                lines.append(json.loads(line.removesuffix(b"\n") if line.endswith(b"\n") else b""))
            except ValueError:
                break
        return lines

    def checkpoint(self, round: Round) -> None:
        """Saves the state after a round, whose line must be in `rounds.jsonl`, which holds all else about it."""
        self._cut_rounds(round.number)
        checkpoints.write(self.path / "checkpoint.safetensors", round)

    def load_checkpoint(self) -> Round | None:
        """The round that was saved last, bit for bit, or None; lines behind it are cut from `rounds.jsonl`.

        Raises ValueError for a file that is damaged.
        """
        file = self.path / "checkpoint.safetensors"
        if not file.exists():
            self._cut_rounds(0)
            return None
        number, state, memories = checkpoints.read(file)
        line = self._cut_rounds(number)[-1]
        loss = float("nan") if line["loss"] is None else line["loss"]
        info = {name: float("nan") if value is None else value for name, value in line["info"].items()}
        missing = {int(client): why for client, why in line.get("missing", {}).items()}
        return Round(number, state, info, Cost(**line["cost"]), tuple(line["clients"]), loss, missing, memories)

    def write_clients(self, parts: Mapping[str, Counts]) -> None:
        """Writes per-client scores, one row per part and client: part, client, correct, total, loss (a sum)."""
        import pyarrow
        from pyarrow import parquet

        columns: dict[str, list[Any]] = {"part": [], "client": [], "correct": [], "total": [], "loss": []}
        for part, counts in parts.items():
            columns["part"] += [part] * len(counts.total)
            columns["client"] += range(len(counts.total))
            for name in ("correct", "total", "loss"):
                columns[name] += getattr(counts, name).tolist()
        types = {"part": pyarrow.string(), "loss": pyarrow.float64()}
        table = pyarrow.table({n: pyarrow.array(v, types.get(n, pyarrow.int64())) for n, v in columns.items()})
        stream = io.BytesIO()
        parquet.write_table(table, stream)
        write_atomically(self.path / "clients.parquet", stream.getvalue())

    def finish(self) -> None:
        """Marks the run as done; nothing in it changes any more."""
        self._mark("done", None)

    def fail(self, error: Exception) -> None:
        """Marks the run as failed and keeps what it has; opening it again takes it up at its checkpoint."""
        self._mark("failed", str(error))

    def _mark(self, status: str, error: str | None) -> None:
        file = self.path / "run.json"
        write_json(file, {**read_json(file), "status": status, "error": error})

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot("make", self.path, error) from None

    def _cut_rounds(self, number: int) -> list[dict[str, Any]]:
        lines = self.rounds()
        if [line["round"] for line in lines[:number]] != list(range(1, number + 1)):
            raise ValueError(
                f"{self.path / 'rounds.jsonl'}: a line before round {number} is missing; "
                "delete the directory to start this run again"
            )
        file = self.path / "rounds.jsonl"
        kept = "".join(json.dumps(line) + "\n" for line in lines[:number])
        if number or file.exists():
            write_atomically(file, kept)
        return lines[:number]


def execute(
    directory: RunDirectory,
    algorithm: Algorithm,
    model: Model,
    federation: Who,
    plan: Plan,
    weights: Weights,
    engine: Engine[Who],
    *,
    evaluate: str | None = None,
    every: float = 30.0,
    keep: Collection[int] = (),
    progress: Progress | None = None,
) -> Outcome:
    """Runs an algorithm in an opened run directory to its end, from its last checkpoint if there is one.

    With `evaluate`, the federation's part of that name is scored after each round, and the final per-client
    counts are written. A checkpoint is saved when `every` seconds have passed since the last, and at the end;
    the result does not depend on when, nor on interruptions. The weights after the rounds that `keep` names stay, as
    `directory.kept(number)`. The caller marks the run with `finish()` once he has written his own files. Raises
    Diverged after saving the last good round and marking the run as failed.
    """
    last = saved = directory.load_checkpoint()
    counts = None
    seconds = _timing(directory)[: last.number if last else 0]
    if progress:
        for _ in range(last.number if last else 0):
            progress.advance(federation.name)
    started = kept = time.monotonic()
    try:
        for last in train(algorithm, model, federation, plan, weights, engine, saved):
            counts = engine.evaluate(model, federation, last.state.weights, evaluate) if evaluate else None
            directory.append_round(last, _scored(counts), engine.unscored)
            if last.number in keep:
                bare = replace(last, state=State(last.state.weights), memories={})
                checkpoints.write(directory.kept(last.number), bare)
            now = time.monotonic()
            seconds.append(round(now - started, 4))
            started = now
            if now - kept >= every:
                directory.checkpoint(last)
                write_json(directory.path / "timing.json", {"seconds": seconds})
                saved, kept = last, now
            if progress:
                progress.advance(federation.name)
    except Diverged as error:
        if last is not None and last is not saved:
            directory.checkpoint(last)
        directory.fail(error)
        raise
    if last is not None and last is not saved:
        directory.checkpoint(last)
    write_json(directory.path / "timing.json", {"seconds": seconds})
    final = last.state.weights if last else weights
    if evaluate:
        counts = counts or engine.evaluate(model, federation, final, evaluate)
        directory.write_clients({evaluate: counts})
    return Outcome(final, counts, total_cost(directory))


def total_cost(directory: RunDirectory) -> Cost:
    """The cost of all rounds in a run directory."""
    return sum((Cost(**line["cost"]) for line in directory.rounds()), Cost())


def _scored(counts: Counts | None) -> dict[str, float | None]:
    if counts is None:
        return {"accuracy": None, "test_loss": None}
    scores = Scores(counts)
    return {"accuracy": scores.mean, "test_loss": scores.loss}


def _number(value: float | None) -> float | None:
    """A number that JSON knows: NaN and infinity become None."""
    return None if value is None or not math.isfinite(value) else value


def _timing(directory: RunDirectory) -> list[float]:
    file = directory.path / "timing.json"
    return read_json(file)["seconds"] if file.exists() else []
