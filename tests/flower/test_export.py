"""`fedstart.flower.export`: the written project is what the study runs, to the bit, and refuses other data."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

flwr = pytest.importorskip("flwr", reason="needs the extra fedstart[flower]")

from small import config_of, grid_of, run_files, study  # noqa: E402

from fedstart import study as studies  # noqa: E402
from fedstart import tree  # noqa: E402
from fedstart.flower import environment  # noqa: E402
from fedstart.flower.export import Choice, export  # noqa: E402
from fedstart.runs import RunDirectory  # noqa: E402
from fedstart.starts import Start  # noqa: E402
from fedstart.starts._files import read_weights  # noqa: E402


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small study, run by the local engine."""
    return studies.run(study(), tmp_path_factory.mktemp("study") / "done")


def cell(done: Path, begin: str) -> Path:
    (found,) = [path for path in (done / "cells").iterdir() if path.name.startswith(begin)]
    return found


@pytest.mark.parametrize("start", ["fedavg", "coprefl"])
def test_a_pretraining_app_makes_the_study_s_start_to_the_bit(done: Path, tmp_path: Path, start: str) -> None:
    app = export(study(), tmp_path / "app", Choice(start=start))
    run_files(app.directory, config_of(app))
    local = Start.load(cell(done, f"pretrain-{start}-s0-") / "start")
    made = Start.load(app.out / "start")
    assert tree.fingerprint(made.weights) == tree.fingerprint(local.weights)
    assert made.card == local.card.model_copy(update={"seed": 0})
    assert RunDirectory(app.out).status == "done" and app.nodes == 4


def test_a_start_with_its_own_pretraining_is_exported_with_it(tmp_path: Path) -> None:
    own = 'starts.coprefl.pretraining={ partition = { name = "iid" }, withheld = 0.2, clients = 3 }'
    config = config_of(export(study(own), tmp_path / "app", Choice(start="coprefl")))
    run_files(tmp_path / "app", config, grid_of(config, nodes=3))
    assert RunDirectory(tmp_path / "app" / "run").status == "done"
    assert (config["partition.name"], config["federation.withheld"]) == ("iid", 0.2)


def test_steps_on_the_server_s_examples_are_refused_before_training(tmp_path: Path) -> None:
    app = export(study("starts.fedavg.plan.server_steps=5"), tmp_path / "app", Choice(start="fedavg"))
    with pytest.raises(ValueError, match=r"server_steps: a Flower server holds no examples \(allowed: 0\)"):
        run_files(app.directory, config_of(app))


def test_a_downstream_app_scores_the_study_s_clients(done: Path, tmp_path: Path) -> None:
    app = export(study(), tmp_path / "app", Choice(start="coprefl", task=1), done / "cells")
    run_files(app.directory, config_of(app))
    local = cell(done, "coprefl-fedavg-dirichlet-0.5-t1-s0-")
    assert (app.out / "clients.parquet").read_bytes() == (local / "clients.parquet").read_bytes()
    ours, theirs = RunDirectory(app.out).rounds(), RunDirectory(local).rounds()
    assert [line["accuracy"] for line in ours] == [line["accuracy"] for line in theirs]
    assert [line["cost"] for line in ours] == [line["cost"] for line in theirs]
    assert 0 < Start.load(app.out / "start").card.scores["mean"] <= 100


def test_a_start_without_training_needs_no_finished_study(tmp_path: Path) -> None:
    app = export(study(), tmp_path / "app", Choice(start="random", task=0))
    weights = read_weights(app.directory / "begin.safetensors")
    assert weights and config_of(app)["run.begin"] == str(app.directory / "begin.safetensors")


def test_the_project_is_small_readable_and_can_be_written_again(tmp_path: Path) -> None:
    app = export(study(), tmp_path / "app", Choice(start="fedavg"))
    text = (app.directory / "pyproject.toml").read_text("utf-8")
    assert "rounds = 3\n" in text and "[tool.flwr.app.config.plan]" in text and 'shape = "[1, 8, 8]"' in text
    for name in ("server_app.py", "client_app.py"):
        code = [line for line in (app.directory / name).read_text("utf-8").splitlines() if line]
        assert len(code) == 5
    again = export(study(), tmp_path / "app", Choice(start="coprefl"))
    assert config_of(again)["run.method"] == "coprefl"
    script = f'. "{app.directory}/environment.sh"; env'
    shell = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    assert {f"{name}={value}" for name, value in environment.variables().items()} <= set(shell)


def test_flower_bundles_the_project_as_it_is(tmp_path: Path) -> None:
    app = export(study(), tmp_path / "app", Choice(start="random", task=0))
    (app.out / "old").mkdir(parents=True)
    (app.out / "old" / "card.json").write_text("{}")
    flwr_program = Path(sys.executable).with_name("flwr")
    variables = {**os.environ, **environment.variables(tmp_path / "home")}
    command = [str(flwr_program), "build", "--app", str(app.directory)]
    built = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stdout + built.stderr
    (bundle,) = tmp_path.glob("*.fab")
    inside = {name for name in zipfile.ZipFile(bundle).namelist() if not name.startswith(".info")}
    assert {"pyproject.toml", "server_app.py", "client_app.py", "README.md"} <= inside
    assert not [name for name in inside if "run/" in name or "safetensors" in name]


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (Choice(start="random"), "unknown federated start 'random' (allowed: coprefl, fedavg)"),
        (Choice(start="coprfl"), "unknown federated start 'coprfl'; did you mean 'coprefl'?"),
        (Choice(seed=3), "unknown seed '3' (allowed: 0)"),
        (Choice(algorithm="fedavg"), "algorithm belongs to a downstream run: say which with task"),
        (Choice(task=2, start="random"), "task 2 does not exist (allowed: 0 to 1)"),
        (Choice(task=0, start="random", partition="iid"), "unknown partition 'iid'"),
        (Choice(task=0, start="coprefl"), "start 'coprefl' of seed 0 is not made yet"),
    ],
)
def test_a_choice_that_is_not_there_is_refused_in_one_line(tmp_path: Path, choice: Choice, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        export(study(), tmp_path / "app", choice)
    assert said in str(caught.value) and "\n" not in str(caught.value) and not (tmp_path / "app").exists()


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no app; choose another directory"):
        export(study(), tmp_path, Choice(start="fedavg"))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("run_config", "node_config", "said"),
    [
        ({"federation.fingerprint": 64 * "0"}, {}, "the data here (digits) are not those that the app was made with"),
        ({}, {"data.source": "synthetic:classes=10,examples=400,size=8"}, "unknown class 'pattern 0' (allowed: 0, 1"),
        ({}, {"data.source": "synthetic:classes=10,size=9"}, "(1, 9, 9), the model takes (1, 8, 8)"),
        ({}, {"data.sauce": "digits"}, "unknown setting 'sauce'; did you mean 'source'?"),
    ],
)
def test_a_node_with_other_data_takes_no_part(
    tmp_path: Path, run_config: dict[str, str], node_config: dict[str, str], said: str
) -> None:
    app = export(study(), tmp_path / "app", Choice(start="fedavg"))
    config = {**config_of(app), "patience.join_seconds": 0.2, **run_config}
    with pytest.raises(ValueError) as caught:
        run_files(app.directory, config, grid_of(config, **node_config))
    assert "0 of 4 nodes came in 0.2 seconds" in str(caught.value) and "\n" not in str(caught.value)
    assert said in str(caught.value)
    assert RunDirectory(app.out).status == "failed"
