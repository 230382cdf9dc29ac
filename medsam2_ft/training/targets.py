"""Masks at native size to the grid that the loss is taken on."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

TargetResize = Literal["area", "nearest"]


def resize_masks(masks: list[Tensor], side: int, *, how: TargetResize = "area") -> Tensor:
    """Masks of B images, bool (N_b, H, W) each, to float (N, side, side).

    `area` gives each cell the share of it that the object covers, so that no object vanishes, however small. `nearest` is the
    paper's authors' choice and loses objects thinner than a cell.
    """
    resized = []
    for mask in masks:
        values = mask.float()[:, None]
        if mask.shape[-2:] == (side, side):
            resized.append(values)
        elif how == "nearest":
            resized.append(F.interpolate(values, (side, side), mode="nearest"))
        else:
            resized.append(F.interpolate(values, (side, side), mode="bilinear", antialias=True, align_corners=False))
    return torch.cat(resized)[:, 0].clamp(0, 1)
