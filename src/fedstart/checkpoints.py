"""A round's state in one safetensors file, bit for bit.

`weights/<name>`, `memory.<key>/<name>` for what the server remembers, `client.<identity>.<key>/<name>` for what
clients remember where the engine keeps it; the round's number is metadata. A tensor without a name keeps the place
of a memory that holds nothing yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedstart.files import write_atomically
from fedstart.types import Memories, Round, State, Weights


class Checkpoint(NamedTuple):
    """What a file holds: the round's number, the server's state, and the clients' memories."""

    number: int
    state: State
    memories: Memories


def write(path: Path, round: Round) -> None:
    """Writes the state of a round, whole or not at all. Raises ValueError for a name that holds a '/'."""
    tensors = {
        f"{place}/{name}": tensor.detach().cpu().contiguous().clone()
        for place, tree in _places(round)
        for name, tensor in (tree or {"": torch.zeros(0)}).items()
    }
    ordered = {name: tensors[name] for name in sorted(tensors)}
    write_atomically(path, save(ordered, metadata={"round": str(round.number)}))


def read(path: Path) -> Checkpoint:
    """Reads what `write` wrote. Raises ValueError, naming the file, if it is damaged."""
    places: dict[str, Weights] = {}
    try:
        with safe_open(path, framework="pt") as stored:
            number = int(stored.metadata()["round"])
            keys = stored.keys()
            for key in keys:
                place, _, name = key.partition("/")
                tree = places.setdefault(place, {})
                if name:
                    tree[name] = stored.get_tensor(key).clone()
        weights = places.pop("weights")
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error}); delete the directory to start this run again") from None
    memory: dict[str, Weights] = {}
    memories: dict[int, dict[str, Weights]] = {}
    for place, tree in places.items():
        kind, _, key = place.partition(".")
        if kind == "memory":
            memory[key] = tree
        else:
            identity, _, key = key.partition(".")
            memories.setdefault(int(identity), {})[key] = tree
    return Checkpoint(number, State(weights, memory), memories)


def _places(round: Round) -> Iterator[tuple[str, Weights]]:
    yield "weights", round.state.weights
    for key, tree in round.state.memory.items():
        yield f"memory.{_plain(key)}", tree
    for identity, memory in round.memories.items():
        for key, tree in memory.items():
            yield f"client.{identity}.{_plain(key)}", tree


def _plain(key: str) -> str:
    if "/" in key:
        raise ValueError(f"a method's memory cannot be called {key!r}: a name has no '/'")
    return key
