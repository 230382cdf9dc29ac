"""Prompts sampled from masks: pure functions of a mask or box and a numpy generator.

Boxes are (x0, y0, x1, y1) in pixels, half-open; clicks are (x, y), the column and row of a pixel, as a mouse gives them. No
function here keeps state, so a draw can be repeated from its generator alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam2_ft.errors import ConfigError

Box = tuple[float, float, float, float]

REFERENCE_GRID = 256
"""Side of the grid on which the paper's authors draw their box shift (5 pixels of 256)."""


def tight_box(mask_HW: NDArray[np.bool_]) -> Box | None:
    """The smallest half-open box round a mask, or None where the mask is empty."""
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def tight_boxes(masks_NHW: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Tight boxes (N, 4) of N masks, none of them empty."""
    boxes = [tight_box(mask) for mask in masks_NHW]
    if any(box is None for box in boxes):
        raise ValueError("an empty mask has no box")
    return np.asarray(boxes, np.float32).reshape(-1, 4)


@dataclass(frozen=True)
class BoxJitter:
    """How far a training box may lie from the tight one.

    Attributes:
        kind: `outward` moves each side away from the object (the paper); `shift` moves each side either way; `loose` moves all
            sides away by one draw, which enlarges the box about its centre; `tight` moves none.
        unit: `image` measures `amount` in sides of the image, `box` in sides of the box (proportional).
        amount: the largest move; 5/256 of the image is the paper's.
        steps: draw whole steps of amount / steps, as the paper does (5: pixels of its 256 grid); None draws continuously.
    """

    kind: Literal["outward", "shift", "loose", "tight"] = "outward"
    unit: Literal["image", "box"] = "image"
    amount: float = 5 / REFERENCE_GRID
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("outward", "shift", "loose", "tight") or self.unit not in ("image", "box"):
            raise ConfigError(
                f"prompts.box kind '{self.kind}' unit '{self.unit}': kind is outward, shift, loose or tight; unit is image or box"
            )
        if not 0 <= self.amount <= 1:
            raise ConfigError(f"prompts.box.amount={self.amount} must lie between 0 and 1: it is a fraction of a side")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"prompts.box.steps={self.steps} must be at least 1, or null to draw continuously")


def jitter_box(box: Box, rng: np.random.Generator, *, jitter: BoxJitter, shape_hw: tuple[int, int]) -> Box:
    """Move each side of `box` by its own uniform draw, clipped to the image and never emptied.

    Args:
        box: (x0, y0, x1, y1), half-open.
        rng: four numbers are drawn from it, whatever the kind, so that a change of kind does not shift later draws.
        jitter: how to move.
        shape_hw: the image's height and width in pixels.
    """
    draws = rng.random(4)
    if jitter.kind == "tight":
        return box
    height, width = shape_hw
    x0, y0, x1, y1 = box
    reach_x = jitter.amount * (width if jitter.unit == "image" else x1 - x0)
    reach_y = jitter.amount * (height if jitter.unit == "image" else y1 - y0)
    if jitter.kind == "loose":
        draws[:] = draws[0]
    outward = _spread(draws, low=-1 if jitter.kind == "shift" else 0, steps=jitter.steps)
    x0, y0 = x0 - outward[0] * reach_x, y0 - outward[1] * reach_y
    x1, y1 = x1 + outward[2] * reach_x, y1 + outward[3] * reach_y
    x0, x1 = _keep_open(max(x0, 0.0), min(x1, float(width)), box[0], box[2])
    y0, y1 = _keep_open(max(y0, 0.0), min(y1, float(height)), box[1], box[3])
    return x0, y0, x1, y1


def _spread(draws: NDArray[np.float64], *, low: int, steps: int | None) -> NDArray[np.float64]:
    """Uniform draws from [0, 1) over [low, 1], or over the multiples of 1 / steps in it."""
    if steps is None:
        return low + draws * (1 - low)
    return low + np.floor(draws * ((1 - low) * steps + 1)) / steps


def _keep_open(low: float, high: float, tight_low: float, tight_high: float) -> tuple[float, float]:
    """An interval of at least one pixel: the drawn one, or the tight one where the draw closed it."""
    return (low, high) if high - low >= 1 else (tight_low, tight_high)


def sample_clicks(region_NHW: Tensor, truth_NHW: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """One click on each of N regions, uniform over its pixels, labelled by what truly lies there.

    Args:
        region_NHW: bool, where to click: the object, or where a prediction is wrong. If empty, the click may lie anywhere.
        truth_NHW: bool, the objects.
        rng: one number a region is drawn from it, on the host, so that all devices click alike.

    Returns:
        clicks (N, 1, 2) float32 and labels (N, 1) int32, 1 on the object and 0 beside it.
    """
    flat = region_NHW.flatten(1)
    counts = (flat | ~flat.any(1, keepdim=True)).cumsum(1, dtype=torch.int32)
    draws = torch.from_numpy(rng.integers(2**31, size=(len(flat), 1))).to(flat.device)
    chosen = torch.searchsorted(counts, (draws % counts[:, -1:] + 1).int())
    width = region_NHW.shape[-1]
    clicks = torch.stack([chosen % width, chosen // width], dim=-1).float()
    return clicks, truth_NHW.flatten(1).gather(1, chosen).int()
