"""The presets of CoPreFL's tables and of Initialization Matters, and how one study file builds on another."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import pytest
import torch

from fedstart.data.sources import load as load_source
from fedstart.engines.execution import Execution
from fedstart.models import Model
from fedstart.models.resnet18 import ResNet18
from fedstart.study import load, presets
from fedstart.study.building import changed, partition_label
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


# Initialization Matters

QUESTIONS = ("algorithms", "depth", "norms", "schedule", "schedule-femnist", "sources")
MATTERS = ("init-matters", *(f"init-matters-{question}" for question in QUESTIONS))
ROOT = Path(__file__).resolve().parents[1]


def plans(study):
    """The whole plan of each algorithm."""
    return [changed(study.downstream.plan, entry.plan) for entry in study.algorithms]


def test_every_question_of_the_issue_is_there():
    assert {name for name in presets() if name.startswith("init-matters")} == set(MATTERS)


@pytest.mark.parametrize(("name", "scale"), list(itertools.product(MATTERS, SCALES)))
def test_every_preset_of_initialization_matters_can_be_read_at_every_scale(name, scale):
    study = load(name, scale)
    assert (study.name, study.scale) == (name, scale)
    assert study.claims and study.downstream.watch.probes == {"misalignment": {"kind": "response"}}
    assert len(study.seeds) >= (1 if scale == "smoke" else 3)
    assert (study.downstream.clients, study.downstream.tasks) == (20, 1)
    assert study.downstream.classes_per_task == (5 if name == "init-matters-sources" else 10)
    networks = {study.model.name} | {entry.model.name for entry in study.starts if entry.model}
    other = {"init-matters-depth": {"resnet18", "plain_cnn", "vgg"}, "init-matters-schedule-femnist": {"cnn3x3"}}
    assert networks == other.get(name, {"resnet18"})


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize("name", MATTERS)
def test_algorithms_take_as_many_local_steps_and_schedules_as_many_rounds(name, scale):
    found = plans(load(name, scale))
    if "schedule" in name:
        assert len({plan["rounds"] for plan in found}) == 1
        assert len({plan["cohort"] for plan in found}) == 1
        assert max(plan["local_steps"] for plan in found if "schedule" not in plan) == 50
        assert {plan["local_steps"] for plan in found if "schedule" in plan} == {50}
    else:
        assert {plan["rounds"] * plan["local_steps"] for plan in found} == {400 if scale == "small" else 4000}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", MATTERS)
def test_every_start_is_made_by_the_same_plan(name, scale):
    assert [entry.plan for entry in load(name, scale).starts if entry.plan] == []


@pytest.mark.parametrize("scale", ["small", "smoke"])
def test_every_source_gives_as_many_minibatches(scale):
    plan = load("init-matters-sources", scale).pretraining.plan
    assert plan["local_steps"] and "local_epochs" not in plan


@pytest.mark.parametrize("name", [name for name in MATTERS if not name.endswith("femnist")])
def test_at_scale_paper_the_network_is_the_paper_s(name):
    study = load(name, "paper")
    assert study.model.name == "resnet18" and study.data.source.endswith("cifar10")
    assert study.model.settings == {"norm": "group", "groups": 2, "stem": "cifar"}


@pytest.mark.parametrize(
    ("scale", "expected"),
    [("paper", {}), ("small", {"width": 16, "stem": "imagenet"}), ("smoke", {"width": 4, "stem": "imagenet"})],
)
def test_batchnorm_and_groupnorm_stand_in_the_same_network(scale, expected):
    study = load("init-matters-norms", scale)
    own = [entry.model.settings for entry in study.starts if entry.model]
    assert own == [{"norm": "batch", **expected}] * 2 and len(study.starts) == 4
    assert study.model.settings == {"norm": "group", "groups": 2, "stem": "cifar", **expected}


def test_a_source_of_its_own_is_what_a_start_s_name_says():
    study = load("init-matters-sources", "small")
    sources = {entry.name: (entry.pretraining or {}).get("data", {}).get("source") for entry in study.starts}
    assert {name: source and source.rpartition("/")[2] for name, source in sources.items()} == {
        "none": None,
        "other classes": None,
        "CIFAR-100": "cifar100",
        "Tiny-ImageNet subset": "tiny_imagenet_subset",
        "FEMNIST": "femnist",
        "fractals": None,
    }
    assert (study.pretraining.held_out, study.downstream.classes) == (5, "unseen")


OVERRIDES = (
    "starts.pre-trained.method=checkpoint",
    "starts.pre-trained.pretraining=none",
    'model.settings.stem="imagenet"',
)
WITHOUT_DATA = (
    "data.source=synthetic:size=32,channels=3,examples=300,classes=10",
    "data.label=none",
    "downstream.clients=3",
    "downstream.plan.cohort=3",
    'downstream.partitions=[{name="iid"}]',
    "seeds=[0]",
)


def imagenet_file(folder, width):
    """What torchvision's file of ImageNet weights holds, but for the numbers: 1000 classes, BatchNorm's statistics."""
    model = Model(ResNet18(norm="batch", stem="imagenet", width=width), (3, 224, 224), 1000)
    draws = torch.Generator().manual_seed(1)
    weights = {
        name: tensor + torch.rand(tensor.shape, generator=draws) if "running" in name else tensor
        for name, tensor in model.init(7).items()
    }
    path = folder / "resnet18-f37072fd.pth"
    torch.save(weights, path)
    return path, weights


def imagenet_start(path, scale, *words):
    """The pre-trained start of init-matters where it is that file: its initial weights, and a task's."""
    place = f"starts.pre-trained.settings.path={path}"
    material = Material(load("init-matters", scale, [*OVERRIDES, place, *WITHOUT_DATA, *words]))
    assert {cell.rounds for cell in plan_cells(material) if cell.kind == "pretrain"} == {0}
    weights = material.begin("pre-trained", 0)
    return weights, material.transfer("pre-trained", weights, 10, 0, 0)


def test_imagenet_weights_take_the_place_of_cifar100(tmp_path, monkeypatch):
    """As docs/studies.md says, in a narrow network."""
    monkeypatch.setattr("fedstart.study.cells.calibrate", lambda *_: Execution())
    path, given = imagenet_file(tmp_path, width=4)
    for scale in ("small", "paper"):
        weights, moved = imagenet_start(path, scale, "model.settings.width=4")
        dropped = given.keys() - weights.keys()
        assert {name.rpartition(".")[2] for name in dropped} == {"running_mean", "running_var", "num_batches_tracked"}
        assert weights.keys() < given.keys() and len(dropped) == 3 * 20
        assert {name for name in weights if not weights[name].equal(given[name])} == {"fc.weight", "fc.bias"}
        assert moved["fc.weight"].shape == (10, 32) and moved["layer4.1.bn2.weight"].equal(given["layer4.1.bn2.weight"])
    weights, _ = imagenet_start(path, "paper", "model.settings.width=4", "model.settings.norm=batch")
    assert weights.keys() == given.keys()
    assert weights["bn1.running_var"].equal(given["bn1.running_var"])


def test_imagenet_weights_need_their_width_and_stem(tmp_path, monkeypatch):
    monkeypatch.setattr("fedstart.study.cells.calibrate", lambda *_: Execution())
    path, _ = imagenet_file(tmp_path, width=4)
    with pytest.raises(
        ValueError, match=r"'conv1.weight' has shape \(4, 3, 7, 7\), but the model needs \(16, 3, 7, 7\)"
    ):
        imagenet_start(path, "small")
    with pytest.raises(ValueError, match=r"needs \(4, 3, 3, 3\)"):
        imagenet_start(path, "paper", "model.settings.width=4", "model.settings.stem=cifar")


@pytest.fixture(scope="module")
def decoded():
    """Each source is read once for all presets."""
    read = functools.cache(
        lambda spec, input, label, columns: load_source(spec, input=input, label=label, columns=columns)
    )
    return lambda spec, *, input=None, label=None, columns=(): read(spec, input, label, tuple(columns))


@pytest.mark.data
@pytest.mark.skipif(not (ROOT.parent / "shared" / "data").is_dir(), reason="../shared/data is missing")
@pytest.mark.parametrize("name", MATTERS)
def test_its_cells_can_be_planned_on_the_data_that_it_names(name, decoded, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("fedstart.data.sources.load", decoded)
    monkeypatch.setattr("fedstart.study.cells.calibrate", lambda *_: Execution())
    study = load(name, "smoke")
    material = Material(study)
    cells = plan_cells(material)
    settings = len(study.algorithms) * len(study.downstream.partitions)
    assert len({cell.key for cell in cells}) == len(cells) == len(study.starts) * (1 + settings)
    usual = {"init-matters-sources": 5, "init-matters-schedule-femnist": 52}.get(name, 10)
    sources = {None: usual, "cifar100": 100, "tiny_imagenet_subset": 200, "femnist": 62}
    for entry in study.starts:
        run = material.pretraining_run(entry.name, 0)
        source = (entry.pretraining or {}).get("data", {}).get("source")
        assert run.model.classes == (
            10 if entry.method == "fractals" else sources[source and source.rpartition("/")[2]]
        )
        assert run.federation.examples.shape == ((1, 28, 28) if name.endswith("femnist") else (3, 32, 32))
