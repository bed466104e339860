"""Keyed randomness: a generator is named by its path `(seed, purpose, ...)` and nothing else.

Two methods that ask for the same path get the same numbers, so comparisons are paired and any round can be
replayed alone. Nothing in fedstart draws from a global generator.
"""

from __future__ import annotations

import hashlib

import numpy as np


def number(seed: int, purpose: str, *path: int) -> int:
    """A 63-bit integer that depends on the whole path; good as a seed for torch."""
    text = "/".join(("fedstart", str(int(seed)), purpose, *(str(int(step)) for step in path)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, purpose: str, *path: int) -> np.random.Generator:
    """A fresh numpy generator for the path, for instance `(seed, "batches", round, client)`."""
    return np.random.Generator(np.random.Philox(number(seed, purpose, *path)))
