"""What a user points at: one object's box, clicks or mask on one slice.

Coordinates are pixels of the stored (T, H, W) image; boxes are (x0, y0, x1, y1), half-open; clicks are (x, y).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsam2_ft.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """One object on one slice.

    Attributes:
        object_id: the label that the object gets in the output, 1 or more.
        slice: index along T.
        box: (x0, y0, x1, y1) in pixels, or None.
        points: clicks (P, 2) as (x, y), or None.
        point_labels: (P,) 1 for foreground, 0 for background.
        mask: (H, W) bool, used as the object's mask on this slice, or None.
    """

    object_id: int
    slice: int
    box: tuple[float, float, float, float] | None = None
    points: NDArray[np.float32] | None = None
    point_labels: NDArray[np.int64] | None = None
    mask: NDArray[np.bool_] | None = None

    def check(self, shape_thw: tuple[int, int, int]) -> None:
        """Raise `UserError` where the prompt does not fit an image of `shape_thw`."""
        num_slices, height, width = shape_thw
        who = f"the prompt of object {self.object_id}"
        if self.object_id < 1:
            raise UserError(f"{who}: object ids start at 1, because 0 is the background")
        if not 0 <= self.slice < num_slices:
            raise UserError(f"{who} is on slice {self.slice}, but the image has slices 0 to {num_slices - 1}")
        if self.box is None and self.points is None and self.mask is None:
            raise UserError(f"{who} has neither a box nor clicks nor a mask")
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            if not (x0 < x1 and y0 < y1):
                raise UserError(f"{who}: the box {self.box} is empty; write x0 y0 x1 y1 with x0 < x1 and y0 < y1")
            if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
                raise UserError(f"{who}: the box {self.box} lies outside the slice of {width} x {height} pixels")
        if self.points is not None and (self.point_labels is None or len(self.points) != len(self.point_labels)):
            raise UserError(f"{who}: every click needs a label, 1 for foreground and 0 for background")
        if self.mask is not None and self.mask.shape != (height, width):
            raise UserError(f"{who}: the mask is {self.mask.shape}, the slice is {(height, width)}")
