"""Policies for BatchNorm in federation, compared from one start: averaged, local, frozen, folded, or replaced.

    python benchmarks/norms.py --start DIR --out FILE [--seeds 3] [--only gn-distilled,bn-local] [--seed-list 0,1] ...
    python benchmarks/norms.py --merge FILE FILE ...

The start is a ResNet-18 with BatchNorm. If DIR is not there, one is trained centrally on `--pretrain-data` (CIFAR-100)
and kept there. Each policy converts it, puts a fresh head on it (the same bits for every policy of a seed), and trains
it on CIFAR-10 with label skew: Dirichlet(`--alpha`) over `--clients`, `--cohort` of them a round, `--tau` local steps.
Surgery uses images of train rows that no client has, without labels. Inputs are normalised as the start's were.

Columns: accuracy of a ridge head in closed form before any training, which says what surgery left of the features; of
the global model on all official test rows, the mean of the last `--last` rounds, with a 95 % t-interval over seeds;
its paired difference to BatchNorm averaged; of the clients' own models, each on its own test rows, all rows alike,
after the last round. Only FedBN has own models: the server's weights with the client's own BatchNorm layers; under all
other policies every client has the global model. FedBN's global model has the last cohort's mean of these layers.
Own layers see a client's few classes only and profit from knowing them: compare that column with care.

Every finished run is written to `--out`; the same command goes on where it stopped. Processes may share the work by
`--only` and `--seed-list`, each with an `--out` of its own; `--merge` prints the table of all.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fedstart as fs
import surgery
from _norms_table import POLICIES, Policy, merged, policies, table
from fedstart import keys, tree
from fedstart.algorithms.fedbn import FedBN
from fedstart.data.federation import Examples, Federation, Positions
from fedstart.files import first_difference, read_json, write_json
from fedstart.models import Model
from fedstart.probes import Subject
from fedstart.probes.heads import Heads
from fedstart.types import Diverged, Memories, Weights

PRETRAINING = f"path:{Path(surgery.DATA.partition(':')[2]).parent / 'cifar100'}"
PLAN = ("clients", "cohort", "alpha", "tau", "rounds", "batch_size", "lr", "momentum", "clip", "last", "test_examples")
SURGERY = ("groups", "unlabelled", "distil_unlabelled", "distil_epochs", "distil_lr")


def start_of(options: argparse.Namespace) -> fs.Start:
    """The start in `--start`, trained before if it is not there."""
    if not (Path(options.start) / "card.json").is_file():
        given = argparse.Namespace(
            data=options.pretrain_data,
            label=options.pretrain_label,
            examples=options.pretrain_examples,
            test_examples=10_000,
            unlabelled=0,
            epochs=options.pretrain_epochs,
            batch_size=128,
            lr=0.1,
            seed=0,
            start=options.start,
        )
        federation = surgery.federation_of(given)
        network = fs.ResNet18(norm="batch", width=options.width)
        model = fs.Model(network, federation.examples.shape, len(federation.classes))
        with fs.LocalEngine(options.threads) as engine:
            surgery.trained(given, model, federation, engine)
    start = fs.Start.load(options.start)
    if start.card.normalisation != "batch":
        raise SystemExit(f"{options.start}: a start with {start.card.normalisation} layers (allowed: batch)")
    return start


class Rows:
    """Examples, and which of their rows the server and the clients have: the same for all seeds."""

    def __init__(self, options: argparse.Namespace, start: fs.Start) -> None:
        examples = fs.load(options.data, label=options.label)
        self.examples: Examples = dataclasses.replace(examples, mean=start.card.mean, std=start.card.std)
        split = examples.columns["split"]
        train = keys.generator(0, "norms-rows").permutation(np.flatnonzero(split == 0))
        server = max(options.unlabelled, options.distil_unlabelled)
        self.server: np.ndarray = train[:server]
        self.clients: np.ndarray = train[server:][: options.examples]
        self.test: np.ndarray = np.flatnonzero(split == 1)[: options.test_examples]
        if len(self.server) < server or not len(self.clients):
            raise SystemExit(f"{server} images for surgery leave none of {len(train)} train rows to the clients")

    def federation(self, options: argparse.Namespace, seed: int) -> Federation:
        """The clients of a seed."""
        among = np.zeros(len(self.examples), dtype=bool)
        among[np.concatenate([self.clients, self.test])] = True
        return fs.federate(
            self.examples,
            classes=range(len(self.examples.class_names)),
            partition=fs.Dirichlet(options.alpha),
            clients=options.clients,
            seed=seed,
            name=f"{self.examples.name} seed {seed}",
            merge=False,
            among=among,
        )

    def images(self, federation: Federation, count: int) -> list[torch.Tensor]:
        """The server's first images, in batches."""
        return list(federation.batch(self.server[:count])[0].split(surgery.AT_ONCE))


def converted(
    options: argparse.Namespace, policy: Policy, model: Model, weights: Weights, rows: Rows, federation: Federation
) -> tuple[Model, Weights]:
    """The start as the policy has it, with its own head."""
    if policy.to == "batch":
        return model, weights
    kept = policy.until != "fresh"
    new, found = fs.renormalise(model, weights, policy.to, groups=options.groups, keep_affine=kept)
    if policy.until in ("calibrated", "distilled"):
        found = fs.calibrated(model, weights, new, found, rows.images(federation, options.unlabelled))
    if policy.until == "distilled":
        images, settings = rows.images(federation, options.distil_unlabelled), {"epochs": options.distil_epochs}
        found = fs.distilled(model, weights, new, found, images, **settings, lr=options.distil_lr)
    return new, found


def accuracy_of_own(
    engine: fs.LocalEngine, model: Model, federation: Federation, weights: Weights, memories: Memories
) -> float:
    """Per cent of all test rows, each judged by its own client's model."""
    correct, test = 0, federation.parts["test"]
    for client in range(federation.clients):
        alone = Positions.from_owners(np.full(len(test[client]), client), test[client], federation.clients)
        one = dataclasses.replace(federation, parts={**federation.parts, "test": alone})
        own = {**weights, **memories.get(client, {}).get("normalisation", {})}
        correct += int(engine.evaluate(model, one, own).correct.sum())
    return 100 * correct / len(test.values)


def federated(
    options: argparse.Namespace,
    engine: fs.LocalEngine,
    policy: Policy,
    model: Model,
    weights: Weights,
    federation: Federation,
    seed: int,
) -> dict[str, Any]:
    """One run over the clients: its scores and seconds, or the round in which it diverged."""
    plan = fs.Plan(
        rounds=options.rounds,
        cohort=options.cohort,
        local_steps=options.tau,
        batch_size=options.batch_size,
        lr=options.lr,
        momentum=options.momentum,
        clip=options.clip,
        seed=seed,
    )
    looked = Heads(examples=2000, tested=2000).measure(Subject(model, federation, weights, plan, engine))
    found: dict[str, Any] = {"ridge": looked.values["ridge_accuracy"], "accuracies": [], "personal": None}
    seconds, begin, last = 0.0, time.perf_counter(), None
    try:
        for last in fs.train(FedBN() if policy.local else fs.FedAvg(), model, federation, plan, weights, engine):
            seconds += time.perf_counter() - begin
            if last.number > options.rounds - options.last:
                found["accuracies"].append(surgery.accuracy(engine, model, federation, last.state.weights))
            begin = time.perf_counter()
    except Diverged as error:
        return {**found, "diverged": str(error), "seconds": seconds}
    assert last is not None
    if policy.local:
        found["personal"] = accuracy_of_own(engine, model, federation, last.state.weights, last.memories)
    return {**found, "loss": last.loss, "accuracy": float(np.mean(found["accuracies"])), "seconds": seconds}


def work(options: argparse.Namespace) -> dict[str, Any]:
    """All runs that are asked for and not in `--out` yet; returns all that is there in the end."""
    start = start_of(options)
    rows = Rows(options, start)
    settings = {name: getattr(options, name) for name in (*PLAN, *SURGERY)}
    settings |= {"start": tree.fingerprint(start.weights), "data": rows.examples.fingerprint}
    settings |= {"examples": len(rows.clients)}
    about = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.processor()}
    out = Path(options.out)
    record = read_json(out) if out.is_file() else {"settings": settings, "about": about, "runs": []}
    if different := first_difference(record["settings"], settings):
        raise SystemExit(f"{out}: other settings: {different}; give another --out")
    done = {(run["policy"], run["seed"]) for run in record["runs"]}
    made: dict[str, tuple[Model, Weights, float]] = {}
    with fs.LocalEngine(options.threads) as engine:
        for seed, name in [(seed, name) for seed in options.seed_list for name in options.only]:
            if (name, seed) in done:
                continue
            policy, federation, begin = POLICIES[name], rows.federation(options, seed), time.perf_counter()
            if name not in made or policy.random:
                model = start.model()
                weights = model.init(seed) if policy.random else start.weights
                model, weights = converted(options, policy, model, weights, rows, federation)
                made[name] = (model, weights, time.perf_counter() - begin)
            model, weights, converting = made[name]
            model, weights = model.transfer(weights, len(federation.classes), seed)
            run = federated(options, engine, policy, model, weights, federation, seed)
            run = {"policy": name, "seed": seed, **run, "surgery_seconds": converting}
            record["runs"].append(run)
            write_json(out, record)
            shown = run.get("diverged") or f"{run['accuracy']:.2f}"
            print(f"{name}, seed {seed}: {shown} ({run['seconds']:.0f} s)", flush=True)
    return record


def numbers(text: str) -> list[int]:
    """Whole numbers between commas."""
    return [int(number) for number in text.split(",")]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, kind, default, text in (
        ("start", str, None, "folder of the start; trained and kept there if it is not there"),
        ("out", str, None, "JSON file of the runs"),
        ("data", str, surgery.DATA, "a source with official splits"),
        ("label", str, "label", "its column of labels"),
        ("examples", int, None, "train rows of all clients together (all)"),
        ("test-examples", int, 10_000, "official test rows"),
        ("clients", int, 20, "clients"),
        ("cohort", int, 10, "clients per round"),
        ("alpha", float, 0.1, "Dirichlet's concentration"),
        ("tau", int, 20, "local steps per round"),
        ("rounds", int, 30, "rounds"),
        ("last", int, 5, "rounds at the end whose accuracies are averaged"),
        ("batch-size", int, 32, "examples per local step"),
        ("lr", float, 0.05, "local learning rate"),
        ("momentum", float, 0.0, "local momentum"),
        ("clip", float, None, "largest gradient norm of a step"),
        ("seeds", int, 3, "seeds 0, 1, ..."),
        ("groups", int, 2, "groups of GroupNorm"),
        ("unlabelled", int, 512, "images to calibrate on"),
        ("distil-unlabelled", int, 2048, "images to distil on"),
        ("distil-epochs", int, 15, "epochs of distillation"),
        ("distil-lr", float, 1e-4, "Adam's first rate in distillation"),
        ("threads", int, None, "of the engine and of torch (one per core)"),
        ("width", int, 16, "of the network that is trained for the start"),
        ("pretrain-data", str, PRETRAINING, "a source with official splits"),
        ("pretrain-label", str, "fine_label", "its column of labels"),
        ("pretrain-examples", int, 50_000, "its train rows"),
        ("pretrain-epochs", int, 30, "epochs"),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{text} [{default}]" if default else text)
    parser.add_argument("--only", type=policies, default=list(POLICIES), help=f"some of {','.join(POLICIES)}")
    parser.add_argument(
        "--seed-list", type=lambda text: [int(seed) for seed in text.split(",")], help="instead of seeds"
    )
    parser.add_argument("--merge", nargs="+", metavar="FILE", help="print the table of these files, and train nothing")
    options = parser.parse_args()
    if not options.merge and not (options.start and options.out):
        parser.error("--start and --out are needed, or --merge")
    if not 1 <= options.last <= options.rounds:
        parser.error(f"--last must be 1 to {options.rounds}, the number of rounds")
    options.seed_list = options.seed_list or list(range(options.seeds))
    return options


def main() -> None:
    """Runs what is missing, and prints the table."""
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    record = merged(options.merge) if options.merge else work(options)
    print(f"\n{', '.join(f'{name} {value}' for name, value in record['settings'].items())}\n\n{table(record['runs'])}")


if __name__ == "__main__":
    main()
