"""What a user would do while training watches: which kind of prompt a step takes, and where the clicks go.

The kind is drawn once per global step, so that all ranks use the same weights; clicks are drawn per image from its own seed, so
that they depend neither on the batch nor on the rank that an image falls into.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from medsam2_ft.errors import ConfigError, nearest
from medsam2_ft.prompts.sampling import BoxJitter, sample_clicks

KINDS = ("box", "point", "box_clicks", "mask")
GIVEN_MASK = "given_mask"
"""On clips only: the true mask of the first slice, taken as it is."""


@dataclass(frozen=True)
class PromptSettings:
    """What objects are prompted with in training.

    Attributes:
        kinds: share of steps of each of `KINDS`, in any unit. `point` is one click on the object; `box_clicks` a box and then
            clicks where the answer is wrong, each round fed the answer before it; `mask` a box and then its own answer as a
            dense prompt, without gradient through it.
        box: how boxes leave the tight one.
        clicks: correction rounds of `box_clicks`.
        rounds: take the loss on `every` answer, as SAM2's own training does, or on the `last`.
    """

    kinds: dict[str, float] = field(default_factory=lambda: {"box": 1.0})
    box: BoxJitter = field(default_factory=BoxJitter)
    clicks: int = 3
    rounds: Literal["every", "last"] = "every"

    def __post_init__(self) -> None:
        for name, share in self.kinds.items():
            if name not in KINDS:
                raise ConfigError(f"prompts.kinds names '{name}'{nearest(name, KINDS)}")
            if share < 0:
                raise ConfigError(f"prompts.kinds.{name}={share} must not be below 0: it is a share of steps")
        if not self.active:
            raise ConfigError("prompts.kinds are all 0, so nothing would be prompted; give one of them a share")
        if self.clicks < 1:
            raise ConfigError(
                f"prompts.clicks={self.clicks} must be at least 1; prompts.kinds.box is a box without clicks"
            )

    @property
    def active(self) -> set[str]:
        """Kinds that some step takes."""
        return {name for name, share in self.kinds.items() if share > 0}

    def draw_kind(self, rng: np.random.Generator, *, given_masks: float = 0.0) -> str:
        """One of `KINDS` by its share, or `GIVEN_MASK` with the probability `given_masks`."""
        if rng.random() < given_masks:
            return GIVEN_MASK
        names, shares = sorted(self.active), np.array([self.kinds[name] for name in sorted(self.active)])
        return str(rng.choice(names, p=shares / shares.sum()))


class PromptSimulator:
    """Clicks on the objects of one batch, each call a new one for every object.

    Args:
        masks: of B images, bool (N_b, H, W).
        seeds: one an image.
    """

    def __init__(self, masks: Sequence[Tensor], seeds: Sequence[int]) -> None:
        self.masks = list(masks)
        self._rngs = [np.random.default_rng(seed) for seed in seeds]

    def click_objects(self) -> tuple[Tensor, Tensor]:
        """Clicks (N, 1, 2) in native pixels on the objects, and their labels (N, 1)."""
        return self._click(self.masks)

    def click_errors(self, predictions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Clicks and labels where predictions, bool (N_b, H, W) of each image, differ from the truth."""
        return self._click([mask ^ pred for mask, pred in zip(self.masks, predictions, strict=True)])

    def _click(self, regions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        parts = [sample_clicks(*each) for each in zip(regions, self.masks, self._rngs, strict=True)]
        return torch.cat([clicks for clicks, _ in parts]), torch.cat([labels for _, labels in parts])
