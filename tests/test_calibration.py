"""The engine's own choices: what is faster by the margin, never what is not allowed, measured once."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

import unequal
from fedstart import tree
from fedstart.algorithms.fedavg import FedAvg
from fedstart.engines import calibration, products
from fedstart.engines.calibration import GAIN, STACKABLE_SECONDS, STEPS, calibrate
from fedstart.engines.execution import Execution
from fedstart.engines.local import LocalEngine
from fedstart.models import Model, load_architecture
from fedstart.training import train

SIZES = (4,) * 300
BASE = Execution()


@pytest.fixture(autouse=True)
def a_processor_with_everything(monkeypatch):
    monkeypatch.setattr(calibration, "supports_bfloat16", lambda: True)
    monkeypatch.setattr(products, "available", lambda: True)


class Stopwatch:
    """Seconds as if each feature had its own factor; keeps what was tried, in order, each once."""

    def __init__(self, base=1e-3, **factors):
        self.base, self.factors, self.tried = base, factors, []

    def __call__(self, model, federation, plan, execution):
        if execution not in self.tried:
            self.tried.append(execution)
        seconds = self.base
        for name, value in vars(execution).items():
            if value != getattr(BASE, name):
                seconds *= self.factors.get(f"{name}_{value}", 1.0)
        return seconds


def choose(watch, folder, fixed=None, name="simple_cnn", cohort=300, **changes):
    plan = replace(unequal.PLAN, cohort=cohort, **changes)
    federation = unequal.federation(name, SIZES)
    return calibrate(unequal.model(name), federation, plan, fixed or {}, folder=folder, seconds=watch)


def test_chooses_what_is_faster_and_goes_on_from_there(tmp_path):
    watch = Stopwatch(
        precision_bfloat16=0.5, channels_last_False=0.8, linear_onednn=0.7, together_8=0.6, together_32=0.9
    )
    expected = Execution("bfloat16", 8, False, "onednn")
    assert choose(watch, tmp_path) == expected
    assert watch.tried[0] == BASE
    assert watch.tried[-1] == replace(expected, together=32)
    assert len(watch.tried) == 6


def test_a_disturbed_measurement_is_taken_again(tmp_path):
    """Something else has the processor while the first candidate is timed: all others look fast beside it."""
    watch, disturbed = Stopwatch(), []

    def seconds(model, federation, plan, execution):
        disturbed.append(execution)
        return watch(model, federation, plan, execution) * (10 if len(disturbed) == 1 else 1)

    assert choose(seconds, tmp_path) == BASE


@pytest.mark.parametrize(
    ("feature", "changes"),
    [
        ("precision_bfloat16", {"precision": "bfloat16"}),
        ("channels_last_False", {"channels_last": False}),
        ("linear_onednn", {"linear": "onednn"}),
        ("together_8", {"together": 8}),
    ],
)
def test_only_what_is_faster_by_the_margin(tmp_path, feature, changes):
    slower, faster = ({feature: 1 / (GAIN * factor)} for factor in (0.99, 1.01))
    # A second stack gains nothing over the first, so the first stays.
    assert choose(Stopwatch(together_32=1.0, **slower), tmp_path / "slower") == BASE
    chosen = choose(Stopwatch(together_32=1.0, **faster), tmp_path / "faster")
    assert chosen == replace(BASE, **changes)


def test_stops_at_the_first_stack_that_does_not_pay(tmp_path):
    watch = Stopwatch(together_8=0.5, together_32=0.47, together_150=0.001)
    assert choose(watch, tmp_path, cohort=300).together == 8
    assert [e.together for e in watch.tried if e.together > 1] == [8, 32]
    assert choose(Stopwatch(together_8=0.95, together_32=0.01), tmp_path, seed=1, batch_size=3).together == 1


def test_tries_stacks_of_half_a_cohort_at_most(tmp_path):
    for cohort, stacks in (
        (300, {8, 32, 150}),
        (None, {8, 32, 150}),
        (65, {8, 32}),
        (63, {8, 31}),
        (16, {8}),
        (15, {7}),
        (3, set()),
        (1, set()),
    ):
        watch = Stopwatch(together_7=0.5, together_8=0.5, together_31=0.2, together_32=0.2, together_150=0.1)
        assert choose(watch, tmp_path, cohort=cohort).together == max(stacks, default=1)
        assert {e.together for e in watch.tried} == {1, *stacks}


def test_long_steps_are_not_stacked(tmp_path):
    for factor, stacks in ((0.9, {1, 8}), (1.1, {1})):
        watch = Stopwatch(base=factor * STACKABLE_SECONDS * STEPS)
        choose(watch, tmp_path / str(factor))
        assert {e.together for e in watch.tried} == stacks


def test_a_model_that_cannot_be_stacked_is_never_stacked(tmp_path):
    model = Model(load_architecture("resnet18", {"norm": "batch", "width": 2}), (2, 8, 8), 3)
    watch = Stopwatch(together_8=0.01)
    federation = unequal.federation("simple_cnn", SIZES)
    assert calibrate(model, federation, unequal.PLAN, folder=tmp_path, seconds=watch).together == 1
    assert {e.together for e in watch.tried} == {1}


def test_the_layout_of_images_is_no_question_without_images(tmp_path):
    watch = Stopwatch(channels_last_False=0.01)
    assert choose(watch, tmp_path, name="mlp").channels_last
    assert all(e.channels_last for e in watch.tried)


@pytest.mark.parametrize(
    "fixed",
    [
        {"precision": "float32"},
        {"precision": "bfloat16"},
        {"channels_last": False},
        {"together": 1},
        {"together": 5, "linear": "onednn"},
    ],
)
def test_fixed_settings_are_not_open(tmp_path, fixed):
    watch = Stopwatch(precision_bfloat16=0.1, together_8=0.1, channels_last_False=0.1, linear_onednn=0.1)
    chosen = choose(watch, tmp_path, fixed)
    for name, value in fixed.items():
        assert {getattr(e, name) for e in [chosen, *watch.tried]} == {value}
    wanted = {"precision": "bfloat16", "together": 8, "channels_last": False, "linear": "onednn"} | fixed
    assert chosen == Execution(**wanted)


def test_everything_fixed_is_not_measured(tmp_path):
    fixed = {"precision": "bfloat16", "together": 3, "channels_last": False, "linear": "torch"}
    watch = Stopwatch()
    assert choose(watch, tmp_path, fixed) == Execution(**fixed)
    assert not watch.tried and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrong", "message"), [({"togethr": 2}, "did you mean 'together'"), ({"together": 0}, "given: 0")]
)
def test_wrong_fixed_settings(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message) as caught:
        choose(Stopwatch(), tmp_path, wrong)
    assert "\n" not in str(caught.value)


def test_what_the_processor_lacks_is_not_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "supports_bfloat16", lambda: False)
    monkeypatch.setattr(products, "available", lambda: False)
    watch = Stopwatch(precision_bfloat16=0.1, linear_onednn=0.1)
    assert choose(watch, tmp_path) == BASE
    assert {(e.precision, e.linear) for e in watch.tried} == {("float32", "torch")}


def test_remembers_by_machine_model_and_work(tmp_path, monkeypatch):
    first = choose(Stopwatch(precision_bfloat16=0.5), tmp_path)
    unused = Stopwatch()
    for same in ({}, {"seed": 99}, {"rounds": 7}, {"lr": 0.5}):
        assert choose(unused, tmp_path, **same) == first
    assert not unused.tried
    for other in ({"batch_size": 3}, {"cohort": 40}, {"name": "mlp"}, {"fixed": {"together": 1}}):
        watch = Stopwatch()
        assert choose(watch, tmp_path, **other).precision == "float32" and watch.tried
    monkeypatch.setattr(calibration, "_machine", lambda: ["another"])
    watch = Stopwatch()
    assert choose(watch, tmp_path) == BASE and watch.tried


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "null", '"execution"', "{}", "\udcff"),
        *('{"execution": null}', '{"execution": {"together": 0}}', '{"execution": {"unknown": 1}}'),
    ],
)
def test_a_damaged_file_is_measured_anew(tmp_path, content):
    chosen = choose(Stopwatch(together_8=0.5), tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_text()
    assert json.loads(whole)["execution"]["together"] == chosen.together == 8
    file.write_bytes(content.encode(errors="surrogateescape"))
    watch = Stopwatch(together_8=0.5)
    assert choose(watch, tmp_path) == chosen and watch.tried
    assert file.read_text() == whole


def test_works_without_a_folder_to_write_to(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for _ in range(2):
        watch = Stopwatch(together_8=0.5)
        assert choose(watch, tmp_path / "file" / "below").together == 8 and watch.tried


def test_the_default_folder_is_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "default_folder", lambda: tmp_path)
    choose(Stopwatch(), None)
    assert [file.suffix for file in (tmp_path / "execution").iterdir()] == [".json"]


def test_a_real_calibration_is_short_and_trains(tmp_path, monkeypatch):
    monkeypatch.undo()
    federation, model = unequal.federation("mlp", SIZES), unequal.model("mlp")
    plan, start = replace(unequal.PLAN, cohort=16), unequal.start("mlp")
    began = time.perf_counter()
    execution = calibrate(model, federation, plan, folder=tmp_path)
    assert time.perf_counter() - began < 6
    assert execution == calibrate(model, federation, plan, folder=tmp_path)
    with LocalEngine(2, execution) as engine:
        *_, last = train(FedAvg(), model, federation, plan, start, engine)
    assert tree.norm(tree.subtract(last.state.weights, start)) > 0
