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

ALGORITHMS = {"start": "random", "first": "fedavg", "second": "fedprox"}


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


def two_algorithms(start: str, differences: dict[int, list[int]], partition: str = "iid") -> list[Cell]:
    """Cells of `fast` and `slow` from one start, whose mean accuracies differ by so much."""
    return [
        cell(start, task, seed, 50 + (value if algorithm == "fast" else 0), algorithm=algorithm, partition=partition)
        for seed, values in differences.items()
        for task, value in enumerate(values)
        for algorithm in ("slow", "fast")
    ]


def of_algorithms(**changes: Any) -> Claim:
    return claim(**{"start": "a", "first": "fast", "second": "slow", **changes})


def test_two_algorithms_are_compared_from_one_start() -> None:
    ran = [
        *two_algorithms("a", {0: [1, 2], 2: [4, 5]}),
        *two_algorithms("b", {0: [-9, -9], 2: [-9, -8]}),
        *two_algorithms("a", {0: [-7, -8]}, partition="dirichlet(0.5)"),
    ]
    iid, skewed = verdicts([of_algorithms()], ran, [])
    limits = stats.ttest_1samp([1, 2, 4, 5], 0).confidence_interval(0.95)
    assert {**iid, "low": None, "high": None} == {
        "text": "a is better",
        "source": "Table 1a",
        "score": "mean",
        "first": "fast",
        "second": "slow",
        "start": "a",
        "more_than": None,
        "algorithm": "fast",
        "partition": "iid",
        "published": None,
        "difference": 3.0,
        "low": None,
        "high": None,
        "n": 4,
        "seeds": 2,
        "by_seed": [1.5, 4.5],
        "verdict": "reproduced",
    }
    assert (iid["low"], iid["high"]) == pytest.approx((limits.low, limits.high))
    assert (skewed["partition"], skewed["difference"], skewed["verdict"]) == ("dirichlet(0.5)", -7.5, "not reproduced")
    assert [row["partition"] for row in verdicts([of_algorithms(partition="iid")], ran, [])] == ["iid"]
    (turned,) = verdicts([of_algorithms(first="slow", second="fast", start="b", partition="iid")], ran, [])
    assert (turned["algorithm"], turned["difference"], turned["verdict"]) == ("slow", 8.75, "reproduced")


def test_a_difference_larger_than_from_another_start_by_hand() -> None:
    ran = [*two_algorithms("a", {0: [5, 9], 1: [8, 4]}), *two_algorithms("b", {0: [2, 3], 1: [1, 1]})]
    (found,) = verdicts([of_algorithms(more_than="b")], ran, [])
    limits = stats.ttest_1samp([3, 6, 7, 3], 0).confidence_interval(0.95)
    assert (found["start"], found["more_than"], found["algorithm"]) == ("a", "b", "fast")
    assert (found["difference"], found["by_seed"], found["n"], found["seeds"]) == (4.75, [4.5, 5.0], 4, 2)
    assert (found["low"], found["high"]) == pytest.approx((limits.low, limits.high))
    assert found["verdict"] == "reproduced"
    (turned,) = verdicts([of_algorithms(start="b", more_than="a")], ran, [])
    assert (turned["difference"], turned["verdict"]) == (-4.75, "not reproduced")


def test_only_pairs_that_all_four_have_count() -> None:
    ran = [*two_algorithms("a", {0: [5, 9, 7]}), *two_algorithms("b", {0: [2, 3]})]
    (found,) = verdicts([of_algorithms(more_than="b")], ran, [])
    assert (found["n"], found["difference"]) == (2, 4.5)
    without = [one for one in ran if (one.start, one.algorithm) != ("b", "slow")]
    assert verdicts([of_algorithms(more_than="b")], without, []) == []
    assert len(verdicts([of_algorithms()], without, [])) == 1
    assert verdicts([of_algorithms(start="c")], ran, []) == []


def test_a_claim_of_two_starts_and_one_of_two_algorithms_side_by_side() -> None:
    ran = [*two_algorithms("a", {0: [5, 6]}), *two_algorithms("b", {0: [2, 4]})]
    found = verdicts([claim(), of_algorithms()], ran, [])
    assert [(row["algorithm"], row["start"], row["difference"]) for row in found] == [
        ("slow", None, 0.0),
        ("fast", None, 2.5),
        ("fast", "a", 5.5),
    ]


def test_the_paper_s_difference_of_two_algorithms_is_that_from_the_start() -> None:
    """Starts and algorithms may have the same names: a start made by FedAvg, and FedAvg downstream."""
    made = [("fast", 70.0), ("slow", 60.0), ("a", 40.0)]
    paper = [
        {"start": start, "algorithm": algorithm, "partition": "iid", "accuracy": accuracy + extra}
        for start, accuracy in made
        for algorithm, extra in (("fast", 3.0), ("slow", 1.0))
    ]
    ran = [*two_algorithms("a", {0: [5, 6]}), *two_algorithms("fast", {0: [1, 2]})]
    (found,) = verdicts([of_algorithms()], ran, paper)
    assert found["published"] == 2.0
    (larger,) = verdicts([of_algorithms(more_than="fast")], ran, paper)
    assert larger["published"] in (None, 0.0)
    (missing,) = verdicts([of_algorithms()], ran, paper[:-1])
    assert missing["published"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first": "coprfl"}, r"\[\[claims\]\] number 1: unknown start 'coprfl'; did you mean 'coprefl'"),
        ({"second": "coprefl"}, r"number 1: first and second are both 'coprefl'"),
        ({"score": "median"}, r"\[\[claims\]\] number 1 score: .*\(given: 'median'\)"),
        ({"algorithm": "fedavgg"}, r"number 1: unknown algorithm 'fedavgg'; did you mean 'fedavg'"),
        ({"partition": "idd"}, r"number 1: unknown partition 'idd'; did you mean 'iid'"),
        ({"txt": "x"}, r"number 1: unknown setting 'txt'; did you mean 'text'"),
        ({"start": "random"}, r"number 1: unknown algorithm 'coprefl' \(allowed: fedavg, fedprox\)"),
        ({**ALGORITHMS, "start": "randm"}, r"number 1: unknown start 'randm'; did you mean 'random'"),
        ({**ALGORITHMS, "second": "fedpro"}, r"number 1: unknown algorithm 'fedpro'; did you mean 'fedprox'"),
        ({**ALGORITHMS, "second": "fedavg"}, r"number 1: first and second are both 'fedavg'"),
        ({**ALGORITHMS, "algorithm": "fedavg"}, r"number 1 algorithm: not allowed with start"),
        ({**ALGORITHMS, "more_than": "coprfl"}, r"number 1: unknown start 'coprfl'; did you mean 'coprefl'"),
        ({**ALGORITHMS, "more_than": "random"}, r"number 1 more_than: needs start, and another one than 'random'"),
        ({"more_than": "random"}, r"number 1 more_than: needs start, and another one than 'random'"),
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
        "algorithms": [{"method": "fedavg"}, {"method": "fedprox"}],
    }
    given = {"text": "CoPreFL is better", "first": "coprefl", "second": "random"}
    right = [given, {**given, **ALGORITHMS}, {**given, **ALGORITHMS, "more_than": "coprefl"}]
    (tmp_path / "study.toml").write_text(tomli_w.dumps({**tables, "claims": right}))
    assert [row.score for row in study.load(tmp_path / "study.toml").claims] == ["mean"] * 3
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
