"""The differentiable SAM2 forward of the image path: one encoder pass, many prompts.

`SAM2ImagePredictor` runs under no_grad and handles one image at a time; this module takes batches and keeps the graph, and gives
the same low-res logits on the same weights. Shape legend in docs/architecture.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsam2_ft.modeling.build import SAM2Spec, build_sam2

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
BOX_CORNER_LABELS = (2, 3)
"""SAM2 takes a box as two points with these labels: top left, bottom right."""


@dataclass(frozen=True)
class Features:
    """What the image encoder says of B images, ready for the mask decoder.

    Attributes:
        embedding_BChw: stride 16, without the no-memory embedding.
        high_res: the decoder's skip connections, (B, C/8, 4h, 4w) and (B, C/4, 2h, 2w).
        position_BChw: positional encoding of the embedding, for memory attention.
    """

    embedding_BChw: Tensor
    high_res: tuple[Tensor, Tensor]
    position_BChw: Tensor

    def pick(self, index_N: Tensor) -> Features:
        """The features of the images that N objects lie on."""
        return Features(
            self.embedding_BChw[index_N],
            (self.high_res[0][index_N], self.high_res[1][index_N]),
            self.position_BChw[index_N],
        )


@dataclass(frozen=True)
class Points:
    """Clicks and box corners in model pixels: coordinates (N, P, 2) as (x, y), labels (N, P); label -1 is padding."""

    coords_NP2: Tensor
    labels_NP: Tensor


@dataclass(frozen=True)
class Decoded:
    """The mask decoder's answer to N prompts.

    Attributes:
        logits_N1hw: mask logits at a quarter of the input side, float32.
        iou_N: the decoder's own estimate of its IoU.
        object_score_N: logit that the object is there at all.
        token_NC: the output token, from which object pointers are made.
    """

    logits_N1hw: Tensor
    iou_N: Tensor
    object_score_N: Tensor
    token_NC: Tensor

    @staticmethod
    def cat(parts: list[Decoded]) -> Decoded:
        """Answers to several calls as one, in order."""
        return Decoded(
            torch.cat([part.logits_N1hw for part in parts]),
            torch.cat([part.iou_N for part in parts]),
            torch.cat([part.object_score_N for part in parts]),
            torch.cat([part.token_NC for part in parts]),
        )


class PromptedSegmenter(nn.Module):
    """SAM2 as a trainable function of images and prompts.

    Args:
        spec: the network to build, with random weights; `modeling.weights` loads trained ones.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, spec: SAM2Spec) -> None:
        super().__init__()
        self.spec = spec
        self.sam2: SAM2Base = build_sam2(spec)
        self.register_buffer("image_mean", torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(IMAGE_STD).view(1, 3, 1, 1), persistent=False)

    @property
    def image_size(self) -> int:
        """Side S of the square input, in pixels."""
        return self.spec.image_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.image_mean.device

    def normalise(self, images: list[Tensor]) -> Tensor:
        """Uint8 images of any size, (H, W) or (H, W, 3), to the network's input (B, 3, S, S).

        The resize is antialiased bilinear on floats in [0, 1], as in SAM2's own transform; the aspect ratio is not kept.
        Grey images are resized once and then repeated.
        """
        if len({image.shape for image in images}) == 1:
            return self._normalise_alike(torch.stack(images))
        return torch.cat([self._normalise_alike(image[None]) for image in images])

    def _normalise_alike(self, images_BHWx: Tensor) -> Tensor:
        channels_last = images_BHWx if images_BHWx.ndim == 4 else images_BHWx[..., None]
        x = channels_last.permute(0, 3, 1, 2).to(self.image_mean.dtype) / 255
        if x.shape[-2:] != (self.image_size, self.image_size):
            x = F.interpolate(
                x, (self.image_size, self.image_size), mode="bilinear", antialias=True, align_corners=False
            )
        return (x - self.image_mean) / self.image_std

    def encode(self, images_B3SS: Tensor) -> Features:
        """Run the image encoder once for B images."""
        out = self.sam2.forward_image(images_B3SS)
        high, middle, low = out["backbone_fpn"][-3:]
        return Features(low, (high, middle), out["vision_pos_enc"][-1])

    def box_points(self, boxes_N4: Tensor, sizes_hw_N2: Tensor) -> Points:
        """Boxes in native pixels of their own images to corner points in model pixels.

        Args:
            boxes_N4: (x0, y0, x1, y1), half-open.
            sizes_hw_N2: height and width of the image that each box lies on.
        """
        labels = torch.tensor(BOX_CORNER_LABELS, dtype=torch.int32, device=boxes_N4.device)
        coords = self.scale_points(boxes_N4.reshape(-1, 2, 2), sizes_hw_N2)
        return Points(coords, labels.expand(len(boxes_N4), 2))

    def scale_points(self, points_NP2: Tensor, sizes_hw_N2: Tensor) -> Tensor:
        """Points (x, y) in native pixels to model pixels."""
        sizes_xy = sizes_hw_N2.flip(-1)[:, None, :].to(points_NP2.dtype)
        return points_NP2 / sizes_xy * self.image_size

    def decode(
        self,
        features: Features,
        *,
        image_index_N: Tensor,
        points: Points | None = None,
        mask_logits_N1hw: Tensor | None = None,
    ) -> Decoded:
        """One decoder call for N prompts over B encoded images, as on a frame without memory.

        Args:
            features: of the B images.
            image_index_N: which image each prompt lies on.
            points: box corners and clicks, in model pixels.
            mask_logits_N1hw: previous low-res logits as a dense prompt, at a quarter of the input side.
        """
        picked = features.pick(image_index_N)
        embedding = picked.embedding_BChw + self.sam2.no_mem_embed.view(1, -1, 1, 1)
        return self.decode_embedding(embedding, picked.high_res, points=points, mask_logits_N1hw=mask_logits_N1hw)

    def decode_embedding(
        self,
        embedding_NChw: Tensor,
        high_res: tuple[Tensor, Tensor],
        *,
        points: Points | None,
        mask_logits_N1hw: Tensor | None,
    ) -> Decoded:
        """The mask decoder on embeddings that already carry their memory (or the no-memory embedding)."""
        sam2 = self.sam2
        sparse, dense = sam2.sam_prompt_encoder(
            points=(points.coords_NP2, points.labels_NP) if points is not None else None,
            boxes=None,
            masks=mask_logits_N1hw,
        )
        logits, iou, token, object_score = sam2.sam_mask_decoder(
            image_embeddings=embedding_NChw,
            image_pe=sam2.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
            repeat_image=False,
            high_res_features=list(high_res),
        )
        return Decoded(logits.float(), iou[:, 0].float(), object_score[:, 0].float(), token[:, 0])

    def forward(self, images: list[Tensor], boxes_N4: Tensor, image_index_N: Tensor) -> Decoded:
        """Logits of N boxes on B native-size uint8 images: encode once, decode all."""
        features = self.encode(self.normalise(images))
        sizes = torch.tensor([image.shape[:2] for image in images], device=boxes_N4.device)
        return self.decode(
            features, image_index_N=image_index_N, points=self.box_points(boxes_N4, sizes[image_index_N])
        )


def resize_logits(logits_N1hw: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Low-res logits to native size (N, H, W), bilinear, as SAM2's own predictor does."""
    return F.interpolate(logits_N1hw.float(), size_hw, mode="bilinear", align_corners=False)[:, 0]
