"""Training augmentation with albumentations: presets that keep anatomy what it is, the same draw over all slices of a clip.

No preset mirrors by default: where left and right have labels of their own, a mirrored liver is a spleen. `free` is for images
that have no sides (cells, skin) and may be turned over.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam2_ft.errors import ConfigError, nearest

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for a newer version on import

PRESETS = ("geometry", "grey", "colour", "free")


def preset_transforms(name: str) -> list[Any]:
    """The transforms of a preset.

    `geometry`: small rotation, scale and shift. `grey`: that, and brightness, contrast, gamma, noise and blur, for CT, MR, PET,
    ultrasound, X-ray, OCT and mammography. `colour`: `grey` with hue and saturation, for dermoscopy, endoscopy, fundus and
    microscopy. `free`: `colour` with mirroring and quarter turns.

    Raises:
        ConfigError: for an unknown name.
    """
    import albumentations as A

    if name not in PRESETS:
        raise ConfigError(f"there is no augmentation preset '{name}'{nearest(name, PRESETS)}")
    transforms: list[Any] = [A.Affine(rotate=(-15, 15), scale=(0.85, 1.15), translate_percent=(-0.05, 0.05), p=0.7)]
    if name != "geometry":
        transforms += [
            A.RandomBrightnessContrast(0.15, 0.15, p=0.5),
            A.RandomGamma((80, 125), p=0.3),
            A.GaussNoise(std_range=(0.01, 0.04), p=0.2),
            A.GaussianBlur(blur_limit=3, p=0.1),
        ]
    if name in ("colour", "free"):
        transforms.append(A.HueSaturationValue(8, 20, 10, p=0.3))
    if name == "free":
        transforms += [A.D4(p=1.0)]
    return transforms


@dataclass
class ClipAugmentation:
    """A preset applied to whole clips; picklable, since workers build the transforms themselves.

    Attributes:
        preset: one of `PRESETS`.
    """

    preset: str

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ConfigError(f"there is no augmentation preset '{self.preset}'{nearest(self.preset, PRESETS)}")
        self._compose: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"preset": self.preset, "_compose": None}

    def __call__(
        self, images: NDArray[np.uint8], masks: NDArray[np.bool_], rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """One draw for all slices.

        Args:
            images: uint8 (T, H, W) or (T, H, W, 3).
            masks: bool (N, T, H, W).
            rng: gives the draw's seed, and nothing else decides it.
        """
        if self._compose is None:
            import albumentations as A

            self._compose = A.Compose(preset_transforms(self.preset))
        self._compose.set_random_seed(int(rng.integers(2**31)))
        grey = images.ndim == 3
        colours = np.repeat(images[..., None], 3, axis=-1) if grey else images
        flat = masks.reshape(-1, *masks.shape[2:]).astype(np.uint8)
        result = self._compose(images=colours, masks=flat)
        new_masks = np.asarray(result["masks"]).astype(bool)
        new_images = np.asarray(result["images"])
        new_images = new_images[..., 1] if grey else new_images
        return np.ascontiguousarray(new_images), new_masks.reshape(*masks.shape[:2], *new_masks.shape[1:])
