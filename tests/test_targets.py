"""What algorithms take to one accuracy from one start, against numbers worked out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedstart.study.cells import Cell
from fedstart.study.targets import targets
from fedstart.types import Cost

KINDS = ("rounds", "bytes", "examples")
CHEAP, DEAR = Cost(9, 1, 12, 8, 5), Cost(40, 2, 60, 40, 50)
"""A round: 20 bytes and 5 backward examples; 100 bytes and 50 backward examples."""


def ran(folder: Path, algorithm: str, curve: Sequence[float], cost: Cost | Sequence[Cost], **place: Any) -> Cell:
    """A finished run with an accuracy after each round, and a cost of each, or of all."""
    costs = [cost] * len(curve) if isinstance(cost, Cost) else cost
    place = {"start": "random", "partition": "iid", "task": 0, "seed": 0, **place}
    key = "-".join(map(str, (algorithm, *place.values())))
    (folder / key).mkdir(parents=True)
    lines = [
        {"round": n, "accuracy": a, "cost": asdict(c)} for n, (a, c) in enumerate(zip(curve, costs, strict=True), 1)
    ]
    (folder / key / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Cell(
        "downstream", place["start"], place["seed"], key, len(curve), algorithm, place["partition"], place["task"]
    )


def test_targets_by_hand(tmp_path: Path) -> None:
    cells = [
        # The best are 60 and 70, so the target is 60: after 3 rounds and 1 round.
        ran(tmp_path, "a", [20.0, 40.0, 60.0, 50.0], CHEAP),
        ran(tmp_path, "b", [65.0, 70.0], DEAR),
        # 80 and 50: the target is 50, after 2 rounds and 2 rounds.
        ran(tmp_path, "a", [10.0, 55.0, 80.0, 80.0], CHEAP, task=1),
        ran(tmp_path, "b", [30.0, 50.0], DEAR, task=1),
    ]
    first, second = targets(cells, tmp_path)
    about = {"start": "random", "partition": "iid", "n": 2, "target": 55.0}
    assert first.items() >= {**about, "algorithm": "a"}.items()
    assert second.items() >= {**about, "algorithm": "b"}.items()
    assert set(first) == {*about, "algorithm", *KINDS, *(f"{kind}_ratio" for kind in KINDS)}
    assert [first[kind] for kind in KINDS] == pytest.approx([6**0.5, (60 * 40) ** 0.5, (15 * 10) ** 0.5], rel=1e-9)
    assert [second[kind] for kind in KINDS] == pytest.approx([2**0.5, (100 * 200) ** 0.5, (50 * 100) ** 0.5], rel=1e-9)
    for kind, ours, theirs in (
        ("rounds", [1, 2], [3, 2]),
        ("bytes", [100, 200], [60, 40]),
        ("examples", [50, 100], [15, 10]),
    ):
        logarithms = np.log(ours) - np.log(theirs)
        limits = stats.ttest_1samp(logarithms, 0).confidence_interval(0.95)
        expected = {"ratio": math.exp(logarithms.mean()), "low": math.exp(limits.low), "high": math.exp(limits.high)}
        assert second[f"{kind}_ratio"] == pytest.approx(expected, rel=1e-9)
        assert first[f"{kind}_ratio"] == {"ratio": 1.0, "low": 1.0, "high": 1.0}


def test_what_a_round_costs_counts_round_by_round_until_the_target_is_reached(tmp_path: Path) -> None:
    cells = [
        ran(tmp_path, "a", [50.0, 60.0, 60.0], [CHEAP, DEAR, DEAR]),
        ran(tmp_path, "b", [60.0, 90.0, 10.0], [DEAR, CHEAP, CHEAP]),
    ]
    first, second = targets(cells, tmp_path)
    assert [first[kind] for kind in KINDS] == pytest.approx([2, 120, 55])
    assert [second[kind] for kind in KINDS] == pytest.approx([1, 100, 50])
    # One pair has no interval.
    assert first["n"] == 1
    assert second["rounds_ratio"] == {"ratio": 0.5, "low": None, "high": None}


def test_the_target_is_the_highest_that_all_algorithms_reach(tmp_path: Path) -> None:
    curves = {"a": [10.0, 90.0], "b": [40.0, 80.0], "c": [39.0, 40.0]}
    rows = targets([ran(tmp_path, name, curve, CHEAP) for name, curve in curves.items()], tmp_path)
    assert [(row["algorithm"], row["target"], row["rounds"]) for row in rows] == [
        ("a", 40.0, 2.0),
        ("b", 40.0, 1.0),
        ("c", 40.0, 2.0),
    ]
    assert [row["rounds_ratio"]["ratio"] for row in rows] == [1.0, 0.5, 1.0]


def test_starts_and_partitions_have_targets_of_their_own(tmp_path: Path) -> None:
    cells = [
        ran(tmp_path, algorithm, [value, value + 10], CHEAP, start=start, partition=partition)
        for start, value in (("random", 10.0), ("made", 50.0))
        for partition in ("iid", "dirichlet(0.1)")
        for algorithm in ("a", "b")
    ]
    found = [(row["start"], row["partition"], row["algorithm"], row["target"]) for row in targets(cells, tmp_path)]
    assert found == [
        (start, partition, algorithm, target)
        for start, target in (("random", 20.0), ("made", 60.0))
        for partition in ("iid", "dirichlet(0.1)")
        for algorithm in ("a", "b")
    ]


def test_only_pairs_that_every_algorithm_finished_count(tmp_path: Path) -> None:
    cells = [
        ran(tmp_path, "a", [10.0, 20.0], CHEAP),
        ran(tmp_path, "a", [90.0, 90.0], CHEAP, seed=1),
        ran(tmp_path, "b", [20.0, 30.0], CHEAP),
        ran(tmp_path, "b", [20.0, 30.0], CHEAP, task=1),
    ]
    rows = targets(cells, tmp_path)
    assert [(row["n"], row["target"]) for row in rows] == [(1, 20.0), (1, 20.0)]
    assert targets([cells[0], cells[3]], tmp_path) == []


def test_without_two_algorithms_or_rounds_there_is_nothing_to_compare(tmp_path: Path) -> None:
    alone = ran(tmp_path, "a", [10.0], CHEAP)
    none = [ran(tmp_path, name, [], CHEAP, start="file") for name in ("a", "b")]
    assert targets([], tmp_path) == targets([alone], tmp_path) == targets(none, tmp_path) == []
    elsewhere = ran(tmp_path, "b", [10.0], CHEAP, partition="dirichlet(0.1)")
    assert targets([alone, elsewhere], tmp_path) == []
