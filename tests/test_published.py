"""The paper's numbers beside ours: which row of the tables belongs to which of our settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedstart import study
from fedstart.study.published import find, rows
from fedstart.study.tables import Published

TABLES: dict[str, Any] = {
    "name": "compared",
    "seeds": [0],
    "data": {"source": "digits"},
    "model": {"name": "mlp"},
    "pretraining": {"held_out": 4, "partition": {"name": "iid"}, "clients": 4, "plan": {"rounds": 1, "local_steps": 1}},
    "downstream": {
        "classes_per_task": 2,
        "clients": 2,
        "partitions": [{"name": "dirichlet", "alpha": 0.5}, {"name": "iid"}],
        "plan": {"rounds": 1, "local_steps": 1},
    },
    "starts": [{"method": "random"}, {"method": "coprefl"}],
    "algorithms": [{"method": "fedavg"}],
}
NON_IID, IID = "dirichlet(0.5)", "iid"


def one(published: dict[str, Any], *setting: str) -> dict[str, Any]:
    (found,) = find(Published(**published), [(setting[0], setting[1], setting[2])])
    return found


def load(directory: Path, published: dict[str, Any]) -> study.Study:
    (directory / "study.toml").write_text(tomli_w.dumps({**TABLES, "published": published}))
    return study.load(directory / "study.toml")


def test_every_row_of_the_paper_is_there() -> None:
    assert len(rows()) == 452
    assert all(0 < float(row["accuracy"]) <= 100 and row["method"] for row in rows())


def test_a_row_is_found_by_its_columns() -> None:
    asked = {"table": "1a", "where": {"dataset": "CIFAR-100"}, "rows": {"ours": "CoPreFL", "random": "FedAvg"}}
    assert one(asked, "ours", "fedavg", NON_IID) == {
        "start": "ours",
        "algorithm": "fedavg",
        "partition": NON_IID,
        "method": "CoPreFL",
        "table": "1a",
        "gamma": 0.75,
        "accuracy": 83.29,
        "variance": 34.69,
        "low10": 71.58,
        "low20": 73.2,
        "low30": None,
    }
    found = find(Published(**asked), [(start, "fedavg", NON_IID) for start in ("random", "ours", "other")])
    assert [(row["start"], row["accuracy"]) for row in found] == [("random", 78.96), ("ours", 83.29)]


def test_what_was_run_and_not_published_has_no_row() -> None:
    asked = Published(table="1a", where={"dataset": "CIFAR-100"}, rows={"coprefl": "CoPreFL"})
    others = [("coprefl", "fedavg", IID), ("coprefl", "fedprox", NON_IID), ("coprefl", "scaffold", NON_IID)]
    assert find(asked, [*others, ("coprefl", "fedavg", "dirichlet(0.1)"), ("coprefl", "fedavg", "shards(2)")]) == []
    assert find(None, [("coprefl", "fedavg", NON_IID)]) == []


def test_partitions_and_algorithms_go_by_their_names_or_by_a_map() -> None:
    asked = {"table": "47", "where": {"dataset": "CIFAR-100", "scenario": "I"}, "rows": {"c": "CoPreFL"}}
    iid = one(asked, "c", "fedavg", "iid(stratified=True)")
    assert iid["accuracy"] != one(asked, "c", "fedavg", "dirichlet(0.5, minimum=10)")["accuracy"] == 83.29
    assert one({**asked, "partitions": {"by_label": "IID"}}, "c", "fedavg", "by_label")["accuracy"] == iid["accuracy"]
    assert one({**asked, "algorithms": {"slow": "FedAvg"}}, "c", "slow", NON_IID)["accuracy"] == 83.29
    assert find(Published(**{**asked, "algorithms": {"slow": "FedAvg"}}), [("c", "fedavg", NON_IID)]) == []
    assert one({"table": "3b", "rows": {"c": "CoPreFL"}}, "c", "qffl", NON_IID)["table"] == "3b/50"
    pacs = {"table": ["6", "24"], "rows": {"c": "CoPreFL"}}
    pacs["partitions"] = {
        f"{case}: iid": {"dataset": f"PACS ({name})", "downstream_distribution": "Non-IID"}
        for case, name in (("sketch", "Sketch"), ("photo", "Photo"))
    }
    assert one(pacs, "c", "fedavg", "sketch: iid")["accuracy"] == 66.83
    assert one(pacs, "c", "fedavg", "photo: iid")["accuracy"] != 66.83


def test_a_start_without_participants_fits_any_number_of_them() -> None:
    where = {"dataset": "CIFAR-100", "participants": 20, "pretrain_distribution": "Non-IID"}
    asked = {"table": "3a", "where": where, "rows": {"random": "Random"}}
    assert one(asked, "random", "fedavg", NON_IID)["accuracy"] == 75.32


def test_a_row_may_name_further_columns() -> None:
    grid: dict[str, Any] = {
        f"coprefl {gamma}": {"method": "CoPreFL", "gamma": gamma} for gamma in (0, 0.25, 0.5, 0.75, 1.0)
    }
    found = find(Published(table="2", rows=grid), [(start, "fedavg", NON_IID) for start in grid])
    assert [row["variance"] for row in found] == [24.7, 35.88, 35.4, 39.31, 39.81]
    assert [row["gamma"] for row in found] == [0, 0.25, 0.5, 0.75, 1]


def test_the_first_table_with_a_row_counts() -> None:
    asked = {"where": {"dataset": "CIFAR-100"}, "rows": {"c": "CoPreFL", "s": "SCAFFOLD"}}
    assert one({**asked, "table": ["1a", "3a"]}, "c", "fedavg", NON_IID)["low10"] == 71.58
    assert one({**asked, "table": ["3a", "1a"]}, "c", "fedavg", NON_IID)["low10"] is None
    assert one({**asked, "table": ["1a", "3a"]}, "s", "fedavg", NON_IID)["table"] == "3a"


def test_two_rows_for_one_setting_are_refused() -> None:
    asked = Published(table="47", rows={"c": "CoPreFL"}, where={"dataset": "CIFAR-100"})
    with pytest.raises(ValueError, match=r"table 47 has 2 rows for c, fedavg, iid; they differ in scenario: say which"):
        find(asked, [("c", "fedavg", "iid")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table": "1c"}, r"study\.toml \[published\] unknown table '1c'.*1a, 1b"),
        ({"table": []}, r"\[published\] table"),
        ({"rows": {}}, r"\[published\] rows"),
        (
            {"rows": {"coprefl": "CoPreFl"}},
            r"rows coprefl: unknown method of table 1a 'CoPreFl'; did you mean 'CoPreFL'",
        ),
        ({"rows": {"coprefl": "Random"}}, r"unknown method of table 1a 'Random'.*FedMeta"),
        ({"rows": {"coprfl": "CoPreFL"}}, r"unknown start 'coprfl'; did you mean 'coprefl'"),
        ({"rows": {"coprefl": {"gamma": 0.5}}}, r"rows coprefl: method is missing"),
        ({"rows": {"coprefl": {"method": "CoPreFL", "gama": 0.5}}}, r"unknown column 'gama'; did you mean 'gamma'"),
        ({"where": {"datset": "CIFAR-100"}}, r"where: unknown column 'datset'; did you mean 'dataset'"),
        ({"where": {"dataset": "CIFAR100"}}, r"where: unknown dataset 'CIFAR100'.*CIFAR-100"),
        ({"where": {"participants": 40}}, r"where: unknown participants '40'"),
        ({"where": {"scenario": "II"}}, r"rows coprefl: table 1a has no row with \{'scenario': 'II'\}"),
        ({"algorithms": {"fedav": "FedAvg"}}, r"unknown algorithm 'fedav'; did you mean 'fedavg'"),
        ({"algorithms": {"fedavg": "FedSGD"}}, r"algorithms: unknown downstream_algorithm 'FedSGD'.*FedAvg"),
        ({"partitions": {"idd": "IID"}}, r"unknown partition 'idd'; did you mean 'iid'"),
        ({"partitions": {"iid": "iid"}}, r"partitions iid: unknown downstream_distribution 'iid'.*IID"),
        ({"tabel": "1a"}, r"\[published\]: unknown setting 'tabel'; did you mean 'table'"),
    ],
)
def test_a_wrong_table_is_named_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    given = {"table": "1a", "rows": {"coprefl": "CoPreFL"}}
    assert load(tmp_path, given).published == Published(**given)
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path, {**given, **changes})
    assert "\n" not in str(caught.value)
