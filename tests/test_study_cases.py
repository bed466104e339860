"""Studies that leave a domain out, that choose the classes of their tasks, or pre-train each start in its own way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tomli_w
from pyarrow import parquet

from fedstart import study, tree
from fedstart.data.tasks import load_partition
from fedstart.files import read_json
from fedstart.flower.export import Choice, export
from fedstart.starts import Start
from fedstart.study.cells import Material, plan_cells
from fedstart.study.packing import load

DOMAINS = ("art", "photo", "sketch")
CLASSES = 6


def pacs(path: Path) -> Path:
    """360 rows of four features, six classes and three domains, described as `datasets` does."""
    draws = np.random.default_rng(5)
    labels, domains = np.arange(360) % CLASSES, np.arange(360) // CLASSES % 3
    centres = draws.normal(size=(CLASSES, 4)) * 2
    values = centres[labels] + 0.5 * draws.normal(size=(360, 4)) + 0.5 * domains[:, None]
    columns = {f"x{k}": values[:, k].astype(np.float32) for k in range(4)}
    names = {"label": [f"class {k}" for k in range(CLASSES)], "domain": list(DOMAINS)}
    features = {column: {"names": found, "_type": "ClassLabel"} for column, found in names.items()}
    table = pa.table({**columns, "label": labels, "domain": domains})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(table.replace_schema_metadata(metadata), path)
    return path


def tables(data: Path) -> dict[str, Any]:
    plan = {"rounds": 2, "local_steps": 2, "lr": 0.1}
    return {
        "name": "cases",
        "seeds": [0, 1],
        "data": {"source": f"path:{data}"},
        "model": {"name": "mlp", "settings": {"hidden": [6]}},
        "pretraining": {
            "left_out": {"column": "domain"},
            "clients": 6,
            "partition": {"name": "dirichlet", "alpha": 0.5},
            "plan": {**plan, "cohort": 3},
        },
        "downstream": {
            "tasks": 2,
            "classes_per_task": 3,
            "clients": 3,
            "partitions": [{"name": "dirichlet", "alpha": 0.5}],
            "plan": plan,
        },
        "starts": [{"method": "random"}, {"method": "fedavg"}],
        "algorithms": [{"method": "fedavg"}],
        "execution": {"precision": "float32", "together": 1, "channels_last": True, "linear": "torch"},
    }


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    path = folder / "cases.toml"
    path.write_text(tomli_w.dumps(tables(pacs(folder / "pacs.parquet"))))
    return path


@pytest.fixture(scope="module")
def finished(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study, run in one process. Tests only read it."""
    return study.run(study.load(file), tmp_path_factory.mktemp("study") / "whole", threads=1)


def material(file: Path, *words: str) -> Material:
    return Material(study.load(file, None, words))


WITHOUT = ("pretraining.left_out=none",)
"""Takes the cases out; what the classes of tasks are then has to be said."""


# Leaving a domain out


def test_a_case_keeps_its_rows_from_pretraining_and_for_the_tasks(file: Path) -> None:
    found = material(file)
    domains = found.examples.columns["domain"]
    assert found.federations.cases == DOMAINS and found.held_out == () and found.classes == tuple(range(CLASSES))
    for case in DOMAINS:
        before = found.pretraining(1, case)
        assert before.examples is found.examples and before.name == f"pre-training without {case}"
        assert np.array_equal(np.sort(before.parts["train"].values), np.flatnonzero(domains != case))
        for task, after in enumerate(found.tasks(f"{case}: dirichlet(0.5)", 1)):
            held = np.sort(np.concatenate([part.values for part in after.parts.values()]))
            assert after.examples is found.examples and after.name == f"pacs {case} task {task}"
            meant = (domains == case) & np.isin(found.examples.labels, after.classes)
            assert np.array_equal(held, np.flatnonzero(meant))
    pools = [[task.classes for task in found.tasks(f"{case}: dirichlet(0.5)", 1)] for case in DOMAINS]
    assert pools[0] == pools[1] == pools[2], "domains are compared on tasks of the same classes"


def test_every_cell_begins_from_the_start_that_never_saw_its_domain(file: Path) -> None:
    cells = plan_cells(material(file))
    before = {cell.key: cell for cell in cells if cell.kind == "pretrain"}
    after = [cell for cell in cells if cell.kind == "downstream"]
    assert len(before) == 2 * 3 * 2 and len(after) == 2 * 3 * 2 * 2 and len({cell.key for cell in cells}) == len(cells)
    for cell in after:
        origin = before[cell.origin]
        assert (origin.case, origin.start, origin.seed) == (cell.case, cell.start, cell.seed)
        assert cell.partition == f"{cell.case}: dirichlet(0.5)"
        assert cell.place()["case"] == cell.case and cell.key.startswith(f"{cell.start}-fedavg-{cell.case}-dirichlet-")
    assert {cell.key.rpartition("-")[0] for cell in before.values() if cell.start == "fedavg"} == {
        f"pretrain-fedavg-{case}-s{seed}" for case in DOMAINS for seed in (0, 1)
    }


def test_results_keep_the_domains_apart(file: Path, finished: Path) -> None:
    summary = read_json(finished / "summary.json")
    labels = [f"{case}: dirichlet(0.5)" for case in DOMAINS]
    assert summary["failures"] == [] and summary["cells"] == 12 + 24
    assert [(row["partition"], row["start"], row["n"]) for row in summary["rows"]] == [
        (label, start, 4) for label in labels for start in ("random", "fedavg")
    ]
    found = material(file)
    prints = summary["fingerprints"]
    assert prints["pretraining"] == {
        f"{seed}, without {case}": found.pretraining(seed, case).fingerprint for seed in (0, 1) for case in DOMAINS
    }
    assert list(prints["downstream"]) == labels and len(set(prints["pretraining"].values())) == 6
    holdings = read_json(finished / "partitions.json")
    assert [holding["partition"] for holding in holdings["pretraining"]] == labels
    assert [(holding["partition"], holding["task"]) for holding in holdings["downstream"]] == [
        (label, task) for label in labels for task in (0, 1)
    ]
    kept = {path.stem: load_partition(found.examples, path) for path in (finished / "partitions").iterdir()}
    assert len(kept) == 2 * 3 + 2 * 3 * 2
    assert [kept[name].name for name in ("pretraining-s0", "pretraining-f1-s0", "pretraining-f2-s0")] == [
        f"pre-training without {case}" for case in DOMAINS
    ]
    assert kept["downstream-p2-t1-s1"].fingerprint == found.tasks(labels[2], 1)[1].fingerprint
    places = [read_json(path) for path in finished.glob("cells/*/cell.json")]
    assert {place["case"] for place in places} == set(DOMAINS)
    cards = [json.loads(path.read_text())["data"] for path in finished.glob("cells/pretrain-*/start/card.json")]
    assert set(cards) == {f"pre-training without {case}" for case in DOMAINS}
    starts = [Start.load(path).weights for path in finished.glob("cells/pretrain-fedavg-*-s0-*/start")]
    assert len({tree.fingerprint(weights) for weights in starts}) == len(starts) == 3


def test_values_are_left_out_one_at_a_time_and_only_those_that_are_named(file: Path, tmp_path: Path) -> None:
    word = 'pretraining.left_out.values=["sketch"]'
    study.run(study.load(file, None, [word, "seeds=[1]"]), tmp_path, jobs=2)
    assert {row["partition"] for row in read_json(tmp_path / "summary.json")["rows"]} == {"sketch: dirichlet(0.5)"}
    whole, one = plan_cells(material(file)), plan_cells(material(file, word))
    assert {cell.key for cell in one} == {cell.key for cell in whole if cell.case == "sketch"}


def test_held_out_classes_and_a_domain_can_both_be_left_out(file: Path) -> None:
    found = material(file, "pretraining.held_out=3", "downstream.clients=2")
    assert found.classes == (0, 1, 2)
    domains = found.examples.columns["domain"]
    rows = found.pretraining(0, "art").parts["train"].values
    assert set(domains[rows]) == {"photo", "sketch"} and set(found.examples.labels[rows]) == {0, 1, 2}
    assert [task.classes for task in found.tasks("art: dirichlet(0.5)", 0)] == [(3, 4, 5)] * 2


def test_withheld_rows_are_none_of_the_domain_left_out(file: Path) -> None:
    found = material(file, "pretraining.withheld=0.1")
    federation = found.pretraining(0, "photo")
    assert len(federation.server) == 24 and "photo" not in found.examples.columns["domain"][federation.server]


def test_numbers_are_values_too(file: Path) -> None:
    left_out = 'pretraining.left_out={column="group", values=[7, "3"]}'
    found = material(file, "data.source=synthetic:examples=2000", left_out, "downstream.clients=2")
    assert found.federations.cases == ("7", "3")
    groups = found.examples.columns["group"]
    assert set(groups[found.pretraining(0, "7").parts["train"].values]) == set(range(10)) - {7}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ['pretraining.left_out.values=["scetch"]'],
            r"unknown value of column 'domain' 'scetch'; did you mean 'sketch'",
        ),
        (["pretraining.left_out.column=domian"], r"unknown column 'domian'; did you mean 'domain'"),
        (["data.source=synthetic"], r"synthetic: no column 'domain' \(columns: group\)"),
        (
            ["pretraining.left_out.colum=x"],
            r"\[pretraining\.left_out\]: unknown setting 'colum'; did you mean",
        ),
        (["pretraining.left_out.column=none"], r"\[pretraining\.left_out\] column: Field required"),
        (["pretraining.left_out.values=[]"], r"\[pretraining\.left_out\] values: .*at least 1 item"),
        (['pretraining.left_out.values=["art", "art"]'], r"left_out values: 'art' is there twice"),
        (["pretraining.left_out=3"], r"\[pretraining\.left_out\]: this must be a table, got 3"),
        (["downstream.clients=40"], r"too few for 40 clients"),
    ],
)
def test_a_wrong_case_is_named_in_one_line(file: Path, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        plan_cells(material(file, *words))
    assert "\n" not in str(caught.value)


def test_a_value_that_leaves_no_rows_is_refused(tmp_path: Path) -> None:
    data = pacs(tmp_path / "pacs.parquet")
    table = parquet.read_table(data)
    parquet.write_table(table.filter(pa.array(table["domain"].to_numpy() == 1)), data)
    path = tmp_path / "cases.toml"
    path.write_text(tomli_w.dumps(tables(data)))
    with pytest.raises(ValueError, match=r"left_out: column 'domain' has no other value than 'photo'.* no row is left"):
        Material(study.load(path))
    # Every row of the classes of pre-training is in the domain that is left out.
    alone = (table["domain"].to_numpy() == 2) | (table["label"].to_numpy() > 2)
    parquet.write_table(table.filter(pa.array(alone)), data)
    with pytest.raises(ValueError, match=r"pre-training without sketch: no examples of the classes asked for"):
        plan_cells(
            Material(study.load(path, None, ["pretraining.held_out=3", 'pretraining.left_out.values=["sketch"]']))
        )


def test_a_run_of_a_study_with_cases_is_not_exported_without_its_case(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown value left out ''.*\(allowed: art, photo, sketch\)"):
        export(study.load(file), tmp_path / "app", Choice(start="fedavg"))


# The classes of tasks


def test_tasks_of_seen_and_of_given_classes(file: Path) -> None:
    seen = material(file, *WITHOUT, "pretraining.held_out=[0, 5]", "downstream.classes=seen")
    assert seen.federations.pool(0) == seen.classes == (1, 2, 3, 4)
    assert {label for seed in range(4) for task in seen.tasks("dirichlet(0.5)", seed) for label in task.classes} == {
        *seen.classes
    }
    given = material(file, *WITHOUT, "downstream.classes=[4, 0, 2]")
    assert given.classes == tuple(range(CLASSES))
    assert [task.classes for task in given.tasks("dirichlet(0.5)", 0)] == [(0, 2, 4)] * 2
    unseen = material(file, *WITHOUT, "pretraining.held_out=3")
    assert unseen.federations.pool(0) == (3, 4, 5)
    chosen = material(file, *WITHOUT, "pretraining.classes=[1, 2]", "downstream.classes=seen")
    assert chosen.federations.pool(3) == (1, 2)


def test_mixed_tasks_draw_half_of_the_held_out_classes_and_as_many_seen_ones(file: Path) -> None:
    words = ("data.source=synthetic:classes=20,examples=1200", *WITHOUT, "downstream.classes=mixed")
    found = material(file, *words, "pretraining.held_out=7", "seeds=[0, 1, 2]")
    pools = [found.federations.pool(seed) for seed in range(20)]
    for pool in pools:
        assert pool == tuple(sorted(set(pool))) and len(pool) == 6
        assert len([label for label in pool if label >= 13]) == 3
    assert len(set(pools)) > 10 and pools[0] == found.federations.pool(0)
    assert {label for pool in pools for label in pool} == set(range(20))
    classes = {label for task in found.tasks("dirichlet(0.5)", 2) for label in task.classes}
    assert classes <= set(pools[2])
    for held, allowed in (("1", "2 to 39"), ("[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]", "2 to 7")):
        with pytest.raises(ValueError, match=rf"mixed classes: .* \(held-out classes allowed: {allowed}\)"):
            plan_cells(material(file, *words, f"pretraining.held_out={held}"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (WITHOUT, r"\[pretraining\]: no class is held out.*give held_out or left_out, or downstream\.classes"),
        (["downstream.classes=mixed"], r"\[downstream\] classes: 'mixed' draws half of the held-out classes"),
        (["downstream.classes=unsen"], r"\[downstream\] classes: unknown classes 'unsen'; did you mean 'unseen'"),
        (["downstream.classes=[]"], r"\[downstream\] classes"),
        (["downstream.classes=[0, 6]"], r"pacs: no class 6 \(allowed: 0 to 5\)"),
        (["downstream.classes=[0, 1, 1]"], r"one or more different labels"),
        (["downstream.classes=[0, 1]"], r"3 classes per task asked for \(allowed: 1 to 2\)"),
    ],
)
def test_wrong_classes_are_named_in_one_line(file: Path, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        plan_cells(material(file, *words))
    assert "\n" not in str(caught.value)


# Starts that are pre-trained in their own way

OWN = (
    'starts=[{method="random"}, {method="fedavg"}, '
    '{method="fedavg", name="even", pretraining={partition={name="iid"}, withheld=0.1}}, '
    '{method="centralized", pretraining={withheld=0.1, partition={name="iid"}}}, '
    '{method="fedavg", name="few", pretraining={clients=4}}, '
    '{method="fedavg", name="same", pretraining={clients=6}}]'
)


def test_starts_share_a_federation_where_their_tables_are_equal(file: Path) -> None:
    found = material(file, *WITHOUT, "pretraining.held_out=3", OWN)
    base = found.pretraining(0)
    federations = {start: found.pretraining(0, start=start) for start in found.parts.starts}
    assert federations["random"] is federations["fedavg"] is federations["same"] is base
    assert federations["even"] is federations["centralized"] is not base
    assert [federations[start].clients for start in ("fedavg", "even", "few")] == [6, 6, 4]
    assert [len(federations[start].server) for start in ("fedavg", "even", "few")] == [0, 18, 0]
    assert np.ptp(federations["even"].parts["train"].sizes) <= 1 < np.ptp(base.parts["train"].sizes)
    assert found.pretraining_run("even", 0).federation is federations["even"]
    assert len(found.pretraining_run("centralized", 0).federation.parts["train"].values) == 180 - 18
    assert [(shared.start, shared.label, shared.key(1)) for shared in found.federations.shared()] == [
        ("", "dirichlet(0.5)", "1"),
        ("even", "iid, for even", "1, for even"),
        ("few", "dirichlet(0.5), for few", "1, for few"),
    ]


def test_what_one_start_changes_leaves_the_others_runs_alone(file: Path) -> None:
    words = (*WITHOUT, "pretraining.held_out=3")
    plain, own = plan_cells(material(file, *words)), plan_cells(material(file, *words, OWN))
    assert {cell.key for cell in plain} < {cell.key for cell in own}
    overridden = plan_cells(material(file, *words, "starts.fedavg.pretraining.withheld=0.2"))
    changed = {cell.start for cell in overridden} - {
        cell.start for cell in overridden if cell.key in {other.key for other in plain}
    }
    assert changed == {"fedavg"}


def test_a_study_records_every_pretraining_federation(file: Path, tmp_path: Path) -> None:
    words = [*WITHOUT, "pretraining.held_out=3", OWN, "seeds=[0]", "downstream.tasks=1"]
    study.run(study.load(file, None, words), tmp_path, threads=1)
    found = material(file, *words)
    summary, holdings = read_json(tmp_path / "summary.json"), read_json(tmp_path / "partitions.json")
    assert summary["fingerprints"]["pretraining"] == {
        key: found.pretraining(0, start=start).fingerprint
        for key, start in {"0": "", "0, for even": "even", "0, for few": "few"}.items()
    }
    assert [(holding["partition"], holding["clients"]) for holding in holdings["pretraining"]] == [
        ("dirichlet(0.5)", 6),
        ("iid, for even", 6),
        ("dirichlet(0.5), for few", 4),
    ]
    kept = {path.stem: load_partition(found.examples, path) for path in (tmp_path / "partitions").glob("pre*")}
    assert {name: federation.clients for name, federation in kept.items()} == {
        "pretraining-s0": 6,
        "pretraining-f1-s0": 6,
        "pretraining-f2-s0": 4,
    }
    runs = {read_json(path / "cell.json")["start"]: path for path in tmp_path.glob("cells/pretrain-*")}
    used = {start: read_json(path / "run.json")["fingerprints"]["pretraining"] for start, path in runs.items()}
    assert (
        used["even"] == kept["pretraining-f1-s0"].fingerprint and used["few"] == kept["pretraining-f2-s0"].fingerprint
    )
    assert used["random"] == used["fedavg"] == kept["pretraining-s0"].fingerprint


def test_packing_knows_cases_and_starts_own_federations(file: Path) -> None:
    found = material(file, OWN, "pretraining.plan.cohort=none", "seeds=[0]", "downstream.personal.local_epochs=3")
    cells = {(cell.kind, cell.start, cell.case, cell.task): cell for cell in plan_cells(found)}
    assert load(found, cells["pretrain", "fedavg", "art", 0]).width == 6
    assert load(found, cells["pretrain", "few", "art", 0]).width == 4
    downstream = cells["downstream", "few", "sketch", 1]
    federation = found.tasks(downstream.partition, 0)[1]
    examples = federation.parts["train"].sizes.sum() / federation.clients
    work = 2 * 3 * 2 * min(32, examples) + 3 * 3 * examples
    assert load(found, downstream).work == pytest.approx(work)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "starts.fedavg.pretraining.withhold=0.1",
            r"\[\[starts\]\] fedavg pretraining: unknown setting 'withhold'",
        ),
        ("starts.fedavg.pretraining.withheld=1", r"\[\[starts\]\] fedavg pretraining withheld: .*less than 1"),
        ("starts.fedavg.pretraining.clients=0", r"\[\[starts\]\] fedavg pretraining clients: .*greater than or equal"),
        ("starts.fedavg.pretraining.held_out=3", r"fedavg pretraining: unknown setting 'held_out'"),
        (
            "starts.fedavg.pretraining.partition.name=idd",
            r"pretraining\.partition name: unknown partition 'idd'; did",
        ),
        ("starts.fedavg.pretraining.partition.alpha=1", r"fedavg pretraining\.partition name: Field required"),
        (
            'starts.fedavg.pretraining.partition={name="iid", alpha=1}',
            r"pretraining\.partition: unknown setting 'alpha'",
        ),
        ("algorithms.fedavg.pretraining.clients=3", r"\[\[algorithms\]\] fedavg pretraining: not allowed here"),
    ],
)
def test_wrong_changes_of_a_start_are_named_in_one_line(file: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        study.load(file, None, [override])
    assert "\n" not in str(caught.value)


def test_a_federation_that_one_start_cannot_have_ends_the_study_before_any_work(file: Path, tmp_path: Path) -> None:
    loaded = study.load(file, None, ["starts.fedavg.pretraining.clients=2"])
    with pytest.raises(ValueError, match="fedavg: .*cohort = 3, but only 2 clients"):
        study.run(loaded, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_resolved_study_loads_as_itself(file: Path, tmp_path: Path) -> None:
    loaded = study.load(file, None, [OWN, "downstream.personal.lr=0.5", 'pretraining.left_out.values=["art"]'])
    (tmp_path / "study.toml").write_text(tomli_w.dumps(loaded.tables()))
    assert study.load(tmp_path / "study.toml") == loaded
    assert study.Study.model_validate_json(loaded.model_dump_json()) == loaded
