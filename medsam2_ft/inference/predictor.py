"""From a checkpoint to masks: embed an image once, answer any number of prompts, carry them through slices and frames.

Convention: images are uint8 in the stored (T, H, W) array order, prompts in pixels of that array (see prompts/prompt.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam2_ft.errors import UserError
from medsam2_ft.modeling.device import autocast, resolve_device
from medsam2_ft.modeling.segmenter import Features, Points, PromptedSegmenter, resize_logits
from medsam2_ft.modeling.weights import load_weights, read_checkpoint
from medsam2_ft.modeling.zoo import fetch_weights, zoo_entry
from medsam2_ft.prompts.prompt import Prompt

RANDOM_SUFFIX = "@random"
"""`sam2.1_nano@random` has random weights from a fixed seed: for plumbing, and as the floor of a benchmark."""


@dataclass(frozen=True)
class Embedding:
    """One encoded image and its native size."""

    features: Features
    shape_hw: tuple[int, int]


@dataclass(frozen=True)
class Prediction:
    """Answers to N prompts on one image.

    Attributes:
        masks_NHW: bool, at native size.
        logits_Nhw: low-res logits, on the model's device; a next call takes them as `mask_logits_Nhw`.
        iou_N: the model's own estimate.
        object_score_N: logit that the object is there.
    """

    masks_NHW: NDArray[np.bool_]
    logits_Nhw: Tensor
    iou_N: NDArray[np.float32]
    object_score_N: NDArray[np.float32]


@dataclass
class Predictor:
    """A SAM2 ready to answer prompts.

    Attributes:
        segmenter: the network, in eval mode on its device.
        name: what reports call it.
        meta: what the checkpoint says of itself.
        checkpoint_sha256: of the file, or "" for random weights.
        precision: `auto`, `bf16` or `fp32`.
    """

    segmenter: PromptedSegmenter
    name: str = "sam2"
    meta: dict[str, Any] = field(default_factory=dict)
    checkpoint_sha256: str = ""
    precision: str = "auto"

    def __post_init__(self) -> None:
        self.segmenter.eval().requires_grad_(False)

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Path | str, *, device: str = "auto", precision: str = "auto", image_size: int | None = None
    ) -> Predictor:
        """Open a checkpoint file, a model of the zoo by name, or `NAME@random`.

        Args:
            checkpoint: path of a file we or the paper's authors or Meta wrote, or a zoo name.
            device: `auto`, `cuda`, `mps`, `cpu`.
            precision: `auto` is bfloat16 where the hardware is fast in it.
            image_size: another input side than the checkpoint's own.

        Raises:
            CheckpointError: if it is missing, damaged or does not fit.
        """
        name = str(checkpoint)
        where = resolve_device(device)
        if name.endswith(RANDOM_SUFFIX):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                spec = zoo_entry(name.removesuffix(RANDOM_SUFFIX)).spec.resized(image_size)
                return cls(PromptedSegmenter(spec).to(where), name=name, precision=precision)
        path = Path(checkpoint)
        is_file = path.is_file() or path.suffix in (".pt", ".pth", ".ckpt", ".safetensors")
        content = read_checkpoint(path if is_file else fetch_weights(name))
        segmenter = PromptedSegmenter(content.spec().resized(image_size))
        load_weights(segmenter.sam2, content)
        label = path.stem if is_file else name
        return cls(
            segmenter.to(where), name=label, meta=content.meta, checkpoint_sha256=content.sha256, precision=precision
        )

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.segmenter.device

    @property
    def image_size(self) -> int:
        """Side of the network's square input in pixels."""
        return self.segmenter.image_size

    @property
    def num_parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.segmenter.parameters())

    @property
    def recipe(self) -> dict[str, Any] | None:
        """The intensity recipe that the checkpoint was trained with, as a dict, or None where it records none."""
        return self.meta.get("recipe")

    @property
    def labels(self) -> dict[str, list[int]]:
        """Region names and label ids that the checkpoint was trained on."""
        return dict(self.meta.get("labels", {}))

    def to_tensor(self, image: NDArray[np.uint8]) -> Tensor:
        """One uint8 slice or frame, (H, W) or (H, W, 3), on the device."""
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise UserError(f"an image must be uint8 of (H, W) or (H, W, 3), not {image.dtype} of {image.shape}")
        return torch.from_numpy(np.ascontiguousarray(image)).to(self.device)

    @torch.inference_mode()
    def embed(self, image: NDArray[np.uint8]) -> Embedding:
        """Encode one uint8 image of (H, W) or (H, W, 3)."""
        with autocast(self.device, self.precision):
            features = self.segmenter.encode(self.segmenter.normalise([self.to_tensor(image)]))
        return Embedding(features, (image.shape[0], image.shape[1]))

    @torch.inference_mode()
    def predict(
        self,
        embedding: Embedding,
        *,
        boxes_N4: NDArray[Any] | Sequence[Any] | None = None,
        points_NP2: NDArray[Any] | None = None,
        point_labels_NP: NDArray[Any] | None = None,
        mask_logits_Nhw: Tensor | None = None,
    ) -> Prediction:
        """Masks of N prompts in one decoder call.

        Args:
            embedding: of the image, from `embed`.
            boxes_N4: (x0, y0, x1, y1) in native pixels, half-open.
            points_NP2: clicks (x, y) in native pixels, beside the boxes or alone.
            point_labels_NP: 1 foreground, 0 background, -1 padding.
            mask_logits_Nhw: low-res logits of an earlier answer, to refine.
        """
        points = self._points(embedding.shape_hw, boxes_N4, points_NP2, point_labels_NP)
        num_objects = len(points.coords_NP2)
        index = torch.zeros(num_objects, dtype=torch.long, device=self.device)
        prior = mask_logits_Nhw.clamp(-32, 32)[:, None] if mask_logits_Nhw is not None else None
        with autocast(self.device, self.precision):
            decoded = self.segmenter.decode(
                embedding.features, image_index_N=index, points=points, mask_logits_N1hw=prior
            )
        masks = resize_logits(decoded.logits_N1hw, embedding.shape_hw) > 0
        return Prediction(
            masks.cpu().numpy(),
            decoded.logits_N1hw[:, 0],
            decoded.iou_N.cpu().numpy(),
            decoded.object_score_N.cpu().numpy(),
        )

    def _points(self, shape_hw: tuple[int, int], boxes: Any, clicks: Any, labels: Any) -> Points:
        """Boxes and clicks as one list of points in model pixels, box corners first, as stock SAM2 orders them."""
        if boxes is None and clicks is None:
            raise UserError("predict needs boxes, clicks or both")
        sizes = torch.tensor([shape_hw], device=self.device)
        parts = []
        if boxes is not None:
            boxes_N4 = torch.as_tensor(np.asarray(boxes, np.float32).reshape(-1, 4), device=self.device)
            parts.append(self.segmenter.box_points(boxes_N4, sizes.expand(len(boxes_N4), 2)))
        if clicks is not None:
            coords = torch.as_tensor(np.asarray(clicks, np.float32), device=self.device)
            click_labels = torch.as_tensor(np.asarray(labels, np.int32), device=self.device)
            parts.append(Points(self.segmenter.scale_points(coords, sizes.expand(len(coords), 2)), click_labels))
        return Points(torch.cat([p.coords_NP2 for p in parts], 1), torch.cat([p.labels_NP for p in parts], 1))

    def answer(self, embedding: Embedding, prompt: Prompt) -> NDArray[np.bool_]:
        """The mask (H, W) of one prompt on its encoded slice; a mask prompt is its own answer."""
        if prompt.mask is not None:
            return prompt.mask
        clicks = None if prompt.points is None else np.asarray(prompt.points)[None]
        labels = None if prompt.point_labels is None else np.asarray(prompt.point_labels)[None]
        boxes = None if prompt.box is None else [prompt.box]
        mask: NDArray[np.bool_] = self.predict(
            embedding, boxes_N4=boxes, points_NP2=clicks, point_labels_NP=labels
        ).masks_NHW[0]
        return mask

    def segment(
        self,
        images: NDArray[np.uint8],
        prompts: Sequence[Prompt],
        *,
        z_range: tuple[int, int] | None = None,
        depths: Mapping[int, tuple[int, int]] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.uint16]:
        """Label map of all prompted objects over a whole volume, video or image.

        Each prompt is answered on its own slice; objects are then carried to both ends of `z_range` through SAM2's
        memory. Several prompts of one object on different slices all condition it. Where objects overlap, the one given
        later is on top.

        Args:
            images: uint8 (T, H, W) or (T, H, W, 3).
            prompts: at least one.
            z_range: first and last + 1 slice to fill; all by default.
            depths: the same for single objects within `z_range`, by object id.
            progress: called with (slices done, slices in all).

        Returns:
            (T, H, W) uint16, 0 for background.
        """
        from medsam2_ft.inference.propagate import FeatureCache, propagate

        shape = (images.shape[0], images.shape[1], images.shape[2])
        if not prompts:
            raise UserError("segment needs at least one prompt")
        low, high = z_range or (0, shape[0])
        for prompt in prompts:
            prompt.check(shape)
            if not low <= prompt.slice < high:
                raise UserError(f"the prompt on slice {prompt.slice} lies outside the z-range {low} to {high - 1}")
        cache = FeatureCache(self, images)
        answers: dict[int, dict[int, NDArray[np.bool_]]] = defaultdict(dict)
        for prompt in prompts:
            answers[prompt.object_id][prompt.slice] = self.answer(cache[prompt.slice], prompt)
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for object_id, by_slice in answers.items():
            groups[tuple(sorted(by_slice))].append(object_id)
        ranks = {object_id: np.uint16(rank) for rank, object_id in enumerate(answers, start=1)}
        spans = dict.fromkeys(answers, (low, high)) | dict(depths or {})
        top = np.zeros(shape, np.uint16)  # rank of the object on top
        done, total = 0, len(groups) * (high - low)
        for slices, object_ids in groups.items():
            conditioning: Mapping[int, NDArray[np.bool_]] = {
                t: np.stack([answers[object_id][t] for object_id in object_ids]) for t in slices
            }
            for t, masks in propagate(self, images, conditioning=conditioning, low=low, high=high, features=cache):
                for object_id, mask in zip(object_ids, masks, strict=True):
                    first, stop = spans[object_id]
                    if first <= t < stop:
                        np.maximum(top[t], ranks[object_id], out=top[t], where=mask)
                done += 1
                if progress is not None:
                    progress(done, total)
        return np.array([0, *ranks], np.uint16)[top]
