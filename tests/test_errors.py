"""Wrong input: always exit status 2, one line on stderr that names the culprit, and never a traceback."""

from __future__ import annotations

import errno
import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fedstart.cli import main

SOURCE = "synthetic:classes=6,examples=240,size=4"
ONE = f"pretrain fedavg --data {SOURCE} --out out plan.rounds=1"
DOWN = f"--data {SOURCE} --classes 0-2 --clients 4 --out down plan.rounds=1"

STUDY = f"""
name = "tiny"
seeds = [0]
[data]
source = "{SOURCE}"
[model]
name = "mlp"
settings = {{ hidden = [8] }}
[pretraining]
held_out = 3
clients = 4
partition = {{ name = "iid" }}
[pretraining.plan]
rounds = 2
local_steps = 2
lr = 0.1
[downstream]
tasks = 1
classes_per_task = 2
clients = 4
partitions = [{{ name = "dirichlet", alpha = 0.5 }}]
[downstream.plan]
rounds = 2
local_epochs = 1
lr = 0.1
[[starts]]
method = "random"
[[starts]]
method = "coprefl"
settings = {{ balance = 0.5 }}
[[algorithms]]
method = "fedavg"
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of its own for every test; how to compute is measured once for all."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDSTART_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    return tmp_path


Refused = Callable[[str], str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must fail, and returns its one line."""

    def run(line: str) -> str:
        capsys.readouterr()
        status = main(shlex.split(line))
        printed = capsys.readouterr()
        assert status == 2
        assert printed.out == ""
        assert "Traceback" not in printed.err and "a fault of fedstart" not in printed.err
        (message,) = printed.err.splitlines()
        assert message.startswith("fedstart: error: ")
        return message

    return run


COMMANDS = [
    # the words themselves
    ("lst", "No such command 'lst'"),
    ("list --fast", "No such option"),
    ("run", "Missing argument"),
    ("pretrain fedavg --out out", "Missing option '--data'"),
    ("list methodz", "unknown kind 'methodz'; did you mean 'methods'?"),
    # studies
    ("run digitz", "unknown study 'digitz'; did you mean 'digits'?"),
    ("run nothing.toml", "nothing.toml: cannot be read: no such file"),
    ("run digits --scale huge", "unknown scale 'huge'"),
    ("run digits --jobs 0", "'--jobs'"),
    ("run digits --threads none", "'--threads'"),
    ("run digits downstream.plan.rounds", "write path.to.key=value"),
    ("run digits downstream.plan.ronds=3", "unknown setting 'ronds'; did you mean 'rounds'?"),
    ("run digits downstream.plan.lr=-1", "digits.toml [downstream.plan] lr: Input should be greater than 0"),
    ("run digits starts.copref.plan.lr=1", "unknown entry 'copref'; did you mean 'coprefl'?"),
    ("run digits pretraining.plan.local_steps=1 pretraining.plan.local_epochs=1", "exactly one of local_steps"),
    # names and settings of a single run
    (ONE.replace("fedavg", "fedavgg"), "unknown method 'fedavgg'; did you mean 'fedavg'?"),
    (f"{ONE} --model mpl", "unknown model 'mpl'; did you mean 'mlp'?"),
    (f"{ONE} --partition dirichlt", "unknown partition 'dirichlt'; did you mean 'dirichlet'?"),
    (f"{ONE} plan.lr=-0.1", "[plan]: lr: Input should be greater than 0 (given: -0.1)"),
    (f"{ONE} plan.lr=fast", "[plan]: lr: Input should be a valid number"),
    (f"{ONE} plan.lr=inf", "[plan]: lr: Input should be a finite number"),
    (f"{ONE} plan.local_steps=1 plan.local_epochs=1", "exactly one of local_steps and local_epochs"),
    (f"{ONE} plan.lr", "'plan.lr' is no setting: write TABLE.KEY=VALUE"),
    (f"{ONE} plan.lr=1 plan.lr=2", "'plan.lr' is given twice"),
    (f"{ONE} plann.lr=1", "unknown table of settings 'plann'; did you mean 'plan'?"),
    (f"{ONE} plan.cohort=11", "cohort = 11, but only 10 clients"),
    (f"{ONE} partition.alpha=1", "[partition]: unknown setting 'alpha'"),
    (f"{ONE} model.hidden=[0]", "[model] 'mlp': hidden.0: Input should be greater than or equal to 1"),
    (f"{ONE} --model custom model.factory=no.such:net model.head=fc", "no.such"),
    (
        ONE.replace("fedavg", "coprefl") + " method.balance=2",
        "[method]: balance: Input should be less than or equal to 1",
    ),
    (ONE.replace("fedavg", "coprefl") + " method.balanse=1", "unknown setting 'balanse'; did you mean 'balance'?"),
    (ONE.replace("fedavg", "checkpoint") + " method.path=no.safetensors", "no.safetensors: no such file"),
    (ONE.replace("fedavg", "checkpoint"), "[method]: path: Field required"),
    # data
    (f"{ONE} --data digitz", "unknown data 'digitz'; did you mean 'digits'?"),
    (f"{ONE} --data path:no.parquet", "no.parquet: no such file or folder"),
    (f"{ONE} --data synthetic:clases=3", "unknown setting 'clases'; did you mean 'classes'?"),
    (f"{ONE} --data digits --label digit", "digits: has no setting 'label'"),
    (f"{ONE} --classes 0-6", "class 6 does not exist (allowed: 0 to 5)"),
    (f"{ONE} --classes 2", "at least two different classes"),
    (f"{ONE} --classes few", "write numbers and ranges, for instance 0-4,7"),
    (f"{ONE} --clients 0", "'--clients'"),
    (f"{ONE} --clients 25", "240 examples are too few for 25 clients with 10 each"),
    (f"{ONE} --partition natural", "[partition]: column: Field required"),
    (f"{ONE} --partition natural partition.column=writer", "synthetic: no column 'writer' (columns: group)"),
    # starts and reports
    (f"federate none {DOWN}", "none/weights.safetensors: no such file"),
    (f"federate none {DOWN} --method random", "unknown method 'random'"),
    (f"federate none {DOWN} --model mlp", "the Start says which model it is"),
    ("report none", "none: no such directory"),
    ("report .", "neither a study nor a run directory"),
]


@pytest.mark.parametrize(("line", "fragment"), COMMANDS, ids=[line.replace(SOURCE, "S") for line, _ in COMMANDS])
def test_a_wrong_command_line(line: str, fragment: str, refused: Refused, place: Path) -> None:
    assert fragment in refused(line)
    assert not (place / "out").exists()  # refused before anything is written


TOML = [
    ('name = "tiny"', 'name = "tiny', "study.toml: not valid TOML: "),
    ('name = "tiny"', 'name = "../tiny"', "study.toml name: String should match pattern"),
    ("seeds = [0]", "seeds = []", "study.toml seeds: List should have at least 1 item"),
    ("seeds = [0]", "", "study.toml seeds: Field required"),
    ("seeds = [0]", "seeds = [0]\nsede = 1", "study.toml: unknown setting 'sede'; did you mean 'seeds'?"),
    ('name = "mlp"', 'name = "mpl"', "study.toml [model] name: unknown model 'mpl'; did you mean 'mlp'?"),
    ("hidden = [8]", "hiden = [8]", "study.toml [model.settings]: unknown setting 'hiden'; did you mean 'hidden'?"),
    ("lr = 0.1", 'lr = "slow"', "study.toml [pretraining.plan] lr: Input should be a valid number"),
    ("lr = 0.1", "lr = 0", "study.toml [pretraining.plan] lr: Input should be greater than 0"),
    ("local_steps = 2", "", "study.toml [pretraining.plan]: give exactly one of local_steps and local_epochs"),
    ("local_steps = 2", "local_epochs = 1\nlocal_steps = 2", "[pretraining.plan]: give exactly one of"),
    ("rounds = 2", "rounds = 1.5", "study.toml [pretraining.plan] rounds: Input should be a valid integer"),
    ("rounds = 2", "rounds = 2\nseed = 3", "study.toml [pretraining.plan] seed: not allowed here"),
    ("clients = 4", "clients = 0", "study.toml [pretraining] clients"),
    ('name = "iid"', 'name = "idd"', "[pretraining.partition] name: unknown partition 'idd'; did you mean 'iid'?"),
    ("alpha = 0.5", "alpha = -1", "study.toml [[downstream.partitions]] alpha: Input should be greater than 0"),
    ('"coprefl"', '"coprefll"', "[[starts]] coprefll method: unknown method 'coprefll'; did you mean 'coprefl'?"),
    ('"fedavg"', '"random"', "study.toml [[algorithms]] random method: unknown method 'random'"),
    ("balance = 0.5", "balance = 2", "study.toml [[starts]] coprefl settings balance: Input should be less than"),
    ('"random"', '"coprefl"', "study.toml [[starts]]: 'coprefl' is there twice"),
    ("tasks = 1", "tasks = 1\ntest_fraction = 1", "study.toml [downstream] test_fraction: Input should be less than 1"),
    ("classes_per_task = 2", "classes_per_task = 4", "4 classes per task asked for (allowed: 1 to 3)"),
    ("held_out = 3", "held_out = 6", "synthetic: cannot hold out 6 of 6 classes (allowed: 1 to 5)"),
    ("held_out = 3", "held_out = [3, 9]", "synthetic: no class 9 (allowed: 0 to 5)"),
    ("clients = 4", "clients = 40", "120 examples are too few for 40 clients"),
    ("[data]", "[data]\nmerge = false", "synthetic has no official splits; use merge = true"),
    ("rounds = 2", "rounds = 2\ncohort = 9", "cohort = 9, but only 4 clients"),
]


@pytest.mark.parametrize(("old", "new", "fragment"), TOML, ids=[new or f"no {old}" for old, new, _ in TOML])
def test_a_wrong_study_file(old: str, new: str, fragment: str, refused: Refused, place: Path) -> None:
    assert old in STUDY
    (place / "study.toml").write_text(STUDY.replace(old, new, 1))
    assert fragment in refused("run study.toml --out out")
    assert not (place / "out").exists()


def write_table(path: Path, labels: list[int], classes: tuple[str, ...], **columns: list[int]) -> None:
    """A Parquet file as `datasets` writes it: one feature `x`, one or more columns with class names."""
    described = {"label": labels} | columns
    features = {name: {"names": list(classes), "_type": "ClassLabel"} for name in columns or {"label": 0}}
    table = pa.table({"x": np.linspace(0, 1, len(labels), dtype=np.float32), **(columns or described)})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(table.replace_schema_metadata(metadata), path)


def test_a_damaged_parquet_file(refused: Refused, place: Path) -> None:
    write_table(place / "data.parquet", [0, 1] * 100, ("a", "b"))
    content = (place / "data.parquet").read_bytes()
    (place / "data.parquet").write_bytes(content[: len(content) // 2])
    assert "data.parquet: cannot be read as Parquet" in refused(f"{ONE} --data data.parquet")


def test_a_column_that_is_not_there(refused: Refused, place: Path) -> None:
    write_table(place / "data.parquet", [0, 1] * 100, ("a", "b"))
    message = refused(f"{ONE} --data data.parquet --label labels")
    assert "data.parquet: unknown column 'labels'; did you mean 'label'?" in message
    assert "data.parquet: unknown column 'pixels'" in refused(f"{ONE} --data data.parquet --input pixels")


def test_several_label_columns(refused: Refused, place: Path) -> None:
    write_table(place / "data.parquet", [0, 1], ("a", "b"), fine=[0, 1], coarse=[1, 0])
    message = refused(f"{ONE} --data data.parquet")
    assert "several label columns (fine, coarse)" in message or "several label columns (coarse, fine)" in message


def test_a_label_out_of_range(refused: Refused, place: Path) -> None:
    write_table(place / "data.parquet", [0, 1, 2], ("a", "b"))
    message = refused(f"{ONE} --data data.parquet")
    assert "column 'label': label 2 in row 2 is out of range (allowed: 0 to 1)" in message


def test_an_empty_table(refused: Refused, place: Path) -> None:
    (place / "data.csv").write_text("x,label\n")
    assert "data: no rows" in refused(f"{ONE} --data data.csv")


def test_a_client_without_test_examples(refused: Refused, place: Path) -> None:
    (place / "folder").mkdir()
    write_table(place / "folder/train.parquet", [0, 1, 2, 3, 4, 5] * 40, tuple("abcdef"))
    write_table(place / "folder/test.parquet", [0, 1, 2, 3, 4, 5], tuple("abcdef"))
    (place / "study.toml").write_text(STUDY.replace(f'"{SOURCE}"', '"path:folder"\nmerge = false'))
    message = refused("run study.toml --out out")
    assert "is left without official test examples" in message and "use fewer clients or merge = true" in message


def pretrained(line: str) -> None:
    assert main([*shlex.split(line), "--quiet"]) == 0


def test_a_damaged_start(refused: Refused, place: Path) -> None:
    pretrained(ONE)
    weights = place / "out/start/weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    assert "out/start/weights.safetensors: cannot be read as weights" in refused(f"federate out {DOWN}")
    weights.write_bytes(whole[:-4] + b"\0\0\0\0")
    assert "these are not the weights that out/start/card.json describes" in refused(f"federate out {DOWN}")
    weights.write_bytes(whole)
    (place / "out/start/card.json").write_text("{")
    assert "out/start/card.json: not readable as JSON" in refused(f"federate out {DOWN}")
    weights.unlink()
    assert "out/start/weights.safetensors: no such file" in refused(f"federate out {DOWN}")


def test_a_start_that_does_not_fit(refused: Refused, place: Path) -> None:
    pretrained(ONE)
    message = refused(f"federate out --data {SOURCE.replace('size=4', 'size=5')} --out down")
    assert "the Start takes inputs of shape (1, 4, 4), but synthetic has shape (1, 5, 5)" in message
    save_file({"bare": torch.zeros(3)}, place / "bare.safetensors")
    assert "say with --model which architecture" in refused(f"federate bare.safetensors {DOWN}")
    assert "bare.safetensors: unknown tensor 'bare'" in refused(f"federate bare.safetensors {DOWN} --model mlp")
    message = refused(f"federate out/start/weights.safetensors {DOWN} --model mlp model.hidden=[8]")
    assert "--model and model.* are for bare weights" in message
    os.rename(place / "out/start/weights.safetensors", place / "moved.safetensors")
    message = refused(f"federate moved.safetensors {DOWN} --model mlp model.hidden=[8]")
    assert "has shape (200, 16), but the model needs (8, 16)" in message
    assert "test_fraction must be at least 0" in refused(
        f"federate moved.safetensors {DOWN} --model mlp --test-fraction 1"
    )


DIVERGING = "plan.rounds=50 plan.lr=1e4 plan.weight_decay=1 plan.local_steps=2"


def test_training_that_diverges_names_the_round_and_keeps_the_last_good_one(refused: Refused, place: Path) -> None:
    message = refused(f"pretrain fedavg --data {SOURCE} --out out {DIVERGING}")
    finished = len((place / "out/rounds.jsonl").read_text().splitlines())
    assert finished > 0
    assert f"round {finished + 1}: the training loss or a weight is NaN or infinite" in message
    assert "out keeps the last good round" in message
    with safe_open(place / "out/checkpoint.safetensors", "pt") as stored:
        assert stored.metadata()["round"] == str(finished)
    stored = load_file(place / "out/checkpoint.safetensors")
    assert stored and all(tensor.isfinite().all() for tensor in stored.values())
    run = json.loads((place / "out/run.json").read_text())
    assert run["status"] == "failed" and f"round {finished + 1}" in run["error"]


def test_a_study_with_a_run_that_diverges_still_ends_in_a_report(
    capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    diverging = 'method = "fedavg"\nplan = { lr = 1e30 }'
    (place / "study.toml").write_text(STUDY.replace('method = "random"', diverging))
    assert main(["run", "study.toml", "--out", "out", "--json"]) == 2
    printed = capsys.readouterr()
    (message,) = printed.err.splitlines()
    assert "1 of 3 runs diverged, the others are in out/report.html; first: pretrain-fedavg-s0-" in message
    assert "round 1: the training loss or a weight is NaN or infinite" in message
    found = json.loads(printed.out)
    assert len(found["failures"]) == 1 and [row["start"] for row in found["summary"]["rows"]] == ["coprefl"]


def test_a_directory_that_holds_something_else(refused: Refused, place: Path) -> None:
    pretrained(ONE)
    assert "out holds another run: settings.plan.lr is 0.01 there, not 0.2" in refused(f"{ONE} plan.lr=0.2")
    (place / "study.toml").write_text(STUDY)
    assert "out holds no study, but " in refused("run study.toml --out out")
    (place / "other").mkdir()
    (place / "other/study.toml").write_text('name = "large"\n')
    assert "other holds the study 'large', not 'tiny'" in refused("run study.toml --out other")
    (place / "notes").mkdir()
    (place / "notes/diary.txt").write_text("dear diary")
    assert "notes is not empty and holds no run.json" in refused(ONE.replace("--out out", "--out notes"))
    assert (place / "notes/diary.txt").read_text() == "dear diary"


@pytest.mark.parametrize("line", [ONE.replace("--out out", "--out file/out"), "run study.toml --out file/out"])
def test_a_directory_that_cannot_be_made(line: str, refused: Refused, place: Path) -> None:
    (place / "file").write_text("in the way")
    (place / "study.toml").write_text(STUDY)
    assert "cannot make file/out: Not a directory" in refused(line)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_is_not_ours(refused: Refused, place: Path) -> None:
    (place / "closed").mkdir(mode=0o500)
    assert "cannot make closed/out: Permission denied" in refused(ONE.replace("--out out", "--out closed/out"))


@pytest.mark.parametrize("line", [ONE, "run study.toml --out out"])
def test_a_full_disk(line: str, refused: Refused, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "study.toml").write_text(STUDY)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    message = refused(line)
    assert "cannot write out/" in message and "No space left on device; what was saved before is kept" in message
    assert not list(place.glob("out/**/*.tmp"))


def test_a_full_disk_half_way_keeps_the_last_checkpoint(
    refused: Refused, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"pretrain fedavg --data {SOURCE} --out out plan.rounds=3"
    replace = os.replace

    def full(source: str, target: str) -> None:
        if Path(target).name == "weights.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as changed:
        changed.setattr(os, "replace", full)
        assert "cannot write out/start/weights.safetensors: No space left on device" in refused(line)
    with safe_open(place / "out/checkpoint.safetensors", "pt") as stored:
        assert stored.metadata()["round"] == "3"
    assert main([*shlex.split(line), "--json"]) == 0  # the same command goes on once there is space
    assert json.loads(capsys.readouterr().out)["rounds"] == 3


def test_a_fault_of_the_program_is_one_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("fedstart.cli._listing.show", broken)
    assert main(["list"]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith("fedstart: error: RuntimeError: first line second line (a fault of fedstart")
