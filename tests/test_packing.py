"""Cells on cores: in which order, on how many threads, in which processes, and what an edited study runs anew."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import joblib
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from fedstart import study
from fedstart.study.cells import Cell, Material, plan_cells
from fedstart.study.packing import Load, Packing, load
from pictures import encode, pictures, write

needs_two_cores = pytest.mark.skipif(joblib.cpu_count() < 2, reason="no workers on one core")

TABLES: dict[str, Any] = {
    "name": "packed",
    "seeds": [0],
    "data": {"source": "digits"},
    "model": {"name": "mlp", "settings": {"hidden": [8]}},
    "pretraining": {
        "held_out": 4,
        "clients": 8,
        "partition": {"name": "dirichlet", "alpha": 0.5},
        "plan": {"rounds": 4, "cohort": 3, "local_steps": 3, "lr": 0.1},
    },
    "downstream": {
        "tasks": 2,
        "classes_per_task": 3,
        "clients": 4,
        "partitions": [{"name": "dirichlet", "alpha": 0.5}],
        "plan": {"rounds": 3, "local_epochs": 1, "lr": 0.1},
    },
    "starts": [{"method": "random"}, {"method": "centralized", "plan": {"rounds": 2}}, {"method": "coprefl"}],
    "algorithms": [{"method": "fedavg"}],
    "execution": {"precision": "float32", "together": 1, "channels_last": True, "linear": "torch"},
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "packed.toml"
    path.write_text(tomli_w.dumps(TABLES))
    return path


@pytest.fixture(scope="module")
def finished(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study, run in one process. Tests only read it."""
    return study.run(study.load(file), tmp_path_factory.mktemp("study") / "whole")


def pretraining(name: str, rounds: int = 1) -> Cell:
    return Cell("pretrain", name, 0, name, rounds)


def downstream(origin: str, number: int = 0) -> Cell:
    return Cell("downstream", origin, 0, f"{origin}-{number}", 1, origin=origin)


class Machine:
    """Runs a packing on a clock of its own: a cell takes its work divided by its threads, and an origin may fail.

    `began` and `ended` are the times of each cell by its key; `threads` what it ran on. What must hold whenever
    cells start is checked here.
    """

    def __init__(self, loads: dict[Cell, Load], jobs: int, cores: int, failing: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        self.began: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.threads: dict[str, int] = {}
        packing, clock = Packing(loads, jobs=jobs, cores=cores), 0.0
        running: dict[Cell, float] = {}
        while True:
            for cell, threads in packing.start():
                assert cell.key not in self.began
                assert 1 <= threads <= max(1, loads[cell].width)
                self.began[cell.key], self.threads[cell.key] = clock, threads
                running[cell] = clock + loads[cell].work / threads
            if not running:
                return
            busy = sum(self.threads[cell.key] for cell in running)
            assert busy <= cores and len(running) <= min(jobs, cores)
            ready = [c for c in loads if c.key not in self.began and c.origin in {"", *self.ended} - failing]
            assert busy == cores or len(running) == jobs or not ready
            clock = min(running.values())
            for cell in [cell for cell, end in running.items() if end == clock]:
                self.ended[cell.key] = running.pop(cell)
                packing.finish(cell, failed=cell.key in failing)

    @property
    def end(self) -> float:
        return max(self.ended.values())


LOADS = st.builds(Load, st.floats(0, 1000), st.integers(1, 12))


@given(
    trees=st.lists(st.tuples(LOADS, st.lists(LOADS, max_size=5)), max_size=6),
    jobs=st.integers(1, 9),
    cores=st.integers(1, 9),
    failing=st.sets(st.integers(0, 5)),
)
def test_no_core_is_used_twice_or_left_idle(
    trees: list[tuple[Load, list[Load]]], jobs: int, cores: int, failing: set[int]
) -> None:
    loads: dict[Cell, Load] = {}
    for number, (first, later) in enumerate(trees):
        loads[pretraining(f"s{number}")] = first
        loads |= {downstream(f"s{number}", place): load for place, load in enumerate(later)}
    machine = Machine(loads, jobs, cores, {f"s{number}" for number in failing})
    dropped = {cell.key for cell in loads if cell.origin in {f"s{number}" for number in failing}}
    assert set(machine.ended) == {cell.key for cell in loads} - dropped
    for cell in loads:
        if cell.kind == "downstream" and cell.key in machine.began:
            assert machine.began[cell.key] >= machine.ended[cell.origin]
    assert machine.threads == Machine(loads, jobs, cores, {f"s{number}" for number in failing}).threads


def test_a_long_start_holds_up_no_other_cell() -> None:
    loads = {pretraining("long"): Load(10, 1), pretraining("short"): Load(1, 1)}
    loads |= {downstream("short", number): Load(3, 1) for number in range(3)}
    loads[downstream("long")] = Load(1, 1)
    machine = Machine(loads, 2, 2)
    assert machine.end == 11  # a barrier between the two kinds would make it 10 + 6
    assert list(machine.began)[:2] == ["long", "short"]


def test_what_unlocks_the_longest_way_comes_first() -> None:
    loads = {pretraining("a"): Load(2, 1), pretraining("b"): Load(1, 1), downstream("b"): Load(9, 1)}
    loads |= {Cell("downstream", "done", 0, f"d{n}", 1, origin="done"): Load(5, 1) for n in range(2)}
    assert list(Machine(loads, 1, 1).began) == ["b", "b-0", "d0", "d1", "a"]


def test_idle_cores_help_the_last_cell() -> None:
    equal = {pretraining(name): Load(1, 8) for name in "abc"}
    assert Machine(equal, 2, 2).threads == {"a": 1, "b": 1, "c": 2}
    assert Machine({pretraining("a"): Load(1, 8)}, 4, 4).threads == {"a": 4}
    assert Machine({pretraining("a"): Load(1, 1)}, 4, 4).threads == {"a": 1}, "one client is one thread"
    assert Machine(equal, 2, 8).threads == {"a": 4, "b": 4, "c": 8}
    assert Machine(equal, 8, 2).threads == {"a": 1, "b": 1, "c": 2}, "more jobs than cores"


def test_a_cell_longer_than_its_share_of_the_cores_gets_more_of_them() -> None:
    loads = {pretraining("huge"): Load(80, 20), **{pretraining(name): Load(5, 20) for name in "abcd"}}
    machine = Machine(loads, 2, 2)
    assert (machine.threads["huge"], machine.end) == (2, 50)
    loads[pretraining("huge")] = Load(20, 20)
    machine = Machine(loads, 2, 2)
    assert (machine.threads["huge"], machine.end) == (1, 20)


def test_threads_that_are_asked_for_are_kept() -> None:
    packing = Packing({pretraining(name): Load(1, 1) for name in "abc"}, jobs=3, cores=1, threads=2)
    assert [threads for _, threads in packing.start()] == [2, 2, 2]


def test_load_is_rounds_times_cohort_times_passes(file: Path) -> None:
    material = Material(study.load(file, None, ["algorithms.fedavg.plan.cohort=2"]))
    loads = {cell.start + cell.kind[0]: load(material, cell) for cell in plan_cells(material) if cell.task == 0}
    assert loads["randomp"].work == 0
    assert loads["coprefld"] == loads["randomd"]
    assert loads["coprefl" + "p"] == Load(4 * 3 * 3 * 32, 3)
    assert loads["centralizedp"] == Load(2 * 3 * 32, 1)
    task = material.tasks("dirichlet(0.5)", 0)[0]
    assert loads["randomd"].width == 2
    assert loads["randomd"].work == pytest.approx(3 * 2 * task.parts["train"].sizes.mean())
    stacked = Material(study.load(file, None, ["execution.together=2"]))
    assert {load(stacked, cell).width for cell in plan_cells(stacked) if cell.start == "coprefl"} == {2}


@needs_two_cores
def test_downstream_cells_run_beside_a_long_start(file: Path, tmp_path: Path) -> None:
    study.run(study.load(file), tmp_path / "warm", jobs=2)
    starts = 'starts=[{method="random"}, {method="coprefl", plan={rounds=120}}]'
    words = [starts, "downstream.tasks=4", "downstream.plan.rounds=12"]
    study.run(study.load(file, None, words), tmp_path / "out", jobs=2)
    ended = {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.glob("out/cells/*/run.json")}
    (long,) = [when for key, when in ended.items() if key.startswith("pretrain-coprefl")]
    assert min(when for key, when in ended.items() if key.startswith("random-")) < long


EDITS = {
    "start": ('starts=[{method="random"}, {method="centralized", plan={rounds=2}}, {method="coprefl"}, '
              '{method="fedavg"}]', 1 + 2),
    "task": ("downstream.tasks=3", 3),
    "algorithm": ('algorithms=[{method="fedavg"}, {method="fedprox"}]', 2 * 3),
    "seed": ("seeds=[0, 1]", 3 + 2 * 3),
    "partition": ('downstream.partitions=[{name="dirichlet", alpha=0.5}, {name="iid"}]', 2 * 3),
    "nothing": ("seeds=[0]", 0),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "new"), EDITS.values(), ids=EDITS)
def test_an_edited_study_runs_only_what_is_new(file: Path, finished: Path, tmp_path: Path, edit: str, new: int) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    before = _written(out)
    study.run(study.load(file, None, [edit]), out)
    after = _written(out)
    assert len(before) == 9 and before.items() <= after.items()
    assert len(after) - len(before) == new
    assert not (out / "unused").exists()


def _written(out: Path) -> dict[str, int]:
    """When each cell was last marked."""
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("cells/*/run.json")}


def _workers() -> list[int]:
    from joblib.externals.loky import reusable_executor

    executor = reusable_executor._executor
    return [] if executor is None else list(executor._processes)


@needs_two_cores
def test_a_killed_worker_ends_the_study_in_one_line(file: Path, tmp_path: Path, finished: Path) -> None:
    def kill() -> None:
        while not list(out.glob("cells/*/rounds.jsonl")):
            time.sleep(0.01)
        os.kill(_workers()[0], signal.SIGKILL)

    out, killer = tmp_path / "out", threading.Thread(target=kill)
    long = study.load(file, None, ["downstream.plan.rounds=100000"])
    killer.start()
    with pytest.raises(OSError, match=r"^a worker process was killed, perhaps for lack of memory; run again"):
        study.run(long, out, jobs=2)
    killer.join()
    study.run(study.load(file), out, jobs=2)
    assert (out / "summary.json").read_bytes() == (finished / "summary.json").read_bytes()


@needs_two_cores
def test_an_error_in_a_worker_ends_the_others(file: Path, tmp_path: Path) -> None:
    loaded = study.load(file, None, ["downstream.plan.rounds=100000"])
    key = next(cell.key for cell in plan_cells(Material(loaded)) if cell.kind == "downstream")
    (tmp_path / "cells" / key).mkdir(parents=True)
    (tmp_path / "cells" / key / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"is not empty and holds no run\.json"):
        study.run(loaded, tmp_path, jobs=2)
    assert not [pid for pid in _workers() if Path(f"/proc/{pid}").exists()]


@needs_two_cores
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_share_the_decoded_images(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSTART_CACHE", str(tmp_path / "cache"))
    images = [encode(image) for image in pictures(300)]
    names = [str(label) for label in range(10)]
    write(tmp_path / "data" / "train.parquet", images, {"label": names}, label=[row % 10 for row in range(300)])
    loaded = study.load(file, None, [f'data.source="path:{tmp_path}/data"'])
    study.run(loaded, tmp_path / "out", jobs=2)
    held = [_mapped(pid, "pixels.npy") for pid in _workers()]
    assert len(held) == 2
    for sizes in held:
        assert sizes["Rss"] > 0 and sizes["Private_Dirty"] == 0


def _mapped(pid: int, name: str) -> dict[str, int]:
    """Kilobytes of a file that a process has mapped, by the names of /proc/PID/smaps."""
    sizes: dict[str, int] = {}
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            inside = bool(rest) and rest[-1].endswith(name)
        elif inside and rest[-1] == "kB":
            sizes[first[:-1]] = sizes.get(first[:-1], 0) + int(rest[0])
    return sizes
