"""Verdicts on claims, and when pre-training has paid, against numbers worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from scipy import stats

from fedstart import study
from fedstart.scores import Cell, Scores
from fedstart.study.break_even import break_even
from fedstart.study.cells import Cell as StudyCell
from fedstart.study.claims import verdicts
from fedstart.study.tables import Claim
from fedstart.types import Cost, Counts


def cell(start: str, task: int, seed: int, *percents: int, algorithm: str = "fedavg", partition: str = "iid") -> Cell:
    total = np.full(len(percents), 100)
    return Cell(start, algorithm, partition, task, seed, Scores(Counts(np.array(percents), total, 0.5 * total)))


def cells(differences: dict[int, list[int]], **setting: str) -> list[Cell]:
    """Two starts whose mean accuracies differ by so much, for each task of each seed."""
    found = []
    for seed, values in differences.items():
        for task, value in enumerate(values):
            found += [
                cell("a", task, seed, 50 + value, 50 + value, **setting),
                cell("b", task, seed, 50, 50, **setting),
            ]
    return found


def claim(**changes: Any) -> Claim:
    return Claim(**{"text": "a is better", "source": "Table 1a", "first": "a", "second": "b", **changes})


def verdict(differences: dict[int, list[int]]) -> str:
    (found,) = verdicts([claim()], cells(differences), [])
    return found["verdict"]


def test_a_verdict_by_hand() -> None:
    (found,) = verdicts([claim()], cells({3: [1, 2], 1: [3, 6]}), [])
    limits = stats.ttest_1samp([1, 2, 3, 6], 0).confidence_interval(0.95)
    assert {**found, "low": None, "high": None} == {
        "text": "a is better",
        "source": "Table 1a",
        "score": "mean",
        "first": "a",
        "second": "b",
        "start": None,
        "more_than": None,
        "algorithm": "fedavg",
        "partition": "iid",
        "published": None,
        "difference": 3.0,
        "low": None,
        "high": None,
        "n": 4,
        "seeds": 2,
        "by_seed": [4.5, 1.5],
        "verdict": "undecided",
    }
    assert (found["low"], found["high"]) == pytest.approx((limits.low, limits.high))
    assert found["low"] < 0 < found["high"]


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ({0: [4, 5, 6], 1: [5, 4, 6]}, "reproduced"),
        ({0: [-4, -5, -6], 1: [-5, -4, -6]}, "not reproduced"),
        ({0: [4, -5, 6], 1: [5, 4, -6]}, "undecided"),
        # The interval over all is above 0, the mean of seed 1 is not.
        ({0: [9] * 20, 1: [-1]}, "undecided"),
        ({0: [-9] * 20, 1: [1]}, "undecided"),
        ({0: [9] * 20, 1: [0]}, "undecided"),
        ({0: [5]}, "undecided"),
        ({0: [5, 5]}, "reproduced"),
        ({0: [0, 0]}, "undecided"),
    ],
)
def test_a_claim_needs_the_interval_and_every_seed(differences: dict[int, list[int]], expected: str) -> None:
    assert verdict(differences) == expected


def test_a_smaller_variance_is_better() -> None:
    found = []
    for task, spread in enumerate((2, 3, 4)):
        found += [cell("a", task, 0, 50 - spread, 50 + spread), cell("b", task, 0, 50 - spread - 2, 50 + spread + 2)]
    paper = [
        {"start": start, "algorithm": "fedavg", "partition": "iid", "variance": variance}
        for start, variance in (("a", 30.0), ("b", 64.8))
    ]
    (better,) = verdicts([claim(score="variance")], found, paper)
    (worse,) = verdicts([claim(score="variance", first="b", second="a")], found, paper)
    assert better["difference"] == pytest.approx(np.mean([4 - 16, 9 - 25, 16 - 36]))
    assert (better["verdict"], worse["verdict"]) == ("reproduced", "not reproduced")
    assert (better["published"], worse["published"]) == (-34.8, 34.8)


def test_the_worst_clients_are_compared_with_the_papers_lowest() -> None:
    ours = [cell("a", 0, 0, 40, *[90] * 9), cell("b", 0, 0, *[50] * 10)]
    paper = [
        {"start": start, "algorithm": "fedavg", "partition": "iid", "low10": low, "low20": None, "accuracy": low}
        for start, low in (("a", 71.58), ("b", 62.7))
    ]
    found = verdicts([claim(score=f"worst{k}") for k in (10, 20)], ours, paper)
    assert [row["difference"] for row in found] == [-10.0, 15.0]
    assert [row["published"] for row in found] == [8.88, None]
    (missing,) = verdicts([claim()], ours, paper[:1])
    assert missing["published"] is None


def test_one_verdict_for_each_setting_in_which_both_ran() -> None:
    ran = [
        *cells({0: [1, 2]}),
        *cells({0: [3, 4]}, algorithm="fedprox"),
        *cells({0: [5, 6]}, partition="dirichlet(0.5)"),
        cell("a", 0, 0, 50, algorithm="scaffold"),
        cell("a", 0, 0, 50, algorithm="qffl"),
        cell("b", 1, 0, 50, algorithm="qffl"),
    ]

    def places(**changes: str) -> list[tuple[str, str]]:
        return [(row["algorithm"], row["partition"]) for row in verdicts([claim(**changes)], ran, [])]

    assert places() == [("fedavg", "iid"), ("fedprox", "iid"), ("fedavg", "dirichlet(0.5)")]
    assert places(algorithm="fedavg") == [("fedavg", "iid"), ("fedavg", "dirichlet(0.5)")]
    assert places(partition="iid", algorithm="fedprox") == [("fedprox", "iid")]
    assert places(second="c") == [] == verdicts([], ran, [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first": "coprfl"}, r"\[\[claims\]\] number 1: unknown start 'coprfl'; did you mean 'coprefl'"),
        ({"second": "coprefl"}, r"number 1: first and second are both 'coprefl'"),
        ({"score": "median"}, r"\[\[claims\]\] number 1 score: .*\(given: 'median'\)"),
        ({"algorithm": "fedavgg"}, r"number 1: unknown algorithm 'fedavgg'; did you mean 'fedavg'"),
        ({"partition": "idd"}, r"number 1: unknown partition 'idd'; did you mean 'iid'"),
        ({"txt": "x"}, r"number 1: unknown setting 'txt'; did you mean 'text'"),
    ],
)
def test_a_wrong_claim_is_named_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    tables = {
        "name": "claimed",
        "seeds": [0],
        "data": {"source": "digits"},
        "model": {"name": "mlp"},
        "pretraining": {"held_out": 4, "partition": {"name": "iid"}, "plan": {"local_steps": 1}},
        "downstream": {"classes_per_task": 2, "partitions": [{"name": "iid"}], "plan": {"local_steps": 1}},
        "starts": [{"method": "random"}, {"method": "coprefl"}],
        "algorithms": [{"method": "fedavg"}],
    }
    given = {"text": "CoPreFL is better", "first": "coprefl", "second": "random"}
    (tmp_path / "study.toml").write_text(tomli_w.dumps({**tables, "claims": [given]}))
    assert [row.score for row in study.load(tmp_path / "study.toml").claims] == ["mean"]
    (tmp_path / "study.toml").write_text(tomli_w.dumps({**tables, "claims": [{**given, **changes}]}))
    with pytest.raises(ValueError, match=message) as caught:
        study.load(tmp_path / "study.toml")
    assert "\n" not in str(caught.value)


# When pre-training has paid


def write(folder: Path, key: str, cost: Cost, accuracies: Sequence[float | None]) -> None:
    (folder / key).mkdir(parents=True)
    lines = [{"round": n, "accuracy": a, "cost": asdict(cost)} for n, a in enumerate(accuracies, 1)]
    (folder / key / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def made(folder: Path, curves: dict[str, list[list[float]]], pretraining: Cost, rounds: int = 2) -> list[StudyCell]:
    """Cells of starts with a downstream curve for each task; a downstream round costs 20 bytes and 5 examples."""
    found = []
    for start, tasks in curves.items():
        before = 0 if start == "random" else rounds
        found.append(StudyCell("pretrain", start, 0, f"p-{start}", before))
        write(folder, found[-1].key, pretraining, [None] * before)
        for task, curve in enumerate(tasks):
            key = f"d-{start}-{task}"
            found.append(StudyCell("downstream", start, 0, key, len(curve), "fedavg", "iid", task))
            write(folder, key, Cost(9, 1, 12, 8, 5), curve)
    return found


def test_break_even_by_hand(tmp_path: Path) -> None:
    curves = {
        "random": [[20.0, 40.0, 50.0, 60.0], [30.0, 40.0, 60.0, 70.0]],
        # The mean is 40, 65, 80, 90; the target 65 is reached in round 2, so 2 of 4 rounds are saved.
        "coprefl": [[50.0, 60.0, 80.0, 90.0], [30.0, 70.0, 80.0, 90.0]],
        "slow": [[10.0, 20.0, 30.0, 65.0], [10.0, 20.0, 30.0, 65.0]],
        "bad": [[10.0, 10.0, 10.0, 10.0], [10.0, 10.0, 10.0, 10.0]],
    }
    ran = made(tmp_path, curves, Cost(100, 2, 30, 21, 16))
    found = break_even(ran, tmp_path, "random")
    # Pre-training took 2 x 51 bytes and 2 x 16 backward examples.
    assert found["coprefl"] == {
        "against": "random",
        "algorithm": "fedavg",
        "partition": "iid",
        "target": 65.0,
        "rounds": 2,
        "saved_rounds": 2,
        "pretraining_rounds_bytes": 5.1,
        "pretraining_rounds_examples": 6.4,
        "tasks_bytes": 3,
        "tasks_examples": 4,
    }
    assert (found["slow"]["rounds"], found["slow"]["saved_rounds"], found["slow"]["tasks_bytes"]) == (4, 0, None)
    assert (found["bad"]["rounds"], found["bad"]["saved_rounds"], found["bad"]["tasks_examples"]) == (None, None, None)
    assert list(found) == ["coprefl", "slow", "bad"]
    assert break_even(ran, tmp_path, None) == {} == break_even(ran, tmp_path, "other")


def test_break_even_takes_only_tasks_that_both_finished(tmp_path: Path) -> None:
    ran = made(tmp_path, {"random": [[50.0, 60.0], [0.0, 0.0]], "a": [[55.0, 65.0]]}, Cost(0, 0, 0, 0, 0))
    found = break_even(ran, tmp_path, "random")["a"]
    assert (found["target"], found["rounds"], found["saved_rounds"], found["tasks_bytes"]) == (60.0, 2, 0, None)


def test_a_start_that_cost_nothing_pays_at_once(tmp_path: Path) -> None:
    ran = made(tmp_path, {"random": [[50.0, 60.0]], "file": [[60.0, 65.0]]}, Cost(), rounds=0)
    found = break_even(ran, tmp_path, "random")["file"]
    assert (found["rounds"], found["saved_rounds"]) == (1, 1)
    assert (found["pretraining_rounds_bytes"], found["tasks_bytes"], found["tasks_examples"]) == (0.0, 0, 0)
