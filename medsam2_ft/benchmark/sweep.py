"""Carrying objects through the slices of a volume: the order of visits, shared encodings, and the slice-by-slice way.

Every slice is encoded once for all objects. Slices that both directions need lie between the first and the last start;
they are visited upwards, then downwards, before the upward sweep goes on, so that a small cache is enough.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medsam2_ft.benchmark.models.adapter import Adapter, Boxes, Seed
from medsam2_ft.prompts.sampling import tight_box


class EncodedSlices(Mapping[int, Any]):
    """Encodings of one case's slices, made on demand, the latest few kept, with the seconds and calls they took.

    Args:
        embed: encodes one uint8 slice.
        images: uint8 (T, H, W) or (T, H, W, 3), left on the host.
        capacity: how many encodings are kept.
    """

    def __init__(
        self, embed: Callable[[NDArray[np.uint8]], Any], images: NDArray[np.uint8], *, capacity: int = 24
    ) -> None:
        self.embed, self.images, self.capacity = embed, images, capacity
        self.seconds, self.num_calls = 0.0, 0
        self._kept: OrderedDict[int, Any] = OrderedDict()

    def __getitem__(self, t: int) -> Any:
        if t in self._kept:
            self._kept.move_to_end(t)
            return self._kept[t]
        started = now()
        self._kept[t] = self.embed(self.images[t])
        self.seconds += now() - started
        self.num_calls += 1
        if len(self._kept) > self.capacity:
            self._kept.popitem(last=False)
        return self._kept[t]

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.images)))

    def __len__(self) -> int:
        return len(self.images)


def now() -> float:
    """Seconds of a clock, after everything sent to a GPU has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def schedule(seeds: Sequence[Seed], directions: tuple[str, ...] = ("up", "down")) -> Iterator[tuple[int, str]]:
    """The visits (slice, direction) that take all seeds to their ends, in an order that encodes each slice once."""
    first, last = min(seed.start for seed in seeds), max(seed.start for seed in seeds)
    low, high = min(seed.low for seed in seeds), max(seed.high for seed in seeds)
    if "up" in directions:
        yield from ((t, "up") for t in range(first, last + 1))
    if "down" in directions:
        yield from ((t, "down") for t in range(last, low - 1, -1))
    if "up" in directions:
        yield from ((t, "up") for t in range(last + 1, high))


def slicewise(
    model: Adapter,
    seeds: Sequence[Seed],
    *,
    features: Mapping[int, Any],
    first_boxes_N4: Boxes,
    shape_hw: tuple[int, int],
    margin: float = 5 / 1024,
    directions: tuple[str, ...] = ("up", "down"),
) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
    """Carry seeds onwards without a memory: each slice is prompted with the box of the mask on the slice before.

    This is how the paper's authors run SAM1 and MedSAM, and their fine-tuned SAM2 (`infer_medsam2_flare22.py`): the box
    grows by 5 px of 1024 on each side, and where a mask vanishes the first box is tried again.

    Args:
        model: answers boxes.
        seeds: objects, each with its own start and range.
        features: slice -> encoding.
        first_boxes_N4: the box that each seed's object was prompted with.
        shape_hw: native height and width in pixels.
        margin: growth of each side, as a share of the image's side.
        directions: `up` for rising slice numbers, `down` for falling ones.

    Yields:
        (t, index of the seed, mask (H, W)) for every slice but the starts.
    """
    previous: dict[tuple[int, str], NDArray[np.bool_]] = {}
    height, width = shape_hw
    reach = np.array([-margin * width, -margin * height, margin * width, margin * height], np.float32)
    for t, direction in schedule(seeds, directions):
        active = [
            i
            for i, seed in enumerate(seeds)
            if (seed.start < t < seed.high if direction == "up" else seed.low <= t < seed.start)
        ]
        if not active:
            continue
        boxes = np.empty((len(active), 4), np.float32)
        for row, i in enumerate(active):
            box = tight_box(previous.get((i, direction), seeds[i].mask))
            boxes[row] = first_boxes_N4[i] if box is None else np.asarray(box, np.float32) + reach
        boxes = boxes.clip(0, np.array([width, height, width, height], np.float32))
        for i, mask in zip(active, model.masks_from_boxes(features[t], boxes_N4=boxes), strict=True):
            previous[i, direction] = mask
            yield t, i, mask
