"""The differentiable SAM2 forward of the image path: one encoder pass, many prompts.

`SAM2ImagePredictor` runs under no_grad and handles one image at a time; this module takes batches and keeps the graph, and gives
the same low-res logits on the same weights. Shape legend in docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsam2_ft.modeling.build import LOW_RES_STRIDE, SAM2Spec, build_sam2

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
    """The mask decoder's answer to N prompts: one mask each, or M = 3 to choose from.

    Attributes:
        logits_NMhw: mask logits at a quarter of the input side, float32.
        iou_NM: the decoder's own estimate of their IoU.
        object_score_N: logit that the object is there at all.
        token_NC: the output token of the chosen mask, from which object pointers are made.
    """

    logits_NMhw: Tensor
    iou_NM: Tensor
    object_score_N: Tensor
    token_NC: Tensor

    @property
    def logits_N1hw(self) -> Tensor:
        """The mask that the decoder itself holds for the best."""
        return self.logits_NMhw if self.iou_NM.shape[1] == 1 else pick_mask(self.logits_NMhw, self.iou_NM)

    @property
    def iou_N(self) -> Tensor:
        """The estimate for that mask."""
        return self.iou_NM.amax(1)


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
        """Run the image encoder once for B images.

        The same features as stock's `forward_image`, whose neck widens both high-resolution levels to the embedding's width
        before the decoder's 1 x 1 convolutions narrow them again: here the two convolutions are one, by the product of their
        weights, and no map of the full width is computed or kept for the backward pass.
        """
        stages = self.sam2.image_encoder.trunk(images_B3SS)
        neck, decoder = self.sam2.image_encoder.neck, self.sam2.sam_mask_decoder
        high = _compose(neck.convs[3].conv, decoder.conv_s0)(stages[0])
        middle = _compose(neck.convs[2].conv, decoder.conv_s1)(stages[1])
        return self._features(self._embedding(stages), high, middle)

    def encode_levels(self, images_B3SS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What does not depend on the mask decoder: the embedding, and the levels at strides 4 and 8 at their full width."""
        stages = self.sam2.image_encoder.trunk(images_B3SS)
        neck = self.sam2.image_encoder.neck
        return self._embedding(stages), neck.convs[3](stages[0]), neck.convs[2](stages[1])

    def features_of(self, levels: Sequence[Tensor]) -> Features:
        """Features from kept ones: (embedding, stride 4, stride 8), the latter two as in `Features` or at their full width."""
        embedding, high, middle = (level.to(self.image_mean.dtype) for level in levels)
        if high.shape[1] == embedding.shape[1]:
            high, middle = self.sam2.sam_mask_decoder.conv_s0(high), self.sam2.sam_mask_decoder.conv_s1(middle)
        return self._features(embedding, high, middle)

    def _embedding(self, stages: list[Tensor]) -> Tensor:
        """The neck at stride 16: the trunk's two coarse stages, added (every SAM2 config has only these two top-down)."""
        neck = self.sam2.image_encoder.neck
        coarse = F.interpolate(neck.convs[0](stages[3]).float(), scale_factor=2.0, mode=neck.fpn_interp_model)
        embedding: Tensor = neck.convs[1](stages[2]) + coarse
        return embedding

    def _features(self, embedding: Tensor, high: Tensor, middle: Tensor) -> Features:
        position = self.sam2.image_encoder.neck.position_encoding(embedding).to(embedding.dtype)
        return Features(embedding, (high, middle), position)

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

        Lone clicks are answered with three masks where the network's config has it so, and the best of them is chosen.

        Args:
            features: of the B images.
            image_index_N: which image each prompt lies on.
            points: box corners and clicks, in model pixels.
            mask_logits_N1hw: previous low-res logits as a dense prompt, at a quarter of the input side.
        """
        picked = features.pick(image_index_N)
        embedding = self.without_memory(picked.embedding_BChw)
        return self.decode_embedding(
            embedding,
            picked.high_res,
            points=points,
            mask_logits_N1hw=mask_logits_N1hw,
            multimask=self.wants_several(points),
        )

    def without_memory(self, embedding_BChw: Tensor) -> Tensor:
        """Embeddings as the decoder wants them on a frame that remembers nothing."""
        carried: Tensor = embedding_BChw + self.sam2.no_mem_embed.view(1, -1, 1, 1)
        return carried

    def decode_embedding(
        self,
        embedding_NChw: Tensor,
        high_res: tuple[Tensor, Tensor],
        *,
        points: Points | None,
        mask_logits_N1hw: Tensor | None,
        multimask: bool = False,
    ) -> Decoded:
        """The mask decoder on embeddings that already carry their memory (or the no-memory embedding).

        Args:
            embedding_NChw: of the image under each object.
            high_res: its skip connections.
            points: box corners and clicks, in model pixels.
            mask_logits_N1hw: previous low-res logits as a dense prompt.
            multimask: answer with mask tokens 1-3 instead of with token 0.
        """
        if not len(embedding_NChw):  # stock's decoder cannot reshape nothing
            return self._no_answers(embedding_NChw, num_masks=3 if multimask else 1)
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
            multimask_output=multimask,
            repeat_image=False,
            high_res_features=list(high_res),
        )
        iou = iou.float()
        chosen = token[:, 0] if token.shape[1] == 1 else pick_mask(token, iou)[:, 0]
        return Decoded(logits.float(), iou, object_score[:, 0].float(), chosen)

    def wants_several(self, points: Points | None, *, prompted: bool = True) -> bool:
        """Whether SAM2, as its config has it, answers this prompt with three masks: a lone click, or a tracked frame."""
        labels = None if points is None else {"point_labels": points.labels_NP}
        return bool(self.sam2._use_multimask(prompted, labels))

    def _no_answers(self, embedding_0Chw: Tensor, *, num_masks: int) -> Decoded:
        side = self.image_size // LOW_RES_STRIDE
        zeros = embedding_0Chw.new_zeros
        return Decoded(
            zeros(0, num_masks, side, side).float(),
            zeros(0, num_masks).float(),
            zeros(0).float(),
            embedding_0Chw[:, :, 0, 0],
        )

    def forward(self, images: list[Tensor], boxes_N4: Tensor, image_index_N: Tensor) -> Decoded:
        """Logits of N boxes on B native-size uint8 images: encode once, decode all."""
        features = self.encode(self.normalise(images))
        sizes = torch.tensor([image.shape[:2] for image in images], device=boxes_N4.device)
        return self.decode(
            features, image_index_N=image_index_N, points=self.box_points(boxes_N4, sizes[image_index_N])
        )


def pick_mask(values_NMx: Tensor, iou_NM: Tensor) -> Tensor:
    """Of each object's M masks or tokens the one of highest IoU estimate, (N, 1, ...)."""
    return values_NMx[torch.arange(len(iou_NM), device=iou_NM.device), iou_NM.argmax(1)][:, None]


def _compose(inner: nn.Conv2d, outer: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    """outer(inner(x)) for two 1 x 1 convolutions, as one."""
    wide, bias = inner.weight.flatten(1), inner.bias
    assert bias is not None
    narrow = outer.weight.flatten(1)
    with torch.autocast(wide.device.type, enabled=False):
        weight, offset = narrow @ wide, F.linear(bias, narrow, outer.bias)
    return lambda x: F.conv2d(x, weight[..., None, None], offset)


def resize_logits(logits_N1hw: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Low-res logits to native size (N, H, W), bilinear, as SAM2's own predictor does."""
    return F.interpolate(logits_N1hw.float(), size_hw, mode="bilinear", align_corners=False)[:, 0]
