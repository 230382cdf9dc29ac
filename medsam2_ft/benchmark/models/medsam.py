"""MedSAM ViT-B (Ma et al. 2024): SAM's network; the image squeezed to 1024 x 1024, min-max scaled to [0, 1]."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medsam2_ft.benchmark.models.adapter import Boxes, Masks
from medsam2_ft.benchmark.models.sam1 import as_rgb, build_vit_sam, count_parameters, decode_boxes
from medsam2_ft.modeling.device import autocast, resolve_device
from medsam2_ft.modeling.zoo import file_sha256

SIDE = 1024


class MedSam:
    """MedSAM behind the `Adapter` interface.

    Args:
        path: state dict in the official layout, the same as SAM ViT-B's.
        name: what reports call it.
        device: `auto`, `cuda`, `mps` or `cpu`.
        licence: of the weights.
    """

    def __init__(self, path: Path, *, name: str, device: str = "auto", licence: str = "Apache-2.0") -> None:
        self.name, self.licence = name, licence
        self.device = resolve_device(device)
        self.model = build_vit_sam(path).to(self.device)
        self.checkpoint_sha256 = file_sha256(path)
        self.num_parameters = count_parameters(self.model)

    @torch.inference_mode()
    def embed(self, image: NDArray[np.uint8]) -> tuple[Tensor, tuple[int, int]]:
        """Encode one uint8 image: (features, native height and width)."""
        tensor = torch.as_tensor(as_rgb(image), device=self.device).permute(2, 0, 1)[None].float()
        tensor = F.interpolate(tensor, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 255).round()
        tensor = (tensor - tensor.min()) / (tensor.max() - tensor.min()).clamp(min=1e-8)
        with autocast(self.device):
            features = self.model.image_encoder(tensor)
        return features.float(), (image.shape[0], image.shape[1])

    @torch.inference_mode()
    def masks_from_boxes(self, embedding: tuple[Tensor, tuple[int, int]], *, boxes_N4: Boxes) -> Masks:
        """Bool (N, H, W): one mask a box, from one encoding."""
        features, (height, width) = embedding
        scaled = boxes_N4 / np.array([width, height, width, height], np.float32) * SIDE
        low_res = decode_boxes(self.model, features, torch.as_tensor(scaled.astype(np.float32), device=self.device))
        logits = F.interpolate(low_res, (height, width), mode="bilinear", align_corners=False)
        masks: Masks = (logits[:, 0] > 0).cpu().numpy()
        return masks
