"""What a client remembers on its node: by the round in which it remembered, so that a round can be asked for again.

The server says which of a client's rounds counted last; the client goes on from what it remembered then. Whatever
it remembered in a round that did not count, or that a server took up again, is forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from flwr.app import RecordDict
from safetensors import SafetensorError
from safetensors.torch import load, save

from fedstart.engines import wire
from fedstart.files import cannot, write_atomically
from fedstart.types import Weights

KEPT = 4
"""Versions kept in a folder: a server may go back to an earlier checkpoint."""

Memory = Mapping[str, Weights]


class Versions(Protocol):
    """What one client remembered in one training, by round."""

    def load(self, number: int) -> Memory | None:
        """What was remembered in round `number`; None if that is not known."""
        ...

    def save(self, number: int, base: int, memory: Memory) -> None:
        """Keeps what is remembered in round `number`, and what was in `base`; later rounds are forgotten."""
        ...


def recall(versions: Versions, number: int, client: int) -> Memory:
    """What a client remembered in the last of its rounds that counted; nothing for round 0.

    Raises ValueError when that is no longer known.
    """
    memory = versions.load(number) if number else {}
    if memory is None:
        raise ValueError(
            f"client {client} does not know what it remembered in round {number}: its node was started anew "
            "(give the node a folder, memory = '...' in its configuration, before a run begins)"
        )
    return memory


class InContext:
    """In the node's context, which lasts as long as its process and the Flower run. Keeps two rounds."""

    def __init__(self, state: RecordDict) -> None:
        self._state = state

    def load(self, number: int) -> Memory | None:
        place = f"memory-{number}"
        if f"{place}-form" not in self._state:
            return None
        stored = RecordDict({"arrays": self._state[f"{place}-arrays"], "form": self._state[f"{place}-form"]})
        return _unflatten(wire.read(stored))

    def save(self, number: int, base: int, memory: Memory) -> None:
        keep = {f"memory-{base}-arrays", f"memory-{base}-form"}
        for key in [key for key in self._state if key.startswith("memory-") and key not in keep]:
            del self._state[key]
        for kind, record in wire.write(_flatten(memory)).items():
            self._state[f"memory-{number}-{kind}"] = record


class InFolder:
    """In a folder, where it outlives the node's process and the Flower run. Keeps a few rounds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, number: int) -> Memory | None:
        file = self._file(number)
        try:
            return _unflatten(load(file.read_bytes())) if file.exists() else None
        except OSError as error:
            raise cannot("read", file, error) from None
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{file}: damaged ({error})") from None

    def save(self, number: int, base: int, memory: Memory) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            names = (re.fullmatch(r"round-(\d+)\.safetensors", file.name) for file in self._folder.iterdir())
            earlier = sorted(n for n in (int(name[1]) for name in names if name) if n != number)
            keep = {base, *[n for n in earlier if n < number][-(KEPT - 1) :]}
            for n in set(earlier) - keep:
                self._file(n).unlink(missing_ok=True)
        except OSError as error:
            raise cannot("write", self._folder, error) from None
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in _flatten(memory).items()}
        write_atomically(self._file(number), save(tensors))

    def _file(self, number: int) -> Path:
        return self._folder / f"round-{number}.safetensors"


def _flatten(memory: Memory) -> Weights:
    return {f"{key}/{name}": tensor for key, tree in memory.items() for name, tensor in tree.items()}


def _unflatten(tensors: Weights) -> Memory:
    memory: dict[str, Weights] = {}
    for path, tensor in tensors.items():
        key, _, name = path.partition("/")
        memory.setdefault(key, {})[name] = tensor
    return memory
