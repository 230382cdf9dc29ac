"""What the dataset hands to the model: one `Clip` a sample, one `ClipBatch` a step.

Images keep their native size, so a batch holds lists; the model resizes on its own device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Clip:
    """T neighbouring slices or frames with N objects, and a box for each object on the first.

    Attributes:
        images: uint8 (T, H, W) or (T, H, W, 3).
        masks: bool (N, T, H, W).
        boxes_N4: (x0, y0, x1, y1) in native pixels, half-open, on the clip's first slice.
        regions: name of each object's region.
        name: of the case.
        labelled_T: False on slices that nobody annotated; None where all are.
        seed: of what is drawn for the clip later, in the training step: clicks on its objects.
        embedding: the slice as encoded before, (C, h, w) each: embedding, levels at strides 4 and 8; None to encode it then.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    boxes_N4: NDArray[np.float32]
    regions: tuple[str, ...]
    name: str
    labelled_T: NDArray[np.bool_] | None = None
    seed: int = 0
    embedding: tuple[NDArray[np.float16], ...] | None = None


@dataclass(frozen=True)
class ClipBatch:
    """B clips with N objects between them.

    Attributes:
        images: B tensors, uint8 (T, H, W) or (T, H, W, 3).
        masks: B tensors, bool (N_b, T, H, W).
        boxes_N4: of all objects, clip after clip.
        image_index_N: which clip each object lies on.
        regions: N names.
        names: B names.
        labelled_BT: False on slices that nobody annotated.
        seeds: B seeds, of what the step draws for each clip.
        embeddings: the clips' embeddings, stacked (B, C, h, w), or None.
    """

    images: list[Tensor]
    masks: list[Tensor]
    boxes_N4: Tensor
    image_index_N: Tensor
    regions: tuple[str, ...]
    names: tuple[str, ...]
    labelled_BT: Tensor
    seeds: tuple[int, ...]
    embeddings: tuple[Tensor, ...] | None = None

    @property
    def num_objects(self) -> int:
        """N: objects in the whole batch."""
        return len(self.boxes_N4)

    @property
    def num_slices(self) -> int:
        """T: slices of every clip; 1 on the image path."""
        return int(self.labelled_BT.shape[1])

    def labelled_at(self, t: int) -> Tensor:
        """Whether slice t is annotated, for each object: (N,)."""
        return self.labelled_BT[self.image_index_N, t]

    def masks_at(self, t: int) -> list[Tensor]:
        """Masks (N_b, H, W) of every clip on slice t."""
        return [mask[:, t] for mask in self.masks]

    @property
    def sizes_hw_N2(self) -> Tensor:
        """Native height and width of the image under each object."""
        sizes = torch.tensor([image.shape[1:3] for image in self.images], device=self.boxes_N4.device)
        return sizes[self.image_index_N]

    def frame(self, t: int) -> list[Tensor]:
        """Slice t of every clip."""
        return [image[t] for image in self.images]

    def to(self, device: Any, non_blocking: bool = False) -> ClipBatch:
        """The same batch on another device."""
        move = lambda tensor: tensor.to(device, non_blocking=non_blocking)  # noqa: E731
        return self._map(move)

    def pin_memory(self) -> ClipBatch:
        """The same batch in page-locked memory, for copies that overlap with compute."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Any) -> ClipBatch:
        return replace(
            self,
            images=[function(image) for image in self.images],
            masks=[function(mask) for mask in self.masks],
            boxes_N4=function(self.boxes_N4),
            image_index_N=function(self.image_index_N),
            labelled_BT=function(self.labelled_BT),
            embeddings=None if self.embeddings is None else tuple(map(function, self.embeddings)),
        )


def collate(clips: Sequence[Clip]) -> ClipBatch:
    """Clips of any sizes to one batch; nothing is resized or padded."""
    counts = torch.tensor([len(clip.boxes_N4) for clip in clips])
    return ClipBatch(
        images=[torch.from_numpy(np.ascontiguousarray(clip.images)) for clip in clips],
        masks=[torch.from_numpy(np.ascontiguousarray(clip.masks)) for clip in clips],
        boxes_N4=torch.from_numpy(np.concatenate([clip.boxes_N4 for clip in clips]).astype(np.float32)),
        image_index_N=torch.repeat_interleave(torch.arange(len(clips)), counts),
        regions=tuple(region for clip in clips for region in clip.regions),
        names=tuple(clip.name for clip in clips),
        labelled_BT=torch.stack([_labelled(clip) for clip in clips]),
        seeds=tuple(clip.seed for clip in clips),
        embeddings=_stack_embeddings([clip.embedding for clip in clips if clip.embedding is not None]),
    )


def _stack_embeddings(embeddings: list[tuple[NDArray[np.float16], ...]]) -> tuple[Tensor, ...] | None:
    levels = zip(*embeddings, strict=True)
    return tuple(torch.stack([torch.from_numpy(array) for array in level]) for level in levels) or None


def _labelled(clip: Clip) -> Tensor:
    known = clip.labelled_T
    return (
        torch.ones(len(clip.images), dtype=torch.bool)
        if known is None
        else torch.from_numpy(np.ascontiguousarray(known))
    )
