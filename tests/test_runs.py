"""Run directories: whole files, exact checkpoints, and runs that go on with the same bits wherever they stopped."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from fedstart import files, runs, tree
from fedstart.algorithms.fedavg import FedAvg
from fedstart.data.federation import Federation
from fedstart.engines.local import LocalEngine
from fedstart.files import first_difference, write_atomically
from fedstart.models import Model
from fedstart.runs import Outcome, RunDirectory, execute
from fedstart.types import Client, Cohort, Cost, Counts, Diverged, Info, Plan, Round, State, Weights

SETTINGS = {"method": "heavy", "plan": {"lr": 0.1, "cohort": None}}


@dataclass(frozen=True)
class Heavy:
    """FedAvg with server momentum and an integer counter: a method that remembers."""

    def learn(self, client: Client, weights: Weights) -> Weights:
        return client.descend(weights)

    def step(self, state: State, cohort: Cohort) -> tuple[State, Info]:
        change = tree.subtract(cohort.mean(self.learn, state.weights), state.weights)
        speed = tree.add(change, tree.scale(state.memory["speed"], 0.7)) if "speed" in state.memory else change
        count = state.memory.get("count", {"rounds": torch.zeros((), dtype=torch.int64)})["rounds"] + 1
        memory = {"speed": speed, "count": {"rounds": count}, "nothing": {}}
        return State(tree.add(state.weights, speed), memory), {"speed": tree.norm(speed)}


def bits(weights: Weights) -> dict[str, tuple[torch.dtype, torch.Size, bytes]]:
    """Types, shapes and bytes; equal exactly when the weights are equal bit for bit."""
    dense = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}
    return {n: (t.dtype, t.shape, bytes(t.flatten().view(torch.uint8).tolist())) for n, t in dense.items()}


class Stop(Exception):
    """The power fails."""


class StopAfter:
    """Progress that ends the process's work after some rounds, as a kill would."""

    def __init__(self, rounds: int) -> None:
        self.left = rounds

    def advance(self, text: str) -> None:
        self.left -= 1
        if self.left == 0:
            raise Stop


class Case:
    """One federation, model and plan, run in a directory as often as it takes."""

    def __init__(self, federation: Federation, model: Model, plan: Plan, weights: Weights) -> None:
        self.federation, self.model, self.weights = federation, model, weights
        self.plan = replace(plan, rounds=6)

    def run(self, path: Path, algorithm: Any = None, **settings: Any) -> Outcome:
        directory = RunDirectory(path)
        directory.open(SETTINGS)
        with LocalEngine(1) as engine:
            outcome = execute(
                directory,
                algorithm or Heavy(),
                self.model,
                self.federation,
                self.plan,
                self.weights,
                engine,
                **{"evaluate": "test", **settings},
            )
        directory.finish()
        return outcome


@pytest.fixture
def case(federation: Federation, model: Model, plan: Plan, weights: Weights) -> Case:
    return Case(federation, model, plan, weights)


def contents(directory: Path) -> dict[str, bytes]:
    """Every file that a result depends on."""
    names = ("run.json", "rounds.jsonl", "checkpoint.safetensors", "clients.parquet")
    return {name: (directory / name).read_bytes() for name in names}


def visible(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    file = tmp_path / "a.json"
    write_atomically(file, "old")
    monkeypatch.setattr(files.os, call, full)
    with pytest.raises(OSError, match=r"cannot write .*a\.json: No space left on device") as caught:
        write_atomically(file, "new")
    assert caught.value.errno == errno.ENOSPC and "\n" not in str(caught.value)
    assert file.read_text() == "old" and visible(tmp_path) == {"a.json"}


def test_a_write_without_permission_or_place_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cannot write .*x: No such file or directory"):
        write_atomically(tmp_path / "missing" / "x", b"")
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OSError, match=r"cannot make .*taken"):
        RunDirectory(tmp_path / "taken").open(SETTINGS)


def test_open_takes_up_the_same_run_and_refuses_another(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "deep" / "run")
    assert directory.status == "new"
    directory.open(SETTINGS, {"train": "abc"})
    assert directory.status == "running"
    directory.open(SETTINGS, {"train": "abc"})
    with pytest.raises(ValueError, match=r"holds another run: settings\.plan\.lr is 0\.1 there, not 0\.2"):
        directory.open({**SETTINGS, "plan": {"lr": 0.2, "cohort": None}}, {"train": "abc"})
    with pytest.raises(ValueError, match=r'fingerprints\.train is "abc" there, not "abd"'):
        directory.open(SETTINGS, {"train": "abd"})
    directory.finish()
    directory.open(SETTINGS, {"train": "abc"})
    assert directory.status == "done"


def test_open_refuses_a_directory_of_other_files_and_a_damaged_one(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"is not empty and holds no run\.json"):
        RunDirectory(tmp_path).open(SETTINGS)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json: not readable as JSON"):
        RunDirectory(tmp_path).open(SETTINGS)


def test_open_clears_what_a_killed_write_left(tmp_path: Path) -> None:
    RunDirectory(tmp_path).open(SETTINGS)
    (tmp_path / ".checkpoint.safetensors.0badcafe.tmp").write_bytes(b"half")
    RunDirectory(tmp_path).open(SETTINGS)
    assert visible(tmp_path) == {"run.json"}


@pytest.mark.parametrize(
    ("held", "wanted", "words"),
    [
        ({"a": 1}, {"a": 1}, None),
        ({"a": {"b": [1]}}, {"a": {"b": [2]}}, "a.b is [1] there, not [2]"),
        ({"a": 1}, {"a": 1, "c": "x"}, 'c is absent there, not "x"'),
        ({"a": 1, "d": True}, {"a": 1}, "d is true there, not absent"),
    ],
)
def test_first_difference(held: Any, wanted: Any, words: str | None) -> None:
    assert first_difference(held, wanted) == words


TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
SHAPES = ((), (0,), (1,), (3,), (2, 3))
TREES = st.dictionaries(
    st.sampled_from(("conv.weight", "bn/running", "n", "")).filter(bool),
    st.builds(
        lambda seed, dtype, shape: (
            torch.randint(0, 255, (*shape, 8), generator=torch.Generator().manual_seed(seed)).to(torch.uint8),
            dtype,
        ),
        st.integers(0, 2**31),
        st.sampled_from(TYPES),
        st.sampled_from(SHAPES),
    ),
    max_size=3,
)


def from_bytes(trees: dict[str, tuple[torch.Tensor, torch.dtype]]) -> Weights:
    """Tensors of arbitrary bits, NaN and infinity among them, that are views with gaps."""
    made: Weights = {}
    for name, (raw, dtype) in trees.items():
        whole = raw % 2 == 1 if dtype == torch.bool else raw.view(dtype)
        made[name] = whole[..., 0]
    return made


@given(weights=TREES, memory=st.dictionaries(st.sampled_from(("m", "v.x", "weights")), TREES), number=st.integers(0, 3))
def test_a_checkpoint_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, weights: Any, memory: Any, number: int
) -> None:
    directory = RunDirectory(tmp_path_factory.mktemp("run"))
    state = State(from_bytes(weights), {key: from_bytes(tree) for key, tree in memory.items()})
    saved = [Round(n, state, {"x": 0.1 * n}, Cost(n, 1, 2, 3), (0, n), 1 / n) for n in range(1, number + 1)]
    for round in saved:
        directory.append_round(round)
    if saved:
        directory.checkpoint(saved[-1])
    found = directory.load_checkpoint()
    if not saved:
        assert found is None
        return
    assert found is not None
    assert replace(found, state=state) == saved[-1]
    assert bits(found.state.weights) == bits(state.weights)
    assert {k: bits(held) for k, held in found.state.memory.items()} == {k: bits(h) for k, h in state.memory.items()}


def test_a_run_writes_what_it_says(tmp_path: Path, case: Case) -> None:
    outcome = case.run(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert list(lines[0]) == ["round", "loss", "clients", "info", "cost", "accuracy", "test_loss"]
    assert outcome.cost.exchanges == 6 == sum(line["cost"]["exchanges"] for line in lines)
    table = parquet.read_table(tmp_path / "clients.parquet").to_pydict()
    assert list(table) == ["part", "client", "correct", "total", "loss"]
    assert outcome.counts is not None
    assert table["correct"] == outcome.counts.correct.tolist() and set(table["part"]) == {"test"}
    accuracy = 100 * (outcome.counts.correct / outcome.counts.total).mean()
    assert lines[-1]["accuracy"] == pytest.approx(accuracy)
    assert len(json.loads((tmp_path / "timing.json").read_text())["seconds"]) == 6
    assert visible(tmp_path) == {*contents(tmp_path), "timing.json"}


@pytest.mark.parametrize("every", [0.0, 1e9])
@pytest.mark.parametrize("stops", [(1,), (5,), (6,), (2, 4), (3, 3, 3)])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, case: Case, every: float, stops: tuple[int, ...]) -> None:
    whole = case.run(tmp_path / "whole", every=1e9)
    for rounds in stops:
        with pytest.raises(Stop):
            case.run(tmp_path / "parts", every=every, progress=StopAfter(rounds))
    parts = case.run(tmp_path / "parts", every=every)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert tree.fingerprint(parts.weights) == tree.fingerprint(whole.weights)
    assert parts.cost == whole.cost


def test_resume_starts_at_the_checkpoint_not_at_the_beginning(tmp_path: Path, case: Case) -> None:
    with pytest.raises(Stop):
        case.run(tmp_path, every=0.0, progress=StopAfter(4))
    saved = RunDirectory(tmp_path).load_checkpoint()
    assert saved is not None and saved.number == 4
    # The line behind the checkpoint, and what a crash left of the next one, are cut off.
    with open(tmp_path / "rounds.jsonl", "a") as stream:
        stream.write('{"round": 5, "loss": 99}\n{"round": 6, "lo')
    seconds = json.loads((tmp_path / "timing.json").read_text())["seconds"]
    case.run(tmp_path)
    assert json.loads((tmp_path / "timing.json").read_text())["seconds"][:4] == seconds
    assert '"loss": 99' not in (tmp_path / "rounds.jsonl").read_text()


def test_divergence_keeps_the_last_good_round(tmp_path: Path, case: Case) -> None:
    case.plan = replace(case.plan, lr=1e3, clip=None, momentum=0.9, rounds=60)
    with pytest.raises(Diverged, match=r"round \d+") as caught:
        case.run(tmp_path, FedAvg())
    directory = RunDirectory(tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["status"], record["error"]) == ("failed", str(caught.value))
    kept = directory.load_checkpoint()
    number = int(str(caught.value).split()[1].rstrip(":"))
    assert number > 1 and kept is not None and kept.number == number - 1 == len(directory.rounds())
    assert tree.is_finite(kept.state.weights)
    with pytest.raises(Diverged, match=f"round {number}"):
        case.run(tmp_path, FedAvg())


@pytest.mark.parametrize("good", [3, 6, 10])
def test_a_full_disk_loses_nothing_that_was_saved(
    tmp_path: Path, case: Case, monkeypatch: pytest.MonkeyPatch, good: int
) -> None:
    whole = case.run(tmp_path / "whole", every=1e9)
    calls, fsync = [0], os.fsync

    def fill_up(descriptor: int) -> None:
        calls[0] += 1
        fsync(descriptor) if calls[0] <= good else full()

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", fill_up)
        with pytest.raises(OSError, match="No space left on device"):
            case.run(tmp_path / "full", every=0.0)
    assert not [name for name in visible(tmp_path / "full") if name.endswith(".tmp")]
    case.run(tmp_path / "full", every=0.0)
    assert contents(tmp_path / "full") == contents(tmp_path / "whole")
    assert whole.cost.exchanges == 6


def test_damage_is_named_in_one_line(tmp_path: Path, case: Case) -> None:
    case.run(tmp_path)
    lines = (tmp_path / "rounds.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rounds.jsonl").write_text("".join(lines[:3] + lines[4:]))
    with pytest.raises(ValueError, match=r"rounds\.jsonl: a line before round 6 is missing; delete"):
        case.run(tmp_path)
    content = (tmp_path / "checkpoint.safetensors").read_bytes()
    for broken in (b"", content[:20], content[:-1], b"x" * len(content)):
        (tmp_path / "checkpoint.safetensors").write_bytes(broken)
        with pytest.raises(ValueError, match=r"checkpoint\.safetensors: damaged .*delete") as caught:
            case.run(tmp_path)
        assert "\n" not in str(caught.value)


def test_a_memory_name_that_the_file_cannot_hold_is_refused(tmp_path: Path, weights: Weights) -> None:
    directory = RunDirectory(tmp_path)
    round = Round(1, State(weights, {"a/b": weights}), {}, Cost(), (0,), 1.0)
    directory.append_round(round)
    with pytest.raises(ValueError, match="cannot be called 'a/b'"):
        directory.checkpoint(round)


def test_no_rounds_leave_the_weights_and_score_them(tmp_path: Path, case: Case) -> None:
    case.plan = replace(case.plan, rounds=0)
    outcome = case.run(tmp_path)
    assert tree.fingerprint(outcome.weights) == tree.fingerprint(case.weights)
    assert isinstance(outcome.counts, Counts) and outcome.cost == Cost()
    assert visible(tmp_path) == {"run.json", "clients.parquet", "timing.json"}


def test_without_evaluation_the_scores_are_null(tmp_path: Path, case: Case) -> None:
    assert case.run(tmp_path, evaluate=None).counts is None
    line = json.loads((tmp_path / "rounds.jsonl").read_text().splitlines()[0])
    assert line["accuracy"] is None and line["test_loss"] is None
    assert not (tmp_path / "clients.parquet").exists()


def test_a_directory_in_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "LOCK_SECONDS", 0.01)
    directory = RunDirectory(tmp_path)
    with (
        filelock.FileLock(tmp_path / ".lock"),
        pytest.raises(ValueError, match="is in use by another process"),
        directory.locked(),
    ):
        raise AssertionError("the lock was given twice")
    with directory.locked():
        directory.open(SETTINGS)
