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


def orders(
    seed: int, purpose: str, round_number: int, clients: np.ndarray, sizes: np.ndarray, repeat: int = 0
) -> np.ndarray:
    """A random order for each of many clients at once: row k begins with a permutation of `range(sizes[k])`.

    `clients` and `sizes` have shape (n,), the result (n, max(sizes)); what stands behind a client's own numbers is
    without meaning. A client's order depends on (seed, purpose, round, client, repeat) and its size, not on the
    others: numbers 0, 1, ... are sorted by a hash of that path (SplitMix64's mixing function, Steele et al. 2014).
    A generator for each client would cost more than a small client's training.
    """
    path = _mixed(np.asarray(clients, np.uint64) + np.uint64(number(seed, purpose, round_number)))
    path = _mixed(path + np.uint64(repeat))
    numbers = np.arange(int(sizes.max(initial=0)), dtype=np.uint64)
    draws = _mixed(path[:, None] + numbers)
    if (sizes != sizes[:1]).any():
        draws[numbers >= sizes[:, None]] = np.iinfo(np.uint64).max
    return draws.argsort(axis=1)


def _mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64: each output bit depends on every input bit, and different inputs have different outputs."""
    values = values * np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
