"""How long a study would take: which cells are timed, and what is counted from that. Clocks are the tests' own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedstart import study
from fedstart.cli import main
from fedstart.schedules import Adaptive
from fedstart.study import estimating
from fedstart.study.cells import Material, Run, plan_cells
from fedstart.study.estimating import Speed, estimate, line, local_steps, measure
from fedstart.types import Diverged, Plan

EXECUTION = {"precision": "float32", "together": 1, "channels_last": True, "linear": "torch"}
TABLES: dict[str, Any] = {
    "name": "timed",
    "seeds": [0, 1],
    "data": {"source": "synthetic:classes=6,examples=240,size=3"},
    "model": {"name": "mlp", "settings": {"hidden": [4]}},
    "pretraining": {
        "held_out": 2,
        "clients": 4,
        "partition": {"name": "dirichlet", "alpha": 0.5, "minimum": 4},
        "withheld": 0.1,
        "plan": {"rounds": 4, "cohort": 3, "local_epochs": 2, "batch_size": 5, "lr": 0.1},
    },
    "downstream": {
        "tasks": 2,
        "classes_per_task": 2,
        "clients": 3,
        "partitions": [{"name": "iid"}, {"name": "dirichlet", "alpha": 1.0}],
        "plan": {"rounds": 6, "local_steps": 7, "lr": 0.1},
    },
    "starts": [{"method": "random"}, {"method": "centralized", "plan": {"rounds": 2}}, {"method": "coprefl"}],
    "algorithms": [{"method": "fedavg", "name": "tau 7"}, {"method": "fedavg", "name": "tau 20"}],
    "execution": EXECUTION,
}
TABLES["algorithms"][1]["plan"] = {"rounds": 2, "local_steps": 20, "lr": 0.05}
CHOOSING = {
    "starts": [
        {"method": "random"},
        {"method": "coprefl", "choose": {"settings.balance": [0.25, 0.5], "settings.order": [1, 2]}},
    ],
    "selection": {"classes": 2, "tasks": 1},
}


class Stopwatch:
    """Takes each kind to be as fast as it is told, and keeps what it was asked for."""

    def __init__(self, speed: Speed) -> None:
        self.speed = speed
        self.asked: list[Run] = []
        self.threads: set[int | None] = set()

    def __call__(self, run: Run, threads: int | None) -> Speed:
        self.asked.append(run)
        self.threads.add(threads)
        return self.speed


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in a directory of its own, on a machine of eight cores."""
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setenv("FEDSTART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(estimating.joblib, "cpu_count", lambda: 8)
    return tmp_path / "home"


def load(place: Path, *words: str, **changes: Any) -> study.Study:
    file = place.parent / "study.toml"
    file.write_text(tomli_w.dumps(TABLES | changes))
    return study.load(file, None, words)


def run_of(loaded: study.Study, start: str) -> Run:
    return Material(loaded).pretraining_run(start, loaded.seeds[0])


def task_of(loaded: study.Study, algorithm: str = "tau 7") -> Run:
    return Material(loaded).downstream_run("random", algorithm, "iid", 0, loaded.seeds[0], "")


# What is timed


def test_each_kind_is_timed_once_at_the_first_seed(home: Path) -> None:
    watch = Stopwatch(Speed(1.0, 1.0))
    found = estimate(load(home), speed=watch)
    assert [(row.cells, row.number, row.rounds) for row in found.rows] == [
        ("pre-training centralized", 2, 2),
        ("pre-training coprefl", 2, 4),
        ("downstream tau 7", 2 * 2 * 2 * 3, 6),
        ("downstream tau 20", 2 * 2 * 2 * 3, 2),
    ]
    # Both algorithms are fedavg, with other numbers of steps and rates: one measurement tells of both.
    assert [run.method.entry.name for run in watch.asked] == ["centralized", "coprefl", "tau 7"]
    first = Material(load(home))
    wanted = [first.pretraining_run("centralized", 0), first.pretraining_run("coprefl", 0)]
    assert [run.plan.seed for run in watch.asked[:2]] == [run.plan.seed for run in wanted]


@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        ((), 3),
        (("algorithms.tau 20.plan.momentum=0.9",), 4),
        (("algorithms.tau 20.plan.cohort=2",), 4),
        (("algorithms.tau 20.plan.batch_size=8",), 4),
        (('algorithms.tau 20.plan.schedule={kind="adaptive"}',), 4),
        (('algorithms.tau 20.plan.schedule={kind="cosine"}',), 3),
        (("algorithms.tau 20.method=fedprox",), 4),
        (("starts.coprefl.model.name=mlp", "starts.coprefl.model.settings.hidden=[9]"), 4),
        (('starts=[{method="coprefl", name="a"}, {method="coprefl", name="b", settings={balance=0.1}}]',), 2),
        (('starts=[{method="coprefl", name="a"}, {method="coprefl", name="b", settings={balance=0}}]',), 3),
        (('starts=[{method="coprefl", name="a"}, {method="coprefl", name="b", settings={order=2}}]',), 3),
        (('starts=[{method="coprefl", name="a"}, {method="coprefl", name="b", pretraining={clients=6}}]',), 3),
    ],
)
def test_a_kind_is_what_changes_the_time_of_a_step(home: Path, words: tuple[str, ...], kinds: int) -> None:
    watch = Stopwatch(Speed(1.0, 1.0))
    estimate(load(home, *words), speed=watch)
    assert len(watch.asked) == kinds


def test_cells_of_another_architecture_have_a_row_of_their_own(home: Path) -> None:
    loaded = load(home, "starts.coprefl.model.name=mlp", "starts.coprefl.model.settings.hidden=[9]")
    names = [row.cells for row in estimate(loaded, speed=Stopwatch(Speed(1.0, 1.0))).rows]
    assert names[2:4] == ["downstream tau 7 from random, centralized", "downstream tau 7 from coprefl"]


@pytest.mark.parametrize(
    ("asked", "jobs", "threads"),
    [
        ({"jobs": 1}, 1, None),
        ({"jobs": 2}, 2, 4),
        ({"jobs": 3}, 3, 2),
        ({"jobs": 30}, 8, 1),
        ({"jobs": 30, "threads": 2}, 30, 2),
        ({"jobs": 500, "threads": 2}, 52, 2),
    ],
)
def test_a_cell_is_timed_on_the_threads_that_it_will_have(
    home: Path, asked: dict[str, int], jobs: int, threads: int | None
) -> None:
    watch = Stopwatch(Speed(1.0, 1.0))
    found = estimate(load(home), jobs=asked["jobs"], threads=asked.get("threads"), speed=watch)
    assert (found.jobs, found.threads, found.cores) == (jobs, threads, 8)
    assert watch.threads == {threads}


# What is counted


def test_the_time_is_that_of_all_rounds(home: Path) -> None:
    found = estimate(load(home), jobs=2, speed=Stopwatch(Speed(2.0, 3.0, evaluation=5.0)))
    rows = {row.cells: row for row in found.rows}
    assert rows["downstream tau 7"].local_steps == 7
    assert rows["downstream tau 7"].round_seconds == 2 + 7 * 3 + 5
    assert rows["downstream tau 7"].seconds == 24 * 6 * 28 / 2
    assert rows["downstream tau 20"].seconds == 24 * 2 * (2 + 20 * 3 + 5) / 2
    assert found.seconds == pytest.approx(sum(row.seconds for row in found.rows))
    assert found.notes == ()


@pytest.mark.parametrize(("start", "part", "share"), [("coprefl", "support", 0.8), ("centralized", "train", 1.0)])
def test_passes_are_steps_by_the_size_of_each_client(home: Path, start: str, part: str, share: float) -> None:
    run = run_of(load(home), start)
    sizes = [len(run.federation.positions("train", client)) for client in range(run.federation.clients)]
    assert len(sizes) == (4 if start == "coprefl" else 1) and len(set(sizes)) == len(sizes)
    parts = [size - max(1, round((1 - share) * size)) if share < 1 else size for size in sizes]
    expected = sum(2 * math.ceil(size / 5) for size in parts) / len(sizes)
    assert local_steps(run, part) == expected


def test_each_seed_has_its_own_number_of_steps(home: Path) -> None:
    loaded = load(home)
    material = Material(loaded)
    each = [local_steps(material.pretraining_run("coprefl", seed), "train") for seed in (0, 1)]
    assert each[0] != each[1]
    assert estimate(loaded, speed=Stopwatch(Speed(0.0, 1.0))).rows[1].local_steps == sum(each) / 2


@pytest.mark.parametrize(
    ("schedule", "steps", "noted"),
    [
        ('{kind="step", factor=0.5, every=2}', [8, 8, 4, 4, 2, 2], False),
        ('{kind="cosine", final=2, rounds=2}', [8, 5, 2, 2, 2, 2], False),
        ('{kind="plateau"}', [8] * 6, True),
        ('{kind="adaptive", most=3}', [3] * 6, True),
    ],
)
def test_the_steps_of_a_schedule(home: Path, schedule: str, steps: list[int], noted: bool) -> None:
    plan = "algorithms.tau 7.plan"
    loaded = load(home, f"{plan}.local_steps=8", f"{plan}.schedule={schedule}")
    assert local_steps(task_of(loaded), "train") == sum(steps) / 6
    notes = estimate(loaded, speed=Stopwatch(Speed(1.0, 1.0))).notes
    assert [("first round" in note and "tau 7" in note and "tau 20" not in note) for note in notes] == [True] * noted


def test_what_is_left_out_is_said(home: Path) -> None:
    words = ("downstream.personal.local_steps=2", "downstream.watch={at=[0], probes.movement={}}")
    (note,) = estimate(load(home, *words), speed=Stopwatch(Speed(1.0, 1.0))).notes
    assert note == "Not counted: the probes on the way, each client's own fine-tuning."
    (note,) = estimate(load(home, words[0]), speed=Stopwatch(Speed(1.0, 1.0))).notes
    assert note == "Not counted: each client's own fine-tuning."


def test_the_candidates_are_part_of_it(home: Path) -> None:
    watch = Stopwatch(Speed(1.0, 0.0))
    found = estimate(load(home, **CHOOSING), speed=watch)
    chosen = {row.cells: row.number for row in found.rows if row.cells.startswith("choosing: ")}
    # One seed and one task for four candidates; two algorithms on two partitions.
    names = [f"choosing: pre-training coprefl balance={b}, order={o}" for b in (0.25, 0.5) for o in (1, 2)]
    assert chosen == dict.fromkeys(names, 1) | {f"choosing: downstream {name}": 16 // 2 for name in ("tau 7", "tau 20")}
    assert [row.cells for row in found.rows][6:] == ["pre-training coprefl", "downstream tau 7", "downstream tau 20"]
    # Pre-training of both orders on two classes, and of the first on four; all tasks have two classes.
    assert len(watch.asked) == 4
    assert found.seconds == 4 * 4 + 8 * (6 + 2) + 2 * 4 + 16 * (6 + 2)
    assert found.notes == ("Where settings are chosen, the study proper is counted with the first candidate.",)


def test_candidates_that_cannot_run_are_told(home: Path) -> None:
    loaded = load(home, **(CHOOSING | {"selection": {"classes": 3}}))
    with pytest.raises(ValueError, match=r"\[selection\].* 3 validation classes") as caught:
        estimate(loaded, speed=Stopwatch(Speed(1.0, 1.0)))
    assert "\n" not in str(caught.value) and str(caught.value).count("[selection]") == 1


def test_the_cells_are_those_of_the_study(home: Path) -> None:
    loaded = load(home)
    found = estimate(loaded, speed=Stopwatch(Speed(1.0, 1.0)))
    cells = plan_cells(Material(loaded))
    assert sum(row.number * row.rounds for row in found.rows) == sum(cell.rounds for cell in cells)
    idle = ("pretraining", "downstream", "starts.centralized", "algorithms.tau 20")
    nothing = load(home, *(f"{entry}.plan.rounds=0" for entry in idle))
    assert estimate(nothing, jobs=2).seconds == 0


@pytest.mark.parametrize(("jobs", "message"), [(0, "jobs must be at least 1, got 0"), (-3, "got -3")])
def test_wrong_jobs(home: Path, jobs: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate(load(home), jobs=jobs)


# The clock


def clocked(fixed: float, step: float, first: float = 0.0) -> tuple[Callable[[int], float], list[int]]:
    """Rounds that take `fixed + n * step` seconds, the first of them `first` more; and the n that were asked for."""
    asked: list[int] = []

    def seconds(steps: int) -> float:
        asked.append(steps)
        return fixed + steps * step + (first if len(asked) == 1 else 0.0)

    return seconds, asked


@pytest.mark.parametrize(
    ("fixed", "step", "rounds"),
    [
        (0.01, 0.002, [1, 1, 1, 20, 20]),
        (0.1, 0.15, [1, 1, 1, 8, 8]),
        (0.5, 2.0, [1, 1, 1, 3, 3]),
        (1.0, 6.0, [1, 1, 3]),
        (5.0, 30.0, [1, 3]),
    ],
)
def test_two_lengths_tell_round_and_step_apart(fixed: float, step: float, rounds: list[int]) -> None:
    seconds, asked = clocked(fixed, step)
    assert line(seconds) == pytest.approx((fixed, step))
    assert asked == rounds


def test_the_first_round_of_all_does_not_count() -> None:
    assert line(clocked(0.1, 0.15, first=3.0)[0]) == pytest.approx((0.1, 0.15))


def test_no_time_is_negative() -> None:
    assert line(lambda steps: 2.0 - 0.1 * steps) == (1.9, 0.0)
    assert line(lambda steps: float(steps - 0.9)) == pytest.approx((0.0, 1.0))


class Clock:
    """Stands for time, rounds and scoring: a round takes 1 s and 0.25 s for each step, a scoring 4 s."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, diverges: bool = False) -> None:
        self.now, self.plans, self.diverges = 0.0, [], diverges
        monkeypatch.setattr(estimating.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(estimating, "train", self.train)
        monkeypatch.setattr(estimating.LocalEngine, "evaluate", self.evaluate)
        self.plans: list[Plan]

    def train(self, method: Any, model: Any, federation: Any, plan: Plan, weights: Any, engine: Any) -> list[int]:
        self.plans.append(plan)
        self.now += plan.rounds * (1 + 0.25 * (plan.local_steps or math.nan))
        if self.diverges:
            raise Diverged("round 1")
        return [1]

    def evaluate(self, *_: Any) -> None:
        self.now += 4.0


@pytest.mark.parametrize("diverges", [False, True])
def test_what_is_measured(home: Path, monkeypatch: pytest.MonkeyPatch, diverges: bool) -> None:
    loaded = load(home, 'algorithms.tau 7.plan.schedule={kind="step", least=5}')
    clock = Clock(monkeypatch, diverges=diverges)
    assert measure(task_of(loaded), 1) == Speed(1.0, 0.25, 4.0, "train")
    # The schedule would not let a round have one step.
    assert {(plan.rounds, plan.local_steps, plan.schedule) for plan in clock.plans} == {(1, 1, None), (1, 3, None)}
    assert measure(run_of(loaded, "centralized"), 1) == Speed(1.0, 0.25, 0.0, "train")


def test_an_adaptive_schedule_compares_updates_while_it_is_timed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(home, 'algorithms.tau 7.plan.schedule={kind="adaptive", least=5}')
    clock = Clock(monkeypatch)
    assert measure(task_of(loaded), 1).step == 0.25
    assert {plan.schedule for plan in clock.plans} == {Adaptive()}


@pytest.mark.parametrize(
    ("method", "part"),
    [
        ('{method="coprefl"}', "support"),
        ('{method="coprefl", settings={order=2}}', "support"),
        ('{method="coprefl", settings={scenario="II"}}', "train"),
        ('{method="fedmeta"}', "support"),
        ('{method="qffl", plan.server_steps=2}', "train"),
        ('{method="scaffold"}', "train"),
    ],
)
def test_what_clients_train_on_is_seen(home: Path, monkeypatch: pytest.MonkeyPatch, method: str, part: str) -> None:
    Clock(monkeypatch)
    loaded = load(home, f"starts=[{method}]", "seeds=[0]")
    assert measure(run_of(loaded, loaded.starts[0].name), 1).part == part


def test_a_real_clock_runs(home: Path) -> None:
    speed = measure(task_of(load(home)), 1)
    assert 0 <= speed.fixed < 10 and 0 < speed.evaluation < 10 and speed.fixed + speed.step > 0


# The command


def command(home: Path, *words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = main(["run", str(home.parent / "study.toml"), "--estimate", *words])
    printed = capsys.readouterr()
    assert list(home.iterdir()) == []
    return status, printed.out, printed.err


def test_the_command_answers_and_leaves_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(home)
    status, out, err = command(home, "--json", "--jobs", "2", "--out", "here", "seeds=[3]", capsys=capsys)
    found = json.loads(out)
    assert (status, err) == (0, "")
    assert (found["jobs"], found["threads"], found["cores"], found["notes"]) == (2, 4, 8, [])
    assert [row["number"] for row in found["rows"]] == [1, 1, 12, 12]
    assert found["seconds"] == pytest.approx(sum(row["seconds"] for row in found["rows"])) and found["seconds"] > 0


@pytest.mark.parametrize(
    ("step", "jobs", "last"),
    [
        (0.001, "1", "In all: 0.2 s with 1 job on this machine (8 cores)"),
        (0.1, "1", "In all: 21.6 s with 1 job on this machine (8 cores)"),
        (1.0, "1", "In all: 3 min 36 s with 1 job on this machine (8 cores)"),
        (50.0, "2", "In all: 1 h 30 min with 2 jobs on this machine (8 cores)"),
        (5000.0, "2", "In all: 6 d 6 h with 2 jobs on this machine (8 cores)"),
    ],
)
def test_the_command_says_it_in_a_table(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: float, jobs: str, last: str
) -> None:
    monkeypatch.setattr(estimating, "measure", Stopwatch(Speed(0.0, step)))
    algorithm = {"method": "fedavg", "plan": {"local_steps": 9}}
    scales = {"nine": {"algorithms": {"fedavg": {"plan": {"rounds": 6}}}}}
    load(home, starts=[{"method": "random"}], algorithms=[algorithm], scale="nine", scales=scales)
    status, out, err = command(home, "--jobs", jobs, "seeds=[0]", "downstream.personal.local_steps=1", capsys=capsys)
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert (status, err) == (0, "")
    assert lines[0] == "timed, scale nine: time it would take"
    assert f"downstream fedavg │ 4 │ 6 │ 9 │ {9 * step:.6g} │" in "\n".join(lines)
    assert lines[-2:] == ["Not counted: each client's own fine-tuning.", last]


def test_the_command_complains_in_one_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(home)
    status, out, err = command(home, "pretraining.clients=4000", capsys=capsys)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "4000 clients" in err
