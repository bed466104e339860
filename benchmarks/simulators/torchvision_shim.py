"""Imports torchvision where torch is the build for CPUs only, which the wheel on PyPI does not expect.

Two operators of torchvision are missing then; they are declared and never called. No simulator uses torchvision for
what is measured here: some import it without need.
"""

from __future__ import annotations

import torch

_library = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import torchvision  # noqa: E402, F401
