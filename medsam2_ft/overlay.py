"""Masks and boxes drawn over images, the same way in training, reports and apps.

Colours are those of matplotlib's tab10, which stay apart for most colour-blind readers.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

COLOURS = (
    (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75), (227, 119, 194),
    (188, 189, 34), (23, 190, 207), (127, 127, 127),
)  # fmt: skip


def draw_masks(
    image: NDArray[np.uint8],
    masks_NHW: NDArray[np.bool_] | Sequence[NDArray[np.bool_]],
    *,
    boxes_N4: NDArray[np.float32] | None = None,
    opacity: float = 0.4,
) -> NDArray[np.uint8]:
    """An RGB copy of `image` with N masks filled and outlined, each in its own colour.

    Args:
        image: uint8 (H, W) or (H, W, 3).
        masks_NHW: N masks of the same size.
        boxes_N4: drawn in the masks' colours, half-open pixels.
        opacity: of the fill.

    Returns:
        uint8 (H, W, 3).
    """
    canvas = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image.copy()
    thickness = max(1, round(min(canvas.shape[:2]) / 256))
    for i, mask in enumerate(masks_NHW):
        colour = COLOURS[i % len(COLOURS)]
        canvas[mask] = ((1 - opacity) * canvas[mask] + opacity * np.array(colour)).astype(np.uint8)
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        canvas = np.ascontiguousarray(canvas)
        cv2.drawContours(canvas, outlines, -1, colour, thickness)
        if boxes_N4 is not None:
            x0, y0, x1, y1 = (round(float(v)) for v in boxes_N4[i])
            cv2.rectangle(canvas, (x0, y0), (x1 - 1, y1 - 1), colour, thickness)
    return canvas
