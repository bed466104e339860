"""How the local engine computes: what may be chosen for speed, and what it means for the numbers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedstart.types import STRICT


@dataclass(frozen=True, config=STRICT)
class Execution:
    """The arithmetic of clients' work. The same settings give the same bits, whatever the number of threads.

    `together`, `channels_last` and `linear` change results by rounding only (tested to 1e-5 relative in float32, to
    1e-10 in float64). `precision="bfloat16"` runs convolutions and matrix products of float32 weights in bfloat16
    (8 significant bits, products summed in float32; of stacked clients only matrix products), but for linear layers
    that `linear="onednn"` computes: those stay float32, as weights, updates, losses, means and evaluation do.
    """

    precision: Annotated[
        Literal["float32", "bfloat16"], Field(description="of the products in forward and backward passes")
    ] = "float32"
    together: Annotated[int, Field(ge=1, description="clients that are trained in one pass, stacked; 1 = singly")] = 1
    channels_last: Annotated[bool, Field(description="images and convolutions with the channels last in memory")] = True
    linear: Annotated[
        Literal["torch", "onednn"], Field(description="library for the float32 products of linear layers")
    ] = "torch"
