"""Adds to a fabricated study what a study that watches its runs has: targets, watched numbers, algorithms' claims."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fabricated import place
from fedstart import keys

TAUS = {"tau 5": (5, 80), "tau 20": (20, 20), "tau 100": (100, 4)}
LAYERS = ("conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight", "fc.weight")
BASES = {"ratio": 2.0, "low": 1.5, "high": 2.5}
LOOKS = (0.0, 0.1, 0.25, 0.5, 0.75)
STARTS = {"random": 60.0, "pre-trained": 70.0}


def with_watched(
    directory: Path, taus: dict[str, tuple[int, int]] = TAUS, layers: tuple[str, ...] = LAYERS, seed: int = 0
) -> Path:
    """Adds to a study of these algorithms (tau, rounds) the targets, watched numbers and claims about algorithms."""
    summary = json.loads((directory / "summary.json").read_text())
    for cell in sorted((directory / "cells").iterdir()):
        tau, rounds = taus[json.loads((cell / "cell.json").read_text())["algorithm"]]
        plan = {"rounds": rounds, "local_steps": tau, "schedule": None, "lr": 0.02, "seed": hash_of(cell.name)}
        about = json.loads((cell / "run.json").read_text())
        watch = {"at": LOOKS, "probes": {"misalignment": {"kind": "response"}}}
        about["settings"] = {"method": "fedavg", "settings": {}, "plan": plan, "watch": watch}
        place(cell / "run.json", about)
    starts, partitions = (list(dict.fromkeys(row[key] for row in summary["rows"])) for key in ("start", "partition"))
    pairs = summary["rows"][0]["n"]
    summary["targets"] = make_targets(starts, partitions, taus, pairs)
    summary["watched"] = make_watched(starts, partitions, taus, layers, pairs)
    summary["claims"] = [
        make_claim(first, second, partition, pairs, start=start, more_than=more_than, algorithm=first)
        for first, second, start, more_than in (
            (next(iter(taus)), list(taus)[-1], starts[0], None),
            (next(iter(taus)), list(taus)[-1], starts[0], starts[1]),
        )
        for partition in partitions
    ]
    common = {"start": None, "more_than": None, "algorithm": next(iter(taus))}
    summary["claims"].append(make_claim(starts[1], starts[0], partitions[0], pairs, **common))
    place(directory / "summary.json", summary)
    return directory


def hash_of(text: str) -> int:
    return int(keys.generator(0, "test-report-watched", *map(ord, text)).integers(1 << 40))


def make_claim(first: str, second: str, partition: str, pairs: int, **rest: Any) -> dict[str, Any]:
    about = {"text": "A larger tau hurts a random start", "source": "guidance", "score": "mean", "published": None}
    measured = {"difference": 2.5, "low": 1.25, "high": 3.75, "by_seed": [2.0, 3.0], "seeds": 2, "n": pairs}
    place = {"first": first, "second": second, "partition": partition}
    return {**about, **measured, **place, "verdict": "reproduced", **rest}


def make_targets(
    starts: list[str], partitions: list[str], taus: dict[str, tuple[int, int]], pairs: int
) -> list[dict[str, Any]]:
    """The first algorithm is the reference; another takes twice its rounds per place in the list."""
    found: list[dict[str, Any]] = []
    for number, (start, partition) in enumerate((s, p) for p in partitions for s in starts):
        for spot, algorithm in enumerate(taus):
            ratios = {
                f"{kind}_ratio": {end: (base + k / 4) ** spot for end, base in BASES.items()}
                for k, kind in enumerate(("rounds", "bytes", "examples"))
            }
            spent = {"rounds": 3.5 * 2.0**spot, "bytes": 7.25e6 * 2**spot, "examples": 4800.0 * (1 + spot)}
            place = {"start": start, "partition": partition, "algorithm": algorithm, "n": pairs}
            found.append({**place, "target": 41.25 + number, **spent, **ratios})
    return found


def make_watched(
    starts: list[str], partitions: list[str], taus: dict[str, tuple[int, int]], layers: tuple[str, ...], pairs: int
) -> list[dict[str, Any]]:
    """Shares of misaligned filters that fall over the rounds, by layer too; and how many filters a layer has."""
    draw = keys.generator(0, "test-report-shares")
    found: list[dict[str, Any]] = []
    for s, p, algorithm, number in (
        (s, p, algorithm, number)
        for p in range(len(partitions))
        for algorithm, (_, rounds) in taus.items()
        for s in range(len(starts))
        for number in sorted({round(share * rounds) for share in LOOKS})
    ):
        rounds = taus[algorithm][1]
        share = number / rounds
        about = {"start": starts[s], "algorithm": algorithm, "partition": partitions[p], "rounds": rounds}
        about |= {"round": number, "probe": "misalignment", "n": pairs}
        for spot, layer in enumerate(("", *layers)):
            middle = (0.45 - 0.03 * s - 0.04 * p) * (1 - share) * (0.7 + 0.3 * spot / len(layers))
            mean = float(np.clip(middle + draw.normal(0, 0.01), 0, 1))
            limits = {"low": mean - 0.04, "high": mean + 0.04} if pairs > 1 else {"low": None, "high": None}
            found.append({**about, "value": "share", "layer": layer, "mean": mean, **limits})
            if layer:
                count = {"mean": 8.0 * (1 + spot), "low": 8.0 * (1 + spot), "high": 8.0 * (1 + spot)}
                found.append({**about, "value": "filters", "layer": layer, **count})
    return found
