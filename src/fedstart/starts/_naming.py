"""Names that other libraries give to tensors, and ours for them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from fedstart.types import Weights

WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.", "timm_model.")
"""What DataParallel, torch.compile, training loops, pre-training without a head, and Hugging Face's timm models put
before every name."""

HUGGING_FACE = {
    r"(resnet\.)?embedder\.embedder\.convolution": "conv1",
    r"(resnet\.)?embedder\.embedder\.normalization": "bn1",
    r"(resnet\.)?encoder\.stages\.(?P<stage>\d+)\.layers\.(?P<block>\d+)\.layer\.(?P<layer>\d+)\.convolution": (
        "layer{stage}.{block}.conv{layer}"
    ),
    r"(resnet\.)?encoder\.stages\.(?P<stage>\d+)\.layers\.(?P<block>\d+)\.layer\.(?P<layer>\d+)\.normalization": (
        "layer{stage}.{block}.bn{layer}"
    ),
    r"(resnet\.)?encoder\.stages\.(?P<stage>\d+)\.layers\.(?P<block>\d+)\.shortcut\.convolution": (
        "layer{stage}.{block}.downsample.0"
    ),
    r"(resnet\.)?encoder\.stages\.(?P<stage>\d+)\.layers\.(?P<block>\d+)\.shortcut\.normalization": (
        "layer{stage}.{block}.downsample.1"
    ),
    r"classifier\.1": "fc",
}
"""Layers of transformers' ResNet, and torchvision's names for them; `stage` and `layer` are counted up by one."""


def ours(given: Weights, shapes: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Our name for each tensor of a file, by the file's name, for a model whose tensors have these shapes.

    Names stay as they are where the model has them all. Else wrappers that every name carries are taken away and
    Hugging Face's layers renamed, as far as more tensors then have the name and shape of one of the model; of equally
    good ways the one that changes less. A tensor that nothing is known of keeps its name. No two get the same.
    """
    best = {name: name for name in given}
    if all(name in shapes for name in given):
        return best
    most = _matching(best, given, shapes)
    for candidate in _candidates(list(given)):
        found = _matching(candidate, given, shapes)
        # Tensors that would share a name could not both be told of: the file is not what the table is for.
        if found > most and len(set(candidate.values())) == len(given):
            best, most = candidate, found
    return best


def fitting(given: Weights, shapes: Mapping[str, Sequence[int]]) -> Weights:
    """The same tensors (not copied) under the names of `ours`."""
    called = ours(given, shapes)
    return {called[name]: tensor for name, tensor in given.items()}


def _candidates(given: Sequence[str]) -> Iterator[dict[str, str]]:
    """Ways to name all tensors, from the least change to the greatest."""
    bare = list(given)
    while True:
        yield dict(zip(given, bare, strict=True))
        yield dict(zip(given, map(_from_hugging_face, bare), strict=True))
        wrapper = next((text for text in WRAPPERS if bare and all(name.startswith(text) for name in bare)), None)
        if wrapper is None:
            return
        bare = [name.removeprefix(wrapper) for name in bare]


def _from_hugging_face(name: str) -> str:
    layer, _, kind = name.rpartition(".")
    for pattern, template in HUGGING_FACE.items():
        if found := re.fullmatch(pattern, layer):
            parts = found.groupdict()
            # They count stages and the layers of a block from 0, torchvision from 1; both count blocks from 0.
            counted = {key: int(parts[key]) + 1 for key in ("stage", "layer") if key in parts}
            return f"{template.format_map(parts | counted)}.{kind}"
    return name


def _matching(called: Mapping[str, str], given: Weights, shapes: Mapping[str, Sequence[int]]) -> int:
    """Tensors that have the name and the shape of one of the model."""
    return sum(name in shapes and given[file].shape == shapes[name] for file, name in called.items())
