"""The kinds of sources by name, and what can be set about them: what `fedstart list data` shows."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass as settings_dataclass

from fedstart.types import STRICT

KINDS: dict[str, str] = {
    "digits": "1,797 handwritten digits of 8x8 pixels that come with scikit-learn",
    "synthetic": "made-up images, one pattern per class: synthetic:classes=10,examples=2000,...",
    "hf:NAME": "a dataset of the Hugging Face hub, or of its local cache",
    "path:FOLDER": "a file or folder: Parquet, Arrow, CSV, or images in one folder per class",
}
"""What `fedstart.data.sources.load` understands, with one line each."""


@settings_dataclass(frozen=True, config=STRICT)
class Synthetic:
    """Settings of the made-up images; the same settings give the same bytes."""

    classes: Annotated[int, Field(ge=2, description="number of classes")] = 10
    examples: Annotated[int, Field(ge=1, description="number of images, as equal per class as can be")] = 2000
    size: Annotated[int, Field(ge=2, description="height and width in pixels")] = 8
    channels: Annotated[int, Field(ge=1, description="1 = grey, 3 = colour")] = 1
    noise: Annotated[float, Field(ge=0, description="standard deviation of the pixel noise, grey levels")] = 40.0
    groups: Annotated[int, Field(ge=1, description="values of the column `group`, each with its own brightness")] = 10
    seed: Annotated[int, Field(ge=0, description="names the draw")] = 0
