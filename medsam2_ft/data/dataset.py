"""Training samples from cached cases: slices with their objects, prompts drawn, augmentation applied.

Every draw comes from a generator seeded by (seed, epoch, index), so a sample depends on nothing else: not on the
worker that makes it, the rank it goes to or the samples before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from medsam2_ft.data.batch import Clip
from medsam2_ft.data.cache import CachedCase
from medsam2_ft.data.embeddings import EmbeddingStore
from medsam2_ft.prompts.sampling import BoxJitter, jitter_box, tight_boxes

Augmentation = Callable[
    [NDArray[np.uint8], NDArray[np.bool_], np.random.Generator], tuple[NDArray[np.uint8], NDArray[np.bool_]]
]
"""(images (T,H,W[,3]), masks (N,T,H,W), generator) -> the same, transformed alike over the clip."""


@dataclass(frozen=True)
class SliceKey:
    """One slice of one cached case."""

    case: CachedCase
    t: int


def labelled_slices(cases: Sequence[CachedCase], *, per_case: int | None = None) -> list[SliceKey]:
    """All slices that hold an object, case by case; with `per_case`, that many spread evenly over each case."""
    keys = []
    for case in cases:
        found = [t for t, objects in enumerate(case.objects) if objects]
        if per_case is not None and len(found) > per_case:
            found = [found[round(i)] for i in np.linspace(0, len(found) - 1, per_case)]
        keys += [SliceKey(case, t) for t in found]
    return keys


def clip_slices(start: int, num_slices: int, length: int, rng: np.random.Generator) -> list[int]:
    """Slices of a clip: from `start` up or down, turning back at either end of the volume."""
    if length == 1:
        return [start]
    step = 1 if rng.random() < 0.5 else -1
    slices = [start]
    while len(slices) < length:
        if not 0 <= slices[-1] + step < num_slices:
            step = -step
        slices.append(min(max(slices[-1] + step, 0), num_slices - 1))
    return slices


@dataclass
class SliceDataset(Dataset[Clip]):
    """Slices with their objects, one `Clip` a sample: the slice alone, or it and its neighbours on one side.

    Attributes:
        keys: the slices.
        max_labels: objects taken from a slice at most; None takes all.
        jitter: how boxes leave the tight one.
        seed: of the run.
        augmentation: applied before boxes are drawn, or None.
        clip_length: T. A longer clip starts at its slice and runs up or down, as the generator says; where the volume ends
            first, it turns back.
        embeddings: where the slices lie encoded; None to leave that to the step.
    """

    keys: list[SliceKey]
    max_labels: int | None = None
    jitter: BoxJitter = field(default_factory=lambda: BoxJitter(kind="tight"))
    seed: int = 0
    augmentation: Augmentation | None = None
    clip_length: int = 1
    embeddings: EmbeddingStore | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, at: tuple[int, int] | int) -> Clip:
        """The sample of `(epoch, index)`; a bare index is epoch 0."""
        epoch, index = (0, at) if isinstance(at, int) else at
        rng = np.random.default_rng((self.seed, epoch, index))
        key = self.keys[index]
        case, objects = key.case.case, key.case.objects[key.t]
        if self.max_labels is not None and len(objects) > self.max_labels:
            objects = [objects[i] for i in sorted(rng.choice(len(objects), self.max_labels, replace=False))]
        slices = clip_slices(key.t, case.num_slices, self.clip_length, rng)
        images = np.array(case.imgs[slices])  # a copy: the cached array is read-only
        masks = np.stack(
            [np.stack([case.region_mask(region, t, instance=instance) for t in slices]) for region, instance in objects]
        )
        if self.augmentation is not None:
            images, masks, objects = self._augmented(images, masks, objects, rng)
        tight = tight_boxes(masks[:, 0])
        shape_hw = (images.shape[1], images.shape[2])
        boxes = [jitter_box(tuple(box), rng, jitter=self.jitter, shape_hw=shape_hw) for box in tight]
        regions = tuple(region for region, _ in objects)
        labelled = None if case.labelled is None else case.labelled[slices]
        name, seed = f"{key.case.name}:{key.t}", int(rng.integers(2**63))
        embedding = None if self.embeddings is None else self.embeddings.read(key)
        return Clip(images, masks, np.asarray(boxes, np.float32), regions, name, labelled, seed, embedding)

    def _augmented(
        self,
        images: NDArray[np.uint8],
        masks: NDArray[np.bool_],
        objects: list[tuple[str, int]],
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_], list[tuple[str, int]]]:
        """Augment, and keep the objects that are still there; the plain sample where none is."""
        assert self.augmentation is not None
        new_images, new_masks = self.augmentation(images, masks, rng)
        left = np.asarray(new_masks[:, 0].any(axis=(1, 2)))
        if not left.any():
            return images, masks, objects
        return new_images, new_masks[left], [pair for pair, is_left in zip(objects, left, strict=True) if is_left]
