"""What the user pointed at, in the server's words."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .client import encode_mask


@dataclass
class ObjectPrompt:
    """One object on one slice.

    Attributes:
        object: label value, 1 to 255.
        slice: index along the chosen array axis.
        box: (x0, y0, x1, y1) in pixels, x1 and y1 exclusive.
        clicks: (x, y, is_positive) in pixels, 0 at the centre of the first pixel.
        mask: (H, W) bool; alone it is taken as it is, with clicks it is refined.
    """

    object: int
    slice: int
    box: list[float] | None = None
    clicks: list[tuple[float, float, bool]] = field(default_factory=list)
    mask: np.ndarray | None = None

    def to_json(self) -> dict:
        """The request's form."""
        return {
            "object": self.object,
            "slice": self.slice,
            "box": self.box,
            "clicks": [{"x": x, "y": y, "positive": positive} for x, y, positive in self.clicks],
            "mask": None if self.mask is None else encode_mask(self.mask),
        }


def prompts_from_labels(labels: np.ndarray, axis: int, index: int) -> list[ObjectPrompt]:
    """Every object that is on one slice of a label map, as a mask: what the user sees there is what is carried on."""
    plane = np.take(labels, index, axis)
    return [ObjectPrompt(int(value), index, mask=plane == value) for value in np.unique(plane) if value]
