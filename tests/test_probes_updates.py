"""Probes of weights and client updates against their definitions in plain numpy, and where the answer is known."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, linear, max_pool2d

from fedstart import keys, tree
from fedstart.data.federation import Examples, Federation, Positions
from fedstart.engines.local import LocalEngine
from fedstart.models import Model, load_architecture
from fedstart.models._normalisation import FrozenBatchNorm
from fedstart.probes import _features, _tensors
from fedstart.probes._subject import Subject
from fedstart.probes.agreement import Agreement
from fedstart.probes.dead_filters import DeadFilters
from fedstart.probes.diversity import Diversity
from fedstart.probes.drift import Drift
from fedstart.probes.movement import Movement
from fedstart.probes.signal_to_noise import SignalToNoise, _ratios
from fedstart.types import Diverged, Plan
from reference import slow

PROBES = (Drift(), Agreement(), Diversity(), SignalToNoise())
OF_UPDATES = pytest.mark.parametrize("probe", PROBES, ids=lambda probe: type(probe).__name__)
ENGINE = LocalEngine(1)  # starts no thread before its first work


def subject_of(model, federation, weights, plan, engine=ENGINE, **others):
    return Subject(model, federation, weights, plan, engine, others)


def planted(subject, moves):
    """The subject with these updates: row k of a layer's array is client k's, filled up with zeros."""
    updates = []
    for k in range(len(subject.clients)):
        update = {name: torch.zeros_like(subject.weights[name]) for name in subject.model.parameters}
        for name, rows in moves.items():
            flat = update[name].view(-1)
            flat[: len(rows[k])] = torch.as_tensor(rows[k], dtype=torch.float64)
        updates.append(update)
    subject.__dict__["updates"] = updates
    return subject


@pytest.fixture(scope="module")
def subject(model, federation, weights, plan):
    return subject_of(model, federation, weights, plan)


@pytest.fixture(scope="module")
def literal(model, federation, weights, plan):
    """Updates of the slow reference, (K, size) for each layer and, under "", all parameters; and clients' sizes."""
    moves, sizes = [], []
    for k in slow.cohort(federation, plan, 1):
        positions = federation.positions("train", k)
        trained = slow.local_training(model, federation, plan, 1, k, weights, positions)
        moves.append({name: (trained[name] - weights[name]).numpy().ravel() for name in weights})
        sizes.append(len(positions))
    layers = {name: np.stack([move[name] for move in moves]) for name in weights}
    return {"": np.concatenate(list(layers.values()), axis=1), **layers}, np.array(sizes)


def flat(weights):
    layers = {name: tensor.numpy().ravel() for name, tensor in weights.items()}
    return {"": np.concatenate(list(layers.values())), **layers}


def answers(found):
    """The numbers of the whole network under "", and of each layer under its name."""
    return {
        "": dict(found.values),
        **{row["layer"]: {k: v for k, v in row.items() if k != "layer"} for row in found.rows},
    }


def assert_equal(found, expected):
    found = answers(found)
    assert list(found) == list(expected)
    for place, numbers in expected.items():
        assert found[place] == pytest.approx(numbers, rel=1e-9, abs=1e-12), place


def length(vector):
    return float(np.sqrt(np.sum(vector**2)))


def test_drift_is_its_definition(subject, literal, weights):
    moves, sizes = literal
    expected = {}
    for place, u in moves.items():
        w = flat(weights)[place]
        mean = sum(n * row for n, row in zip(sizes, u, strict=True)) / sizes.sum()
        distance = np.mean([length(row) for row in u])
        largest = max(length(row) for row in u)
        spread = np.mean([length(row - mean) for row in u])
        found = {"distance": distance, "largest": largest, "spread": spread}
        expected[place] = {
            **found,
            "mean_update": length(mean),
            "weights": length(w),
            **{f"{name}_to_weights": value / length(w) for name, value in found.items()},
            **{f"{name}_to_mean_update": value / length(mean) for name, value in found.items()},
        }
    assert len(set(sizes)) > 1 and len(expected) == 5
    assert_equal(Drift().measure(subject), expected)


def test_agreement_is_its_definition(subject, literal):
    expected = {}
    for place, u in literal[0].items():
        cosines = [
            float(u[k] @ u[j]) / (length(u[k]) * length(u[j])) for k in range(len(u)) for j in range(k + 1, len(u))
        ]
        expected[place] = {
            "mean": np.mean(cosines),
            "least": min(cosines),
            "negative": sum(c < 0 for c in cosines) / len(cosines),
            "clients": len(u),
            "still": 0,
        }
    assert len({numbers["negative"] for numbers in expected.values()}) > 1
    assert_equal(Agreement().measure(subject), expected)


def test_diversity_is_its_definition(subject, literal):
    expected = {
        place: {"diversity": sum(length(row) ** 2 for row in u) / length(u.sum(0)) ** 2, "clients": len(u)}
        for place, u in literal[0].items()
    }
    assert_equal(Diversity().measure(subject), expected)


def test_signal_to_noise_is_its_definition(subject, literal):
    expected = {}
    for place, u in literal[0].items():
        count = len(u)
        squared_mean, variance = u.mean(0) ** 2, u.var(0)
        fair = u.var(0, ddof=1)
        expected[place] = {
            "ratio": squared_mean.sum() / variance.sum(),
            "unbiased": (squared_mean - fair / count).sum() / fair.sum(),
            "clients": count,
        }
    found = SignalToNoise().measure(subject)
    assert_equal(found, expected)
    diversity = Diversity().measure(subject).values["diversity"]
    assert found.values["ratio"] == pytest.approx(1 / (len(literal[1]) * diversity - 1), rel=1e-9)


@pytest.mark.parametrize("truth", [0.0, 1 / 6])
def test_the_unbiased_ratio_is_the_truth_where_the_plain_one_is_not(truth):
    """Four clients, many parameters of the same mean and of independent noise of variance 1."""
    draws = keys.generator(1, "probe-noise").normal(size=(4, 200_000)) + truth**0.5
    found = _ratios(draws @ draws.T)
    assert found["unbiased"] == pytest.approx(truth, abs=0.005)
    assert found["ratio"] == pytest.approx((truth + 1 / 4) / (3 / 4), abs=0.01)


def test_movement_is_its_definition(model, federation, weights, plan):
    start, end = ({n: t + s * (t.cos() + 0.1) for n, t in weights.items()} for s in (0.3, -0.2))
    w, s, e = flat(weights), flat(start), flat(end)
    far = {
        place: {
            "from_start": length(w[place] - s[place]),
            "from_start_relative": length(w[place] - s[place]) / length(s[place]),
            "cosine_with_start": float(w[place] @ s[place]) / length(w[place]) / length(s[place]),
        }
        for place in w
    }
    near = {
        place: {
            "to_end": length(w[place] - e[place]),
            "to_end_relative": length(w[place] - e[place]) / length(e[place]),
        }
        for place in w
    }
    probe = Movement()
    both = probe.measure(subject_of(model, federation, weights, plan, start=start, end=end))
    assert_equal(both, {place: {**far[place], **near[place]} for place in w})
    assert_equal(probe.measure(subject_of(model, federation, weights, plan, start=start, iid=end)), far)
    assert_equal(probe.measure(subject_of(model, federation, weights, plan, end=end)), near)


def test_movement_from_where_it_is_and_from_zero(model, federation, weights, plan):
    here = Movement().measure(subject_of(model, federation, weights, plan, start=weights, end=weights))
    assert here.values == pytest.approx(
        {"from_start": 0, "from_start_relative": 0, "cosine_with_start": 1, "to_end": 0, "to_end_relative": 0}
    )
    bare = {name: tensor * (0 if name.endswith("bias") else 1) for name, tensor in weights.items()}
    rows = {
        row["layer"]: row for row in Movement().measure(subject_of(model, federation, weights, plan, start=bare)).rows
    }
    assert rows["fc.bias"]["from_start"] > 0
    assert rows["fc.bias"]["from_start_relative"] is None and rows["fc.bias"]["cosine_with_start"] is None
    nothing = Movement().measure(subject_of(model, federation, weights, plan, start=tree.zeros_like(weights)))
    assert nothing.values == {"from_start": pytest.approx(tree.norm(weights))}


def test_movement_refuses_in_one_line(model, federation, weights, plan):
    with pytest.raises(ValueError, match=r"^movement needs weights .* got iid \(allowed: start, end\); fedstart"):
        Movement().measure(subject_of(model, federation, weights, plan, iid=weights))
    other = {**weights, "fc.bias": torch.zeros(7)}
    with pytest.raises(ValueError, match=r"^movement, end: tensor 'fc.bias' has shape \(7,\), but the model needs"):
        Movement().measure(subject_of(model, federation, weights, plan, start=weights, end=other))


KNOWN = {
    # Updates of four clients in two layers, and what they are: (mean and least cosine, negative pairs, diversity,
    # ratio, unbiased ratio, spread to mean update). Sizes do not matter where no spread is expected.
    "equal": ([[1.0, 2.0]] * 4, (1, 1, 0, 1 / 4, 1e12, 1e12, 0)),
    "orthogonal": (np.diag([3.0, 1.0, 2.0, 5.0]), (0, 0, 0, 1, 1 / 3, 0, None)),
    "opposite": ([[1.0, 2.0], [-1.0, -2.0]] * 2, (-1 / 3, -1, 4 / 6, 1e12, 0, -1 / 4, None)),
}


@pytest.mark.parametrize("case", KNOWN)
def test_known_cases(model, federation, weights, plan, case):
    rows, (mean, least, negative, diversity, ratio, unbiased, spread) = KNOWN[case]
    # A third of it is no power of two, so that sums are rounded.
    rows = np.array(rows) / 3
    subject = planted(subject_of(model, federation, weights, plan), {"hidden1.weight": rows, "fc.weight": 2 * rows})
    for place in ("", "fc.weight"):
        found = answers(Agreement().measure(subject))[place]
        assert (found["mean"], found["least"], found["negative"]) == pytest.approx((mean, least, negative))
        assert answers(Diversity().measure(subject))[place]["diversity"] == pytest.approx(diversity)
        found = answers(SignalToNoise().measure(subject))[place]
        assert (found["ratio"], found["unbiased"]) == pytest.approx((ratio, unbiased), abs=1e-12)
        if spread is not None:
            assert answers(Drift().measure(subject))[place]["spread_to_mean_update"] == spread
    still = answers(Agreement().measure(subject))["fc.bias"]
    assert still == {"mean": None, "least": None, "negative": None, "clients": 4, "still": 4}
    assert answers(Diversity().measure(subject))["fc.bias"]["diversity"] is None
    assert answers(SignalToNoise().measure(subject))["fc.bias"]["ratio"] is None
    assert answers(Drift().measure(subject))["fc.bias"]["distance_to_mean_update"] is None


def test_updates_that_cancel_by_their_sizes_have_no_mean_update(model, federation, weights, plan):
    subject = subject_of(model, federation, weights, replace(plan, cohort=2))
    first, second = subject.sizes
    assert first != second
    planted(subject, {"fc.weight": np.array([[second / 7, second / 3], [-first / 7, -first / 3]])})
    values = Drift().measure(subject).values
    assert values["mean_update"] == 0 and values["distance_to_mean_update"] == pytest.approx(1e6)
    assert values["spread"] == pytest.approx(values["distance"])


def test_a_client_that_does_not_move_is_left_out_of_angles_only(model, federation, weights, plan):
    rows = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [-1.0, 0.0]])
    subject = planted(subject_of(model, federation, weights, plan), {"fc.weight": rows})
    r = 0.5**0.5
    expected = {"mean": (r - 1 - r) / 3, "least": -1, "negative": 2 / 3, "clients": 4, "still": 1}
    assert Agreement().measure(subject).values == pytest.approx(expected)
    assert Diversity().measure(subject).values["diversity"] == pytest.approx(4 / 2)
    assert SignalToNoise().measure(subject).values["ratio"] == pytest.approx((2 / 16) / (1 - 2 / 16))


def test_too_few_clients_that_move_are_refused_in_one_line(model, federation, weights, plan):
    still = planted(subject_of(model, federation, weights, plan), {})
    for probe, message in {
        Agreement(): "agreement needs 2 clients that move, got 4 clients, 4 still",
        Diversity(): "diversity needs a client that moves: all 4 are still",
        SignalToNoise(): "signal_to_noise needs a client that moves: all 4 are still",
    }.items():
        with pytest.raises(ValueError, match=f"^{message}$"):
            probe.measure(still)
    drift = Drift().measure(still).values
    assert drift["distance"] == drift["spread"] == drift["largest_to_weights"] == 0
    assert "distance_to_mean_update" not in drift
    alone = subject_of(model, federation, weights, replace(plan, cohort=1))
    with pytest.raises(ValueError, match="got 1 clients, 0 still"):
        Agreement().measure(alone)
    with pytest.raises(ValueError, match="at least 2 clients, got 1"):
        SignalToNoise().measure(alone)
    assert Diversity().measure(alone).values == {"diversity": pytest.approx(1), "clients": 1}
    assert Drift().measure(alone).values["spread"] == 0


@OF_UPDATES
def test_training_that_diverges_is_named(model, federation, weights, plan, probe):
    rows = np.zeros((4, 2))
    rows[2, 1] = np.nan
    subject = planted(subject_of(model, federation, weights, plan), {"fc.weight": rows})
    with pytest.raises(Diverged, match=f"client {subject.clients[2]}: its local training ends in NaN or infinity"):
        probe.measure(subject)


@OF_UPDATES
def test_updates_are_made_once_and_left_as_they_are(model, federation, weights, plan, probe, monkeypatch):
    subject = subject_of(model, federation, weights, plan)
    before = [tree.fingerprint(update) for update in subject.updates]
    own, data = tree.fingerprint(weights), federation.fingerprint
    monkeypatch.setattr(LocalEngine, "cohort", None)
    first = probe.measure(subject)
    # In pieces as small as a row, another order of the same sums.
    monkeypatch.setattr(_tensors, "CHUNK", 1)
    second = probe.measure(subject)
    assert first.values == pytest.approx(second.values, rel=1e-12)
    assert [tree.fingerprint(update) for update in subject.updates] == before
    assert tree.fingerprint(weights) == own and federation.fingerprint == data


@OF_UPDATES
def test_float32_and_channels_last_differ_by_rounding(probe):
    """Convolutions, whose trained weights lie in memory with the channels last."""
    model, federation, plan = pictures()
    double = {name: tensor.double() for name, tensor in model.init(2).items()}
    single = {name: tensor.float() for name, tensor in double.items()}
    wide, brief = (probe.measure(subject_of(model, federation, weights, plan)) for weights in (double, single))
    assert brief.values == pytest.approx(wide.values, rel=1e-3)


def pictures(name="cnn3x3", **settings):
    """A network for images of 8 x 8 pixels, four clients with 40 of them, and a plan of two steps."""
    draws = keys.generator(3, "probe-pictures")
    examples = Examples(
        "pictures",
        torch.from_numpy(draws.normal(size=(40, 2, 8, 8))),
        draws.integers(0, 3, 40),
        ("a", "b", "c"),
        "pic-3",
    )
    parts = {"train": Positions.from_owners(np.arange(40) % 4, np.arange(40), 4)}
    federation = Federation("pictures", examples, parts, (0, 1, 2))
    settings = settings or {"channels": [5, 6], "hidden": 7}
    return (
        Model(load_architecture(name, settings), (2, 8, 8), 3),
        federation,
        Plan(local_steps=2, batch_size=5, lr=0.05),
    )


def test_dead_filters_are_their_definition():
    """A convolution, another whose ReLU stands behind the flattening, and linear layers: each step written out."""
    model, federation, plan = pictures()
    weights = {name: tensor.double() for name, tensor in model.init(5).items()}
    weights["conv1.bias"][1] = -50.0  # silent
    weights["conv1.weight"][3], weights["conv1.bias"][3] = 0.0, 0.7  # zero, but says something
    weights["conv2.weight"][2], weights["conv2.bias"][2] = 0.0, -0.1  # both
    weights["conv2.bias"][4] = -0.5  # silent at places, not at all of them
    weights["hidden.bias"][[0, 5]] = -100.0
    weights["fc.weight"][1] = 0.0

    inputs, _ = federation.batch(np.arange(40), torch.float64, channels_last=False)
    first = max_pool2d(conv2d(inputs, weights["conv1.weight"], weights["conv1.bias"], padding=1), 2).relu()
    second = max_pool2d(conv2d(first, weights["conv2.weight"], weights["conv2.bias"], padding=1), 2).relu()
    third = linear(second.flatten(1), weights["hidden.weight"], weights["hidden.bias"]).relu()
    assert (second[:, 4] == 0).all(0).any() and second[:, 4].any()
    quiet = int((third == 0).all(0).sum())
    silent = {
        "conv1": int((first == 0).all(0).all(2).all(1).sum()),
        "conv2": int((second == 0).all(0).all(2).all(1).sum()),
        "hidden": quiet,
    }
    assert silent["conv1"] >= 1 and silent["conv2"] >= 1 and 2 <= quiet <= 6

    found = DeadFilters(examples=100).measure(subject_of(model, federation, weights, plan))
    rows = {row["layer"]: row for row in found.rows}
    assert list(rows) == ["conv1.weight", "conv2.weight", "hidden.weight", "fc.weight"]
    counts = {name: (row["filters"], row["silent"], row["zero"], row["dead"]) for name, row in rows.items()}
    assert counts == {
        "conv1.weight": (5, silent["conv1"], 1, silent["conv1"] + 1),
        "conv2.weight": (6, silent["conv2"], 1, silent["conv2"]),
        "hidden.weight": (7, quiet, 0, quiet),
        "fc.weight": (3, None, 1, 1),
    }
    dead = sum(row["dead"] for row in rows.values())
    assert found.values == pytest.approx(
        {"dead": dead / 21, "zero": 3 / 21, "silent": sum(silent.values()) / 18, "filters": 21}
    )
    assert rows["conv1.weight"]["share"] == (silent["conv1"] + 1) / 5


PUSHED = "layer3.0.conv1.weight"


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_dead_filters_of_a_residual_network(norm):
    model, federation, plan = pictures("resnet18", norm=norm, width=2)
    weights = model.init(5)
    clean = DeadFilters(examples=8).measure(subject_of(model, federation, weights, plan))
    weights["layer1.0.bn1.weight"][1], weights["layer1.0.bn1.bias"][1] = 0.0, 0.3  # a constant: dead, not silent
    weights[PUSHED.replace("conv1.weight", "bn1.bias")][5] = -100.0  # silent
    weights["layer3.1.bn2.weight"][:] = 0.0  # the branch is dead, its sum with the shortcut is not
    weights["layer2.0.downsample.0.weight"][2] = 0.0
    found = DeadFilters(examples=8).measure(subject_of(model, federation, weights, plan))
    before = {row["layer"]: row for row in clean.rows}
    rows = {row["layer"]: row for row in found.rows}
    assert len(rows) == 20 + 8 + 1 and list(rows) == list(before)  # convolutions, sums, head
    zero = {name: row["zero"] for name, row in rows.items() if row["zero"]}
    assert zero == {"layer1.0.conv1.weight": 1, "layer2.0.downsample.0.weight": 1, "layer3.1.conv2.weight": 8}
    # What follows is silent elsewhere, as its inputs are others.
    more = {name: row["dead"] - before[name]["dead"] for name, row in rows.items() if name in {**zero, PUSHED: 1}}
    assert more == {**zero, PUSHED: 1}
    assert rows["layer3.1.conv2.weight"]["silent"] is None
    assert rows["layer3.1.relu"]["zero"] == 0 and rows["layer3.1.relu"]["dead"] < 8
    assert rows["layer1.0.conv1.weight"]["silent"] == before["layer1.0.conv1.weight"]["silent"]


class InPlace(nn.Module):
    """torchvision's way: one ReLU that writes into its input, and a shortcut that is added in place."""

    def __init__(self, width, classes, norm):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, width, 3, padding=1), norm(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), norm(width)
        self.relu, self.flatten = nn.ReLU(inplace=True), nn.Flatten()
        self.fc = nn.Linear(64 * width, classes)
        self.twin = nn.Linear(classes, classes)
        self.twin.weight = nn.Parameter(torch.eye(classes))

    def forward(self, inputs):
        held = self.relu(self.bn1(self.conv1(inputs)))
        sums = self.bn2(self.conv2(held))
        sums += held
        return self.twin(self.fc(self.flatten(self.relu(sums))))


NORMS = {"batch": nn.BatchNorm2d, "frozen": partial(FrozenBatchNorm, eps=1e-5)}


@dataclass(frozen=True)
class Own:
    """An architecture of this test."""

    head: ClassVar[str] = "twin"
    kind: str

    def build(self, shape, classes):
        if self.kind in NORMS:
            return InPlace(4, classes, NORMS[self.kind])
        if self.kind == "nothing":
            return nn.Sequential(OrderedDict(flatten=nn.Flatten(), twin=nn.PReLU(128)))
        layers = OrderedDict(
            flatten=nn.Flatten(),
            first=nn.Linear(128, 4),
            relu1=nn.ReLU(),
            norm=nn.LayerNorm(4),
            relu2=nn.ReLU(),
            twin=nn.Linear(4, classes),
        )
        return nn.Sequential(layers)


@pytest.mark.parametrize("norm", NORMS)
def test_a_shortcut_added_in_place_ends_the_branch(norm):
    _, federation, plan = pictures()
    model = Model(Own(norm), (2, 8, 8), 3)
    weights = {n: t.double() if t.is_floating_point() else t for n, t in model.init(1).items()}
    weights["bn2.weight"][:], weights["bn1.bias"][0] = 0.0, -100.0
    weights["bn1.running_mean"][2] = 100.0  # silent in evaluation mode only
    before = tree.fingerprint(weights)
    found = DeadFilters().measure(subject_of(model, federation, weights, plan))
    counts = [(row["layer"], row["silent"], row["zero"], row["dead"]) for row in found.rows]
    assert counts == [
        ("conv1.weight", 2, 0, 2),
        ("conv2.weight", None, 4, 4),
        ("relu", 2, 0, 2),
        ("fc.weight", None, 0, 0),
        ("twin.weight", None, 0, 0),
    ]
    assert tree.fingerprint(weights) == before


def test_a_second_relu_on_the_same_units_is_a_row_of_its_own():
    _, federation, plan = pictures()
    model = Model(Own(kind="two"), (2, 8, 8), 3)
    weights = model.init(1)
    weights["first.bias"][1], weights["norm.bias"][2], weights["norm.weight"][3] = -100.0, -100.0, 0.0
    found = DeadFilters(examples=3).measure(subject_of(model, federation, weights, plan))
    first, second, _ = found.rows
    assert (first["layer"], second["layer"]) == ("first.weight", "relu2")
    assert first["silent"] >= 1 and first["zero"] == 1 and second["zero"] == 0
    assert second["silent"] >= 2  # the pushed one, and what has no scale and no bias


def test_silent_means_on_every_batch(monkeypatch):
    model, federation, plan = pictures()
    weights = model.init(5)
    weights["hidden.bias"] -= 0.3
    subject = subject_of(model, federation, weights, plan)
    at_once = DeadFilters().measure(subject)
    monkeypatch.setattr(_features, "CHUNK", 3)
    assert len(_features.pieces(federation.pooled())) == 14
    assert DeadFilters().measure(subject) == at_once


def test_more_examples_find_fewer_silent_filters_and_none_is_a_limit():
    model, federation, plan = pictures()
    weights = model.init(5)
    weights["hidden.bias"] -= 0.3
    shares = [
        DeadFilters(examples=n).measure(subject_of(model, federation, weights, plan)).values["silent"]
        for n in (1, 5, 40, 1000)
    ]
    assert shares == sorted(shares, reverse=True) and shares[0] > shares[2] == shares[3]


def test_a_network_without_relu_has_no_silent_share_and_without_layers_no_answer():
    _, federation, plan = pictures()
    flat_model = Model(load_architecture("two_layer_cnn", {"filters": 2}), (2, 8, 8), 3)
    weights = flat_model.init(1)
    weights["filters.weight"][4] = 0.0
    values = DeadFilters().measure(subject_of(flat_model, federation, weights, plan)).values
    assert values == pytest.approx({"dead": 1 / 6, "zero": 1 / 6, "filters": 6})
    bare = Model(Own(kind="nothing"), (2, 8, 8), 3)
    with pytest.raises(ValueError, match="^dead_filters finds no convolution, linear layer"):
        DeadFilters().measure(subject_of(bare, federation, {}, plan))
