"""Partitioning at size: seconds and peak memory for 1,000,000 labels over 100,000 clients, a process for each kind.

Also the time in which a federation answers `positions` for a cohort of 100, with 1,000 and with 100,000 clients:
the two should not differ by more than noise. Run: `PYTHONPATH=src python benchmarks/partition.py`.
Exit status 1 if a kind takes more than 10 s or 1 GiB (the whole process, with Python and torch).
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

import numpy as np
import torch

from fedstart import keys, names
from fedstart.data.federation import Examples
from fedstart.data.partitions import TABLE, heterogeneity
from fedstart.data.tasks import federate

LABELS = 1_000_000
CLASSES = 100
CLIENTS = 100_000
SECONDS, GIBIBYTES = 10.0, 1.0
KINDS = {
    "iid": {"minimum": 2},
    "dirichlet": {"alpha": 0.5, "minimum": 2},
    "shards": {"shards_per_client": 2, "minimum": 2},
    "natural": {"column": "writer", "minimum": 2},
    "by_domain": {"column": "domain", "minimum": 2},
}


def examples(clients: int) -> Examples:
    """Labels without images: what partitions read."""
    rng = keys.generator(0, "benchmark")
    return Examples(
        name="benchmark",
        inputs=torch.zeros(LABELS, 1, dtype=torch.uint8),
        labels=rng.integers(CLASSES, size=LABELS),
        class_names=tuple(str(label) for label in range(CLASSES)),
        fingerprint="0" * 64,
        columns={"writer": rng.integers(clients, size=LABELS), "domain": rng.integers(4, size=LABELS)},
    )


def measure(kind: str, clients: int) -> dict[str, float]:
    """Seconds to partition and to answer for a cohort, peak memory of this process, and what came out."""
    source = examples(clients)
    partition = names.build(TABLE[kind], KINDS[kind], kind)
    begin = time.perf_counter()
    federation = federate(
        source,
        classes=range(CLASSES),
        partition=partition,
        clients=None if kind == "natural" else clients,
        seed=0,
        name=kind,
        test_fraction=0.2,
    )
    seconds = time.perf_counter() - begin
    # The largest resident size comes in bytes on macOS and in KiB elsewhere.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30
    cohort = keys.generator(0, "cohort").choice(federation.clients, size=100, replace=False).tolist()
    begin = time.perf_counter()
    for _ in range(100):
        for client in cohort:
            federation.positions("train", client)
    answer = (time.perf_counter() - begin) / 100
    sizes = federation.parts["train"].sizes + federation.parts["test"].sizes
    return {
        "clients": federation.clients,
        "seconds": seconds,
        "peak": peak,
        "cohort": answer * 1e6,
        "smallest": int(np.min(sizes)),
        "largest": int(np.max(sizes)),
        "heterogeneity": heterogeneity(federation),
    }


def main() -> int:
    """Prints one line for each kind and number of clients."""
    print(f"{LABELS:,} labels, {CLASSES} classes")
    print(f"{'kind':10} {'clients':>8} {'s':>6} {'GiB':>5} {'us/cohort':>10} {'min':>5} {'max':>6} {'unlike':>7}")
    failed = False
    for kind in KINDS:
        for clients in (1_000, CLIENTS):
            command = [sys.executable, __file__, kind, str(clients)]
            line = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(
                f"{kind:10} {line['clients']:8d} {line['seconds']:6.2f} {line['peak']:5.2f} {line['cohort']:10.1f} "
                f"{line['smallest']:5d} {line['largest']:6d} {line['heterogeneity']:7.3f}"
            )
            failed |= line["seconds"] > SECONDS or line["peak"] > GIBIBYTES
    return int(failed)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
    else:
        sys.exit(main())
