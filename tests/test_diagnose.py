"""`fedstart diagnose`: what is measured on which starts, what is left on disk and on the page, and what is refused."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from fedstart import checkpoints, names, tree
from fedstart.cli import _diagnose, main
from fedstart.data import tasks
from fedstart.data.partitions import Dirichlet
from fedstart.data.sources import load
from fedstart.engines.local import LocalEngine
from fedstart.models import Model, load_architecture
from fedstart.probes import _diagnosis
from fedstart.probes._subject import Measured, Subject
from fedstart.probes.hessian import Hessian
from fedstart.starts import Start
from fedstart.types import Plan

DATA = "--data digits --classes 0-3 --clients 4"
TASK = f"{DATA} plan.local_steps=2 plan.lr=0.1"
SMALL = "model.hidden=16 model.channels=[4,8]"
PLAIN = "execution.precision=float32 execution.together=1 execution.channels_last=true execution.linear=torch"
CHEAP = "drift,movement,heads"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Start of a cnn, a later round of it, and its bare weights as .pt and .safetensors."""
    shelf = tmp_path_factory.mktemp("shelf")
    line = f"pretrain fedavg {DATA} --out {shelf}/pre --model cnn {SMALL} plan.rounds=1 {PLAIN} -q"
    assert main(shlex.split(line)) == 0
    assert main(shlex.split(f"federate {shelf}/pre {TASK} --out {shelf}/later plan.rounds=2 {PLAIN} -q")) == 0
    weights = Start.load(shelf / "pre/start").weights
    torch.save({"state_dict": dict(weights)}, shelf / "bare.pt")
    (shelf / "bare.safetensors").write_bytes((shelf / "pre/start/weights.safetensors").read_bytes())
    return shelf


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], shelf: Path):
    """What a command prints; `SHELF` in the line is the directory of starts."""

    def say(line: str, status: int = 0) -> str:
        capsys.readouterr()
        assert main(shlex.split(line.replace("SHELF", str(shelf)))) == status
        printed = capsys.readouterr()
        assert (printed.out if status else printed.err) == ""
        return printed.err if status else printed.out

    return say


def results(found: dict[str, Any], probe: str) -> dict[str, dict[str, Any]]:
    (entry,) = [entry for entry in found["probes"] if entry["name"] == probe]
    return {result["start"]: result for result in entry["results"]}


def written(home: Path) -> dict[str, Any]:
    return json.loads((home / "x/diagnosis.json").read_text())


def test_all_probes_of_two_starts_side_by_side(say, home: Path, shelf: Path) -> None:
    found = json.loads(say(f"diagnose SHELF/pre random {TASK} --out x --json"))
    held = written(home)
    assert found == {"directory": "x", "report": "x/report.html", **held}
    assert held["format"] == 1
    assert [probe["name"] for probe in held["probes"]] == sorted(names.discover("fedstart.probes"))
    first, second = held["starts"]
    assert (first["name"], second["name"]) == ("pre", "random")
    start = Start.load(shelf / "pre/start")
    assert first["weights_sha256"] == tree.fingerprint(start.weights)
    assert second["weights_sha256"] == tree.fingerprint(start.model().init(0))
    assert first["model"] == second["model"] == json.loads(json.dumps(start.model().describe()))
    assert held["settings"]["plan"]["local_steps"] == 2 and held["settings"]["plan"]["local_epochs"] is None
    assert (held["settings"]["data"], held["settings"]["classes"]) == ("digits", [0, 1, 2, 3])
    for probe in held["probes"]:
        assert probe["cost"] == names.discover("fedstart.probes")[probe["name"]].cost
        for result in probe["results"]:
            if probe["name"] in ("misalignment", "movement"):
                assert "others" in result["reason"] and not result["values"]
            else:
                assert result["reason"] is None and all(map(math.isfinite, result["values"].values()))
    assert "seconds" not in (home / "x/diagnosis.json").read_text()
    clock = json.loads((home / "x/timing.json").read_text())["seconds"]
    assert {name: set(taken) for name, taken in clock.items()} == {
        probe["name"]: {"pre", "random"} for probe in held["probes"]
    }

    page = (home / "x/report.html").read_bytes()
    text = page.decode()
    ten = len(held["probes"]) - 2
    assert f"{ten} of {ten + 2} probes measured" in text and "Not measured" in text
    assert all(text.count(f"<h3>{probe['name']}</h3>") == 1 for probe in held["probes"])
    assert 'id="layers-drift"' in text and 'id="layers-misalignment"' not in text
    assert 0 < text.index("largest eigenvalue of the Hessian") < text.index('id="probes"')
    with (home / "x/tables/first.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7 and "misalignment" not in {row["probe"] for row in rows}
    eigenvalues = results(held, "hessian")
    (row,) = [row for row in rows if row["probe"] == "hessian"]
    for name in ("pre", "random"):
        assert float(row[f"start {name}"]) == eigenvalues[name]["values"]["top_eigenvalue"]
    (home / "x/report.html").unlink()
    assert json.loads(say("report x --json")) == {"reports": ["x/report.html"]}
    assert (home / "x/report.html").read_bytes() == page


def test_numbers_are_those_of_the_probe(say, home: Path, shelf: Path) -> None:
    partition = "--partition dirichlet partition.alpha=0.5"
    say(f"diagnose SHELF/pre {TASK} {partition} --out x --probes hessian -q probe.hessian.examples=16")
    found = written(home)
    start, plan = Start.load(shelf / "pre/start"), Plan(local_steps=2, lr=0.1)
    digits = load("digits")
    federation = tasks.federate(
        digits, classes=range(4), partition=Dirichlet(0.5), clients=4, seed=0, name=digits.name, test_fraction=0.2
    )
    assert found["fingerprints"] == {"federation": federation.fingerprint}
    with LocalEngine(2) as engine:
        subject = Subject(start.model(), federation, start.weights, plan, engine)
        wanted = Hessian(examples=16).measure(subject)
    assert results(found, "hessian")["pre"] == {
        "start": "pre",
        "values": dict(wanted.values),
        "rows": list(wanted.rows),
        "reason": None,
    }
    assert found["probes"][0]["settings"]["examples"] == 16


def test_later_weights_are_compared_with(say, home: Path, shelf: Path) -> None:
    text = say(f"diagnose SHELF/pre random {TASK} --out x --probes movement,misalignment --end SHELF/later")
    found = written(home)
    assert "not measured" not in text and "to_end_relative" in text and text.endswith("Report: x/report.html\n")
    end = checkpoints.read(shelf / "later/checkpoint.safetensors").state.weights
    model = Start.load(shelf / "pre/start").model()
    for name, weights in {"pre": Start.load(shelf / "pre/start").weights, "random": model.init(0)}.items():
        moved = sum(float((end[key] - weights[key]).double().square().sum()) for key in model.parameters)
        assert results(found, "movement")[name]["values"]["to_end"] == pytest.approx(math.sqrt(moved))
    assert results(found, "misalignment")["random"]["rows"]
    page = (home / "x/report.html").read_text()
    assert 'id="layers-misalignment"' in page and 'id="layers-movement"' in page

    (home / "x").rename(home / "first")
    say(f"diagnose SHELF/pre {TASK} --out x --probes movement -q --end SHELF/pre")
    assert results(written(home), "movement")["pre"]["values"]["to_end"] == 0


@pytest.mark.parametrize("file", ["bare.pt", "bare.safetensors"])
def test_a_bare_state_dict_is_the_start_that_it_came_from(file: str, say, home: Path) -> None:
    say(f"diagnose SHELF/{file} SHELF/pre {TASK} --out x --probes {CHEAP} --model cnn {SMALL} -q")
    found = written(home)
    bare, carded = found["starts"]
    assert (bare["name"], bare["origin"], carded["name"]) == (file, f"file {file}", "pre")
    assert bare["weights_sha256"] == carded["weights_sha256"] and not bare["fresh_head"]
    for probe in ("drift", "heads"):
        first, second = results(found, probe).values()
        assert first["values"] == second["values"] and first["rows"] == second["rows"]


def test_another_number_of_classes_brings_a_fresh_head(say, home: Path) -> None:
    line = TASK.replace("0-3", "0-4")
    say(f"diagnose SHELF/pre {line} --out x --probes heads -q")
    (start,) = written(home)["starts"]
    assert start["fresh_head"] and start["model"]["classes"] == 5
    assert "The head of pre is fresh" in (home / "x/report.html").read_text()


def test_networks_of_different_architectures(say, home: Path) -> None:
    say(f"diagnose SHELF/pre random {TASK} --model mlp model.hidden=[8] --out x --probes drift -q")
    found = written(home)
    assert [start["model"]["name"] for start in found["starts"]] == ["cnn", "mlp"]
    layers = [{row["layer"] for row in result["rows"]} for result in results(found, "drift").values()]
    assert [set(start["layers"]) for start in found["starts"]] == layers and layers[0] != layers[1]


def test_it_goes_on_where_it_stopped(say, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"diagnose random SHELF/pre {TASK} --out x -q"
    say(f"{line} --probes drift,heads")
    whole = (home / "x/diagnosis.json").read_bytes()
    (home / "x/diagnosis.json").unlink()

    measure, seen = _diagnosis.measure, []

    def stopping(probe, subject):
        seen.append(type(probe).__name__)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return measure(probe, subject)

    monkeypatch.setattr(_diagnosis, "measure", stopping)
    assert "stopped" in say(f"{line} --probes drift,heads", 130)
    say("report x -q")
    assert "heads (pre): stopped before it was measured" in (home / "x/report.html").read_text()
    say(f"{line} --probes drift,heads")
    assert seen == ["Drift", "Heads", "Drift", "Drift", "Heads"]
    assert (home / "x/diagnosis.json").read_bytes() == whole

    say(f"{line} --probes heads probe.heads.penalty=2")
    assert seen[5:] == ["Heads", "Heads"]
    assert [probe["name"] for probe in written(home)["probes"]] == ["drift", "heads"]
    assert results(written(home), "drift") == results(json.loads(whole), "drift")

    for _ in range(2):
        say(f"{line} --probes movement")
    assert seen[7:] == 4 * ["Movement"]  # what could not be measured is tried again


def test_a_probe_that_fails_leaves_its_reason(model, federation, weights, plan) -> None:
    class Broken:
        def measure(self, subject: Subject) -> Measured:
            raise RuntimeError("no second derivative\nof this\n")

    class Unbounded:
        def measure(self, subject: Subject) -> Measured:
            return Measured({"here": 1.0, "there": math.inf}, ({"layer": "a", "share": math.nan},))

    with LocalEngine(1) as engine:
        subject = Subject(model, federation, weights, plan, engine)
        broken, unbounded = (_diagnosis.measure(probe, subject) for probe in (Broken(), Unbounded()))  # pyright: ignore
    assert broken == {"values": {}, "rows": [], "reason": "no second derivative"}
    assert unbounded["values"] == {"here": 1.0, "there": None}
    assert unbounded["rows"] == [{"layer": "a", "share": None}] and unbounded["reason"] is None


def test_starts_get_the_shortest_names_that_tell_them_apart() -> None:
    def called(*texts: str) -> list[str]:
        return list(_diagnose._called({text: None if text == "random" else Path(text) for text in texts}).values())

    assert called("runs/a/pre", "random") == ["pre", "random"]
    assert called("runs/a/pre", "runs/b/pre") == ["a/pre", "b/pre"]
    assert called("./random", "random")[1] == "random" != called("./random", "random")[0]
    with pytest.raises(ValueError, match="are the same start"):
        called("runs/a", "runs/a/")


def test_probes_are_listed_without_importing_them() -> None:
    assert names.listed(_diagnose.PROBES) == tuple(names.discover("fedstart.probes"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("diagnose random", "Missing option '--data'"),
        (f"diagnose {TASK} --out x", "diagnose takes one or two starts, got 0"),
        (f"diagnose a b c {TASK} --out x", "diagnose takes one or two starts, got 3: a, b, c"),
        (f"diagnose random random {TASK} --out x", "the start 'random' is given twice"),
        (f"diagnose nowhere {TASK} --out x", "nowhere: no such start"),
        (f"diagnose random {TASK} --out x --probes drift,hesian", "unknown probe 'hesian'; did you mean 'hessian'?"),
        (f"diagnose random {TASK} --out x probe.hesian.examples=4", "unknown probe 'hesian'; did you mean 'hessian'?"),
        (f"diagnose random {TASK} --out x probe.hessian=4", "write probe.NAME.KEY=VALUE"),
        (f"diagnose random {TASK} --out x probe.hessian.exampels=4", "did you mean 'examples'?"),
        (f"diagnose random {TASK} --out x probe.hessian.examples=0", "[probe.hessian]: examples"),
        (f"diagnose random {TASK} --out x --probes drift probe.heads.penalty=1", "unknown probe 'heads'"),
        (f"diagnose random {TASK} --out x prob.heads.penalty=1", "unknown table of settings 'prob'; did you mean"),
        (f"diagnose random {TASK} --out x method.mu=1", "unknown table of settings 'method'"),
        (f"diagnose random {TASK} --out x plan.ronds=1", "did you mean 'rounds'?"),
        (f"diagnose random {TASK} --out x --partition dirichlt", "unknown partition 'dirichlt'"),
        (f"diagnose random {TASK} --out x", "say with --model which architecture it is"),
        (f"diagnose SHELF/bare.pt {TASK} --out x", "say with --model which architecture it is"),
        (f"diagnose SHELF/bare.pt {TASK} --out x model.width=4", "model.* settings need --model"),
        (f"diagnose SHELF/bare.pt {TASK} --out x --model mlp", "unknown tensor"),
        (f"diagnose SHELF/pre {TASK} --out x --model cnn", "a Start says which model it is"),
        (f"diagnose SHELF/pre {TASK} --out SHELF/later", "holds something else (run.json)"),
        (f"diagnose SHELF/pre {TASK} --out x --end nowhere.pt", "nowhere.pt: no such file"),
        (f"diagnose random {TASK} --out x --model mlp --end SHELF/pre", "--end does not fit random"),
        (f"diagnose SHELF/pre {TASK} --out x plan.cohort=9", "cohort = 9, but only 4 clients"),
    ],
)
def test_wrong_words_are_refused_in_one_line(line: str, words: str, say, home: Path) -> None:
    message = say(line, 2)
    assert message.startswith("fedstart: error: ") and message.count("\n") == 1
    assert words in message and "a fault of fedstart" not in message
    assert not (home / "x/diagnosis.json").exists()


def test_a_directory_keeps_one_diagnosis(say, home: Path) -> None:
    say(f"diagnose SHELF/pre {TASK} --out x --probes heads -q")
    before = (home / "x/diagnosis.json").read_bytes()
    other = say(f"diagnose SHELF/pre {TASK.replace('=0.1', '=0.2')} --out x --probes heads", 2)
    assert "holds another diagnosis: settings.plan.lr is 0.1 there, not 0.2" in other
    assert "holds a diagnosis of other starts (pre)" in say(f"diagnose random SHELF/pre {TASK} --out x", 2)
    assert (home / "x/diagnosis.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: {**found, "format": 2}, "format 2 is not known"),
        (lambda found: {**found, "starts": []}, "no start in it"),
        (lambda found: {key: value for key, value in found.items() if key != "probes"}, "'probes' must be a list"),
        (lambda found: [found], "a JSON object is needed"),
        (lambda found: json.loads(json.dumps(found).replace('"heads"', '"../heads"')), "in small letters"),
        (lambda found: json.loads(re.sub(r'("ridge_accuracy": )[\d.]+', r'\1"x"', json.dumps(found))), "no finite"),
        (lambda found: json.loads(json.dumps(found).replace('"start": "pre"', '"start": "b"')), "no start of this"),
    ],
)
def test_a_damaged_diagnosis_is_named(change, words: str, say, home: Path) -> None:
    say(f"diagnose SHELF/pre {TASK} --out x --probes heads -q")
    (home / "x/diagnosis.json").write_text(json.dumps(change(written(home))))
    message = say("report x", 2)
    assert words in message and "x/diagnosis.json" in message


def test_text_that_was_read_is_escaped(say, home: Path) -> None:
    say(f"diagnose SHELF/pre {TASK} --out x --probes drift,movement -q")
    found = json.loads((home / "x/diagnosis.json").read_text().replace("conv1.weight", "<script>alert(1)</script>"))
    results(found, "movement")["pre"]["reason"] = "<b>no</b>"
    (home / "x/diagnosis.json").write_text(json.dumps(found))
    say("report x -q")
    page = (home / "x/report.html").read_text()
    assert "<script>" not in page and "<b>no" not in page and "&lt;b&gt;no" in page


def test_the_random_start_needs_an_architecture_of_its_own_or_the_others(say, home: Path) -> None:
    say(f"diagnose random {TASK} --model mlp model.hidden=[8] --out x --probes drift -q plan.seed=3")
    (start,) = written(home)["starts"]
    model = Model(load_architecture("mlp", {"hidden": [8]}), (1, 8, 8), 4)
    assert start["weights_sha256"] == tree.fingerprint(model.init(3))
    assert start["origin"] == "the model's random start, seed 3"
