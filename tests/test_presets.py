"""The presets of CoPreFL's tables, and how one study file builds on another."""

from __future__ import annotations

import itertools

import pytest

from fedstart.engines.execution import Execution
from fedstart.study import load, presets
from fedstart.study.building import partition_label
from fedstart.study.cells import Material, plan_cells
from fedstart.study.published import find

COPREFL = [name for name in presets() if name.startswith("coprefl-")]
SCALES = ("smoke", "small", "paper")
TABLES = {"table1a", "table1b", "gamma", "inits", "downstream"}
EXPECTED = TABLES | {"mixed", "pacs", "femnist", "participants", "serverdata"}

BASE = """
name = "base"
seeds = [0]
scale = "long"
[data]
source = "digits"
[model]
name = "mlp"
[pretraining]
held_out = 4
clients = 5
partition = { name = "iid" }
plan = { rounds = 1, local_steps = 1 }
[downstream]
tasks = 1
classes_per_task = 2
clients = 3
partitions = [{ name = "iid" }]
plan = { rounds = 1, local_steps = 1 }
[[starts]]
method = "random"
[[starts]]
method = "fedprox"
[[algorithms]]
method = "fedavg"
[scales.long]
pretraining.plan.rounds = 7
starts.fedprox.settings = { mu = 3.0 }
[scales.short]
pretraining.plan.rounds = 2
"""


def write(folder, base=BASE, **files):
    (folder / "base.toml").write_text(base)
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text)
    return folder


def test_every_table_of_the_issue_is_there():
    assert {f"coprefl-{name}" for name in EXPECTED} <= set(COPREFL)


@pytest.mark.parametrize(("name", "scale"), list(itertools.product(COPREFL, SCALES)))
def test_every_preset_can_be_read_at_every_scale(name, scale):
    study = load(name, scale)
    assert study.name == name and study.scale == scale
    assert {claim.first for claim in study.claims} | {claim.second for claim in study.claims} <= {
        entry.name for entry in study.starts
    }


@pytest.mark.parametrize("name", sorted(EXPECTED - {"participants", "femnist"}))
def test_at_scale_paper_the_published_setting_is_untouched(name):
    study = load(f"coprefl-{name}", "paper")
    plan = study.pretraining.plan
    assert (plan["rounds"], plan["cohort"], plan["local_epochs"], plan["batch_size"], plan["lr"]) == (
        50, 20, 5, 32, 0.001,
    )  # fmt: skip
    assert (study.downstream.tasks, study.downstream.clients, study.downstream.plan["rounds"]) == (10, 10, 50)
    assert study.model.name == "resnet18"


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_the_paper_s_numbers_stand_beside_ours(name):
    study = load(f"coprefl-{name}", "paper")
    labels = [partition_label(values) for values in study.downstream.partitions]
    if study.pretraining.left_out:
        labels = [f"{domain}: {label}" for domain in ("art_painting", "cartoon", "photo", "sketch") for label in labels]
    settings = itertools.product(
        [entry.name for entry in study.starts], [entry.name for entry in study.algorithms], labels
    )
    rows = find(study.published, settings)
    assert {row["start"] for row in rows} == set(study.published.rows)
    assert all(row["accuracy"] > row["low10"] for row in rows if row["low10"] is not None)


def test_table_1a_is_the_paper_s_to_the_digit():
    study = load("coprefl-table1a", "paper")
    starts = [entry.name for entry in study.starts]
    rows = find(study.published, itertools.product(starts, ["fedavg"], ["dirichlet(0.5)"]))
    assert {row["start"]: (row["accuracy"], row["variance"]) for row in rows} == {
        "random": (75.32, 41.39),
        "fedavg": (78.96, 64.80),
        "fedmeta": (82.45, 48.72),
        "qffl": (80.01, 88.92),
        "coprefl": (83.29, 34.69),
    }


def test_a_table_may_be_named_by_its_number():
    assert load("coprefl-pacs", "smoke", ["published.table=24"]).published.table == "24"


def test_selection_may_be_a_word():
    assert load("coprefl-table1a", "smoke", ["selection=paper"]).selection.rule == "paper"
    with pytest.raises(ValueError, match=r"\[selection\] rule: Input should be 'validation' or 'paper'"):
        load("coprefl-table1a", "smoke", ["selection=papers"])


def test_server_steps_without_examples_at_the_server_are_refused_before_anything_runs(tmp_path):
    study = load(write(tmp_path) / "base.toml", None, ["pretraining.plan.server_steps=2"])
    with pytest.raises(ValueError, match="fedprox: pre-training: the server has 0 examples of its own, 1 are needed"):
        plan_cells(Material(study, {"pretrain": Execution(), "downstream": Execution()}))


def test_a_file_says_only_what_differs(tmp_path):
    write(tmp_path, child='extends = "base.toml"\nname = "child"\n[downstream]\ntasks = 5\n[scales.long]\nseeds = [4]')
    study = load(tmp_path / "child.toml")
    assert (study.name, study.downstream.tasks, study.downstream.clients) == ("child", 5, 3)
    assert (study.seeds, study.pretraining.plan["rounds"]) == ([4], 7)
    assert study.starts[1].settings == {"mu": 3.0}
    assert load(tmp_path / "child.toml", "short").pretraining.plan["rounds"] == 2


def test_a_list_takes_the_place_of_the_other_s_and_of_what_its_scales_say(tmp_path):
    write(tmp_path, child='extends = "base.toml"\nname = "child"\n[[starts]]\nmethod = "scaffold"')
    study = load(tmp_path / "child.toml", "long")
    assert [entry.name for entry in study.starts] == ["scaffold"]
    assert [entry.name for entry in study.algorithms] == ["fedavg"]


def test_none_takes_a_setting_out(tmp_path):
    child = 'extends = "base.toml"\nname = "child"\n[pretraining]\nheld_out = "none"\n[downstream]\nclasses = "seen"'
    assert load(write(tmp_path, child=child) / "child.toml").pretraining.held_out is None


def test_a_preset_can_be_extended_by_name_and_a_chain_of_files_too(tmp_path):
    write(tmp_path, a='extends = "digits"\nname = "a"\nseeds = [9]', b='extends = "a.toml"\nname = "b"')
    study = load(tmp_path / "b.toml")
    assert (study.name, study.seeds, study.data.source) == ("b", [9], "digits")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('extends = "coprefl-cifar10"\nname = "x"', "did you mean 'coprefl-cifar100'"),
        ('extends = "nothing.toml"\nname = "x"', "no such file"),
        ('extends = 3\nname = "x"', r"name or path of another study is needed \(given: 3\)"),
        ('extends = "child.toml"\nname = "x"', "name or path of another study is needed"),
        ('extends = "base.toml"\nname = "x"\n[scales.long]\nstarts.fedprix.settings = { mu = 1.0 }', "fedprix"),
    ],
)
def test_a_wrong_base_is_one_line(tmp_path, text, message):
    write(tmp_path, child=text)
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path / "child.toml")
    assert "\n" not in str(error.value) and "child.toml" in str(error.value)
