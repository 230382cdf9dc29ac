"""What the benchmark asks of a model: encode an image once, answer any number of boxes, perhaps carry masks on.

Images are uint8 (H, W) or (H, W, 3) at native size, boxes (x0, y0, x1, y1) in native pixels, half-open, masks boolean
at native size. Whatever a model does to sizes and intensities is its adapter's own business.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float32]
Masks = NDArray[np.bool_]


@dataclass(frozen=True)
class Seed:
    """Where one object starts before it is carried through a volume or video.

    Attributes:
        start: slice of the initial mask.
        mask: bool (H, W), taken as true.
        low: first slice to fill.
        high: last slice + 1.
    """

    start: int
    mask: NDArray[np.bool_]
    low: int
    high: int


class Adapter(Protocol):
    """A promptable model.

    Attributes:
        name: what rows and reports call it.
        checkpoint_sha256: of the weight file, "" for random weights.
        num_parameters: number of weights.
        licence: of the weights.
    """

    name: str
    checkpoint_sha256: str
    num_parameters: int
    licence: str

    def embed(self, image: NDArray[np.uint8]) -> Any:
        """Encode one uint8 image, (H, W) or (H, W, 3)."""

    def masks_from_boxes(self, embedding: Any, *, boxes_N4: Boxes) -> Masks:
        """Bool (N, H, W): one mask a box, from one encoding."""


@runtime_checkable
class Propagator(Protocol):
    """A model with a memory of its own, which carries masks from slice to slice."""

    def propagate(
        self,
        images: NDArray[np.uint8],
        seeds: Sequence[Seed],
        *,
        features: Mapping[int, Any],
        directions: tuple[str, ...] = ("up", "down"),
    ) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
        """Carry all seeds to the ends of their ranges.

        Args:
            images: uint8 (T, H, W) or (T, H, W, 3).
            seeds: objects, each with its own start and range.
            features: slice -> encoding from `embed`, encoded on demand and shared with the prompts.
            directions: `up` for rising slice numbers, `down` for falling ones.

        Yields:
            (t, index of the seed, mask (H, W)) for every slice but the starts, in any order.
        """
