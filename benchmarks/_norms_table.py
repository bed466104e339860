"""The policies of norms.py, and the table of its runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedstart import names
from fedstart.files import first_difference, read_json
from fedstart.scores import Contrast, Interval, interval, paired

BASELINE = "bn-averaged"


@dataclasses.dataclass(frozen=True)
class Policy:
    """What becomes of BatchNorm; `until` is the last step of surgery, `local` keeps the layers at the clients."""

    label: str
    to: Literal["group", "layer", "frozen", "folded", "batch"]
    until: Literal["fresh", "kept", "calibrated", "distilled"] = "kept"
    local: bool = False
    random: bool = False


POLICIES = {
    BASELINE: Policy("BatchNorm averaged (FedAvg)", "batch"),
    "bn-local": Policy("BatchNorm kept local (FedBN)", "batch", local=True),
    "bn-frozen": Policy("BatchNorm frozen", "frozen"),
    "bn-folded": Policy("BatchNorm folded", "folded"),
    "gn-distilled": Policy("GroupNorm, calibrated and distilled", "group", "distilled"),
    "gn-calibrated": Policy("GroupNorm, calibrated", "group", "calibrated"),
    "gn-fresh": Policy("GroupNorm, fresh", "group", "fresh"),
    "ln-calibrated": Policy("LayerNorm, calibrated", "layer", "calibrated"),
    "random-bn": Policy("random weights, BatchNorm averaged", "batch", random=True),
    "random-gn": Policy("random weights, GroupNorm", "group", "fresh", random=True),
}


def merged(files: Sequence[str]) -> dict[str, Any]:
    """The runs of several files of the same settings."""
    records = [read_json(Path(file)) for file in files]
    runs: dict[tuple[str, int], dict[str, Any]] = {}
    for file, record in zip(files, records, strict=True):
        if different := first_difference(record["settings"], records[0]["settings"]):
            raise SystemExit(f"{file}: other settings than in {files[0]}: {different}")
        for run in record["runs"]:
            known = runs.setdefault((run["policy"], run["seed"]), run)
            if known["accuracies"] != run["accuracies"]:
                raise SystemExit(f"{file}: {run['policy']}, seed {run['seed']}: other accuracies than in a file before")
    return {**records[0], "runs": list(runs.values())}


def within(found: Interval | Contrast, sign: str = "") -> str:
    """A mean with its interval."""
    if found.low is None or found.high is None:
        return f"{found[0]:{sign}.2f}"
    return f"{found[0]:{sign}.2f} [{found.low:{sign}.2f}, {found.high:{sign}.2f}]"


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Markdown; one row for each policy that has runs. Runs that diverged are counted and left out of every mean."""
    lines = [
        "| policy | seeds | ridge head before | accuracy | less BatchNorm averaged | own models "
        "| s of surgery | s to train |",
        "|" + "---|" * 8,
    ]
    base = {run["seed"]: run["accuracy"] for run in runs if run["policy"] == BASELINE and "accuracy" in run}
    for name, policy in POLICIES.items():
        ours = sorted((run for run in runs if run["policy"] == name), key=lambda run: run["seed"])
        ended = {run["seed"]: run for run in ours if "accuracy" in run}
        if not ours:
            continue
        scores = within(interval([run["accuracy"] for run in ended.values()])) if ended else ""
        lost = f"{len(ours) - len(ended)} of {len(ours)} diverged" if len(ended) < len(ours) else ""
        shared = [seed for seed in ended if seed in base]
        contrast = ""
        if shared and name != BASELINE:
            contrast = within(paired([ended[s]["accuracy"] for s in shared], [base[s] for s in shared]), "+")
        own = [run["personal"] for run in ended.values() if run["personal"] is not None]
        columns = [
            f"{policy.label} (`{name}`)",
            str(len(ours)),
            f"{np.mean([run['ridge'] for run in ours]):.2f}",
            "; ".join(filter(None, [scores, lost])),
            contrast,
            within(interval(own)) if own else "",
            f"{np.mean([run['surgery_seconds'] for run in ours]):.0f}",
            f"{np.mean([run['seconds'] for run in ours]):.0f}",
        ]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def policies(text: str) -> list[str]:
    """Policies by name, in the table's order; an unknown name ends the program in one line."""
    wanted = text.split(",")
    if wrong := [name for name in wanted if name not in POLICIES]:
        raise SystemExit(str(names.unknown("policy", wrong[0], POLICIES)))
    return [name for name in POLICIES if name in wanted]
