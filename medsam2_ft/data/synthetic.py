"""Synthetic images and clips with labelled objects, drawn on demand: unlimited, free of licences, exact at their borders.

Everything is a pure function of a numpy generator; images are clips of one frame. Contents are made to need the box: neighbours
touch, regions nest, and objects share their looks with others.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from medsam2_ft.data.appearance import Optics, render
from medsam2_ft.data.batch import Clip
from medsam2_ft.data.dataset import clip_slices
from medsam2_ft.data.scenes import random_scene
from medsam2_ft.prompts.sampling import BoxJitter, jitter_box, tight_boxes

REGION = "synthetic"
STREAM = 0x5EED
"""Mixed into every seed, so that synthetic scenes and the shuffling of real cases do not share draws."""


def draw_clip(
    rng: np.random.Generator, *, num_frames: int = 1, size: int = 192
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """One clip and its objects.

    Args:
        rng: the only source of variation.
        num_frames: T; 1 for an image.
        size: H and W in pixels.

    Returns:
        images uint8 (T, H, W) or (T, H, W, 3), and masks bool (N, T, H, W), N at least 1.
    """
    while True:
        scene = random_scene(rng, num_frames=num_frames, size=size)
        optics = Optics.draw(rng, size=size)
        if masks := scene.objects(view_HW=optics.view_HW):
            return render(rng, scene, optics), np.stack(masks)


@dataclass
class SyntheticDataset(Dataset[Clip]):
    """Clips drawn on demand, none of them stored.

    Attributes:
        num_clips: clips an epoch; every epoch draws new ones.
        num_frames: T; 1 for images.
        size: H and W in pixels.
        max_labels: objects taken from a clip at most; None takes all.
        jitter: how boxes leave the tight one.
        seed: of the run; another seed is another world, so held-out clips take another one.
    """

    num_clips: int
    num_frames: int = 1
    size: int = 192
    max_labels: int | None = None
    jitter: BoxJitter = field(default_factory=lambda: BoxJitter(kind="tight"))
    seed: int = 0

    def __len__(self) -> int:
        return self.num_clips

    def __getitem__(self, at: tuple[int, int] | int) -> Clip:
        """The clip of `(epoch, index)`; a bare index is epoch 0. A clip starts at the frame that shows most of the objects."""
        epoch, index = (0, at) if isinstance(at, int) else at
        rng = np.random.default_rng((STREAM, self.seed, epoch, index))
        images, masks = draw_clip(rng, num_frames=self.num_frames, size=self.size)
        frames = clip_slices(int(masks.sum(axis=(0, 2, 3)).argmax()), self.num_frames, self.num_frames, rng)
        images, masks = images[frames], masks[:, frames]
        masks = masks[masks[:, 0].any(axis=(1, 2))]
        if self.max_labels is not None and len(masks) > self.max_labels:
            masks = masks[np.sort(rng.choice(len(masks), self.max_labels, replace=False))]
        shape_hw = (self.size, self.size)
        tight = tight_boxes(masks[:, 0])
        boxes = [jitter_box(tuple(box), rng, jitter=self.jitter, shape_hw=shape_hw) for box in tight]
        return Clip(
            images,
            masks,
            np.asarray(boxes, np.float32),
            (REGION,) * len(masks),
            f"{REGION}:{epoch}:{index}",
            seed=int(rng.integers(2**63)),
        )


@dataclass(frozen=True)
class SyntheticSettings:
    """How many synthetic images join the prepared ones.

    Attributes:
        train_images: an epoch; every epoch draws new ones. The mix with prepared slices is by number.
        val_images: the same after every epoch.
        size: H and W in pixels.
    """

    train_images: int
    val_images: int = 64
    size: int = 192


class JoinedDataset(Dataset[Clip]):
    """Datasets one behind the other, asked by `(epoch, index)` keys."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = parts
        self.ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, at: tuple[int, int] | int) -> Clip:
        """The sample of `(epoch, index)`; a bare index is epoch 0."""
        epoch, index = (0, at) if isinstance(at, int) else at
        which = bisect_right(self.ends, index)
        clip: Clip = self.parts[which][epoch, index - (self.ends[which - 1] if which else 0)]
        return clip
