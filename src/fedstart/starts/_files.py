"""Reading and writing weights on disk. torch is imported when there is something to read or write."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError

from fedstart.files import write_atomically
from fedstart.types import Weights

NESTED = ("state_dict", "model_state_dict", "model")
"""Where files that hold more than a state dict keep it: in the order of preference."""


def write_weights(path: Path, weights: Weights) -> None:
    """Writes a .safetensors file: equal weights give equal bytes. Raises OSError if it cannot be written."""
    from safetensors.torch import save

    # safetensors refuses tensors that share memory, so each gets its own.
    own = {name: weights[name].detach().cpu().contiguous().clone() for name in sorted(weights)}
    write_atomically(path, save(own, metadata={"format": "pt"}))


def read_weights(path: Path) -> Weights:
    """The tensors of a .safetensors, .pt or .pth file, on the CPU.

    A .pt file holds a state dict, bare or under a key of `NESTED`; it is read without unpickling any code.
    Raises ValueError for a missing, damaged or other kind of file.
    """
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise ValueError(f"{path}: unknown kind of weights file (allowed: .safetensors, .pt, .pth)")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    import torch
    from safetensors.torch import load

    try:
        if path.suffix == ".safetensors":
            return load(path.read_bytes())
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path}: cannot be read as weights: {reason}") from None
    if isinstance(content, Mapping):
        content = next((content[key] for key in NESTED if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in content.values()):
        raise ValueError(f"{path}: holds {type(content).__name__} (allowed: a state dict of tensors)")
    return {str(name): tensor.detach() for name, tensor in content.items()}
