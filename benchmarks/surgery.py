"""What replacing BatchNorm costs in accuracy: a ResNet-18 trained on CIFAR-10, converted every way.

    python benchmarks/surgery.py [--width 64] [--examples 19488] [--epochs 30] [--unlabelled 512] [--seed 0]
                                 [--start DIR] [--distil-unlabelled 2048] [--distil-epochs 15] [--distil-lr 1e-4]

Trains centrally on the official train rows (the last third of the epochs at a tenth of the rate; no augmentation),
but for `--unlabelled` rows, whose images alone are used to calibrate. Prints accuracy on the official test rows: of
the network itself, and for each conversion with fresh scale and shift (1 and 0), with those learned, after
calibration, and after distillation from there. Distillation takes more images: the `--unlabelled` ones, and where
these are too few, images of train rows without their labels. `--distil-epochs 0` leaves it out. `--start DIR` keeps
the trained network there, or takes it from there if it is there already.
The data are those of ../shared/data (`--data`, any source that `fedstart.load` reads and that has official splits).
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import fedstart as fs
from fedstart import keys
from fedstart.data.federation import Federation
from fedstart.models import Model
from fedstart.starts.centralized import Centralized
from fedstart.types import Cost, Weights

DATA = f"path:{Path(__file__).resolve().parents[2] / 'shared' / 'data' / 'cifar10'}"
WAYS: list[tuple[str, dict[str, Any]]] = [
    ("GroupNorm, 2 groups", {"to": "group", "groups": 2}),
    ("GroupNorm, 8 groups", {"to": "group", "groups": 8}),
    ("GroupNorm, 32 groups", {"to": "group", "groups": 32}),
    ("LayerNorm", {"to": "layer"}),
    ("frozen BatchNorm", {"to": "frozen"}),
    ("folded", {"to": "folded"}),
]
AT_ONCE = 128
"""Inputs per calibration pass: bounds memory."""


def federation_of(options: argparse.Namespace) -> Federation:
    """One client with the train rows, the official test rows for its test, and the unlabelled rows at the server."""
    examples = fs.load(options.data, label=options.label)
    rows = options.examples + options.unlabelled
    split = examples.columns["split"]
    train, test = np.flatnonzero(split == 0), np.flatnonzero(split == 1)
    if rows > len(train):
        raise SystemExit(f"{rows} train rows are wanted and {len(train)} there: lower --examples or --unlabelled")
    among = np.zeros(len(examples), dtype=bool)
    among[np.concatenate([train[:rows], test[: options.test_examples]])] = True
    return fs.federate(
        examples,
        classes=range(len(examples.class_names)),
        partition=fs.IID(),
        clients=1,
        seed=options.seed,
        name=examples.name,
        withheld=options.unlabelled / rows,
        merge=False,
        among=among,
    )


def trained(options: argparse.Namespace, model: Model, federation: Federation, engine: fs.LocalEngine) -> Weights:
    """The network's weights after central training, read from `--start` if they are there."""
    if options.start and (Path(options.start) / "card.json").is_file():
        start = fs.Start.load(options.start)
        if start.model() != model or start.card.data_fingerprint != federation.fingerprint:
            raise SystemExit(f"{options.start}: another network, or other data")
        return start.weights
    weights, cost, slow = model.init(options.seed), Cost(), options.epochs // 3
    plan = fs.Plan(
        rounds=options.epochs - slow,
        local_epochs=1,
        batch_size=options.batch_size,
        lr=options.lr,
        optimizer="nesterov",
        momentum=0.9,
        weight_decay=5e-4,
        seed=options.seed,
    )
    method = Centralized()
    for stage in (plan, dataclasses.replace(plan, rounds=slow, lr=options.lr / 10, seed=options.seed + 1)):
        pooled, stage = method.prepare(federation, stage)
        for finished in fs.train(method, model, pooled, stage, weights, engine):
            weights, cost = finished.state.weights, cost + finished.cost
            print(f"epoch {finished.number} of {stage.rounds} at lr {stage.lr:g}: loss {finished.loss:.3f}", flush=True)
    if options.start:
        card = fs.Card.of(model, federation, plan, method="centralized", settings={}, seed=options.seed, cost=cost)
        fs.Start(weights, card).save(options.start)
    return weights


def accuracy(engine: fs.LocalEngine, model: Model, federation: Federation, weights: Weights) -> float:
    """Per cent of the test rows."""
    counts = engine.evaluate(model, federation, weights)
    return 100 * float(counts.correct.sum() / counts.total.sum())


def images(options: argparse.Namespace, federation: Federation, wanted: int) -> list[Tensor]:
    """So many images in batches: those that were not trained on, then train rows at random."""
    held, trained_on = federation.server, federation.parts["train"].values
    if wanted > len(held) + len(trained_on):
        raise SystemExit(f"{wanted} images are wanted and {len(held) + len(trained_on)} there")
    order = keys.generator(options.seed, "surgery-images").permutation(len(trained_on))
    chosen = np.concatenate([held, trained_on[order]])[:wanted]
    return list(federation.batch(chosen)[0].split(AT_ONCE))


def row(
    options: argparse.Namespace,
    federation: Federation,
    model: Model,
    weights: Weights,
    engine: fs.LocalEngine,
    way: dict[str, Any],
) -> list[str]:
    """The table's columns for one way to convert."""

    def scored(found: Weights) -> str:
        return f"{accuracy(engine, new, federation, found):.2f}"

    try:
        new, found = fs.renormalise(model, weights, **way)
        fresh = fs.renormalise(model, weights, **way, keep_affine=False)[1]
        columns = [scored(fresh), scored(found)]
    except ValueError as error:
        return [f"refused: {error}", *[""] * 5]
    if way["to"] == "folded":
        columns += ["", ""]
    else:
        begin = time.perf_counter()
        found = fs.calibrated(model, weights, new, found, images(options, federation, options.unlabelled))
        seconds = time.perf_counter() - begin
        columns += [scored(found), f"{seconds:.1f}"]
    if way["to"] in ("frozen", "folded") or not options.distil_epochs:
        return [*columns, "", ""]
    inputs = images(options, federation, options.distil_unlabelled)
    begin = time.perf_counter()
    settings = {"epochs": options.distil_epochs, "lr": options.distil_lr, "seed": options.seed}
    found = fs.distilled(model, weights, new, found, inputs, **settings)
    seconds = time.perf_counter() - begin
    return [*columns, scored(found), f"{seconds:.1f}"]


def main() -> None:
    """Trains, converts, and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default=DATA)
    parser.add_argument("--label", default="label")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--examples", type=int, default=19488, help="train rows; CIFAR-10's first shard has 20,000")
    parser.add_argument("--test-examples", type=int, default=10_000)
    parser.add_argument("--unlabelled", type=int, default=512, help="images to calibrate on")
    parser.add_argument("--distil-unlabelled", type=int, default=2048, help="images to distil on")
    parser.add_argument("--distil-epochs", type=int, default=15, help="0 = no distillation")
    parser.add_argument("--distil-lr", type=float, default=1e-4)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", help="folder of the trained network")
    options = parser.parse_args()
    federation = federation_of(options)
    model = fs.Model(fs.ResNet18(norm="batch", width=options.width), federation.examples.shape, len(federation.classes))
    with fs.LocalEngine() as engine:
        weights = trained(options, model, federation, engine)
        rows = len(federation.parts["train"].values)
        tested = len(federation.parts["test"].values)
        print(f"\nResNet-18, width {options.width}, {rows:,} examples, {options.epochs} epochs, seed {options.seed};")
        print(f"accuracy in per cent of {tested:,} test rows; calibrated on {options.unlabelled:,} unlabelled images")
        if options.distil_epochs:
            known = max(0, options.distil_unlabelled - len(federation.server))
            print(
                f"distilled on {options.distil_unlabelled:,}, {known:,} of them images of train rows, "
                f"in {options.distil_epochs} epochs at {options.distil_lr:g}"
            )
        print(f"BatchNorm: {accuracy(engine, model, federation, weights):.2f}\n")
        print("| converted to | fresh scale and shift | kept | calibrated | s to calibrate | distilled | s to distil |")
        print("|" + "---|" * 7)
        for name, way in WAYS:
            columns = row(options, federation, model, weights, engine, way)
            print(f"| {' | '.join([name, *columns])} |", flush=True)


if __name__ == "__main__":
    main()
