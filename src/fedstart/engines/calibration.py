"""The engine's own choices: what runs fastest on this machine, measured once and remembered.

A few local steps of the plan are timed on the federation's own examples. The answer is kept in the cache folder by
machine, model and work, so that the same run makes the same choice, and has the same bits, again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from pydantic import TypeAdapter

from fedstart import names
from fedstart.data.cache import default_folder
from fedstart.data.federation import Federation
from fedstart.engines import products, stacked
from fedstart.engines.execution import Execution
from fedstart.engines.local import LocalEngine
from fedstart.files import read_json, write_json
from fedstart.models import Model
from fedstart.types import Client, Plan, Weights

STEPS = 3
SECONDS = 0.3
"""How long a candidate is repeated; its fastest time counts."""
GAIN = 1.1
"""A candidate is chosen when it is this many times faster than what was best before."""
STACKS = (8, 32, 256)
STACKABLE_SECONDS = 0.005
"""Stacks are tried where a step is shorter than this: they save what a step costs besides its products."""


def calibrate(
    model: Model,
    federation: Federation,
    plan: Plan,
    fixed: Mapping[str, Any] = MappingProxyType({}),
    *,
    folder: Path | None = None,
    seconds: Callable[[Model, Federation, Plan, Execution], float] | None = None,
) -> Execution:
    """The fastest way to train this model on cohorts of this plan, by its own measurement.

    The longer a step of the model is, the longer this takes: each candidate is run for some steps at least.

    `fixed` are settings of Execution that are not open: `{"precision": "float32"}`. `folder` holds what was measured
    before (none = fedstart's cache folder). `seconds` measures a candidate's time per client; by default by running it.
    Raises ValueError for fixed settings that are unknown or out of range.
    """
    base = names.build(Execution, fixed, "execution")
    if fixed.keys() == asdict(base).keys():
        return base
    file = (folder or default_folder() / "execution") / f"{_key(model, federation, plan, fixed)}.json"
    try:
        held = read_json(file)["execution"]
        if held.keys() == asdict(base).keys():
            return TypeAdapter(Execution).validate_python(held)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    chosen = _choose(base, fixed, model, federation, plan, seconds or _seconds)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"execution": asdict(chosen)})  # pyright: ignore[reportArgumentType]
    except OSError:
        # Without a cache folder the choice holds for this process.
        pass
    return chosen


def supports_bfloat16() -> bool:
    """Whether this processor has instructions for products of bfloat16 numbers."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _choose(
    best: Execution,
    fixed: Mapping[str, Any],
    model: Model,
    federation: Federation,
    plan: Plan,
    seconds: Callable[[Model, Federation, Plan, Execution], float],
) -> Execution:
    fastest = min(seconds(model, federation, plan, best) for _ in range(2))
    candidates: list[dict[str, Any]] = [{"channels_last": False}] if len(model.shape) == 3 else []
    if supports_bfloat16():
        candidates.append({"precision": "bfloat16"})
    if products.available():
        candidates.append({"linear": "onednn"})
    # Half a cohort at most, so that two threads have work; not a matter of this machine's number of threads.
    half = min(plan.cohort or federation.clients, len(federation.eligible)) // 2
    if "together" not in fixed and fastest < STACKABLE_SECONDS * STEPS and stacked.refusal(model) is None:
        candidates += [{"together": stack} for stack in sorted({min(stack, half) for stack in STACKS}) if stack > 1]
    for changes in candidates:
        if changes.keys() & fixed.keys():
            continue
        tried = replace(best, **changes)
        took = seconds(model, federation, plan, tried)
        if took * GAIN < fastest:
            # Another program may have had the processor meanwhile: both once more, and the faster time of each counts.
            fastest = min(fastest, seconds(model, federation, plan, best))
            took = min(took, seconds(model, federation, plan, tried))
        if took * GAIN < fastest:
            best, fastest = tried, took
        elif "together" in changes:
            break
    return best


def _seconds(model: Model, federation: Federation, plan: Plan, execution: Execution) -> float:
    """A thread's seconds per client of a few local steps, while all threads work: they share the processor's cache."""
    short = replace(plan, rounds=1, local_steps=min(plan.local_steps or STEPS, STEPS), local_epochs=None)
    weights, times = model.init(0), []
    began = time.perf_counter()
    with LocalEngine(execution=execution) as engine:
        clients: Sequence[int] = federation.eligible[: engine.threads * execution.together].tolist()
        while len(times) < 3 or time.perf_counter() - began < SECONDS:
            start = time.perf_counter()
            engine.cohort(model, federation, short, 1, clients).mean(_learn, weights)
            times.append(time.perf_counter() - start)
        busy = min(engine.threads, -(-len(clients) // execution.together))
    return min(times[1:]) * busy / len(clients)


def _learn(client: Client, weights: Weights) -> Weights:
    return client.descend(weights)


def _key(model: Model, federation: Federation, plan: Plan, fixed: Mapping[str, Any]) -> str:
    sizes = federation.parts["train"].sizes
    content = {
        "machine": _machine(),
        "model": model.describe(),
        "plan": {**asdict(plan), "seed": 0, "rounds": 0, "lr": 0},  # pyright: ignore[reportArgumentType]
        "clients": [len(federation.eligible), int(sizes.sum())],
        "fixed": dict(fixed),
        "settings": sorted(asdict(Execution())),  # pyright: ignore[reportArgumentType]
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _machine() -> list[str]:
    """The processor, as far as it matters for speed, and torch's version."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    processor = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "flags"))][:2]
    return [*processor, torch.backends.cpu.get_cpu_capability(), torch.__version__]
