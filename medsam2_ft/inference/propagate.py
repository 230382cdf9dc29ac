"""Carry masks through slices or frames with SAM2's memory: array-fed, both directions, bounded memory.

All N objects go through each frame as one batch over one encoding; stock SAM2's video predictor visits them one by
one. Frames stay uint8 on the host and only as many memories are kept as the network can look back on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medsam2_ft.errors import UserError
from medsam2_ft.modeling.device import autocast
from medsam2_ft.modeling.segmenter import Features, resize_logits

if TYPE_CHECKING:
    from medsam2_ft.inference.predictor import Embedding, Predictor

Masks = NDArray[np.bool_]


class FeatureCache:
    """Encoded slices of one volume, the latest few kept, so that objects, prompts and directions share them.

    Args:
        predictor: encodes.
        images: uint8 (T, H, W) or (T, H, W, 3), left on the host.
        budget_bytes: of features kept on the device.
    """

    def __init__(self, predictor: Predictor, images: NDArray[np.uint8], *, budget_bytes: int = 256 << 20) -> None:
        self.predictor, self.images, self.budget_bytes = predictor, images, budget_bytes
        self._kept: OrderedDict[int, Embedding] = OrderedDict()

    def __getitem__(self, t: int) -> Embedding:
        """The encoding of slice t."""
        if t in self._kept:
            self._kept.move_to_end(t)
            return self._kept[t]
        embedding = self._kept[t] = self.predictor.embed(self.images[t])
        while len(self._kept) > max(1, self.budget_bytes // _num_bytes(embedding.features)):
            self._kept.popitem(last=False)
        return embedding


def propagate(
    predictor: Predictor,
    images: NDArray[np.uint8],
    *,
    conditioning: Mapping[int, Masks],
    low: int = 0,
    high: int | None = None,
    directions: tuple[str, ...] = ("up", "down"),
    features: FeatureCache | None = None,
) -> Iterator[tuple[int, Masks]]:
    """Yield every slice in [low, high) once, with the masks of all objects on it.

    One upward sweep from the first conditioning slice to the end, then one downward sweep from it to the start. The downward
    sweep starts from the conditioning slices alone, as the paper's authors do, so neither direction sees the other's guesses.

    Args:
        predictor: the model.
        images: uint8 (T, H, W) or (T, H, W, 3).
        conditioning: slice -> masks (N, H, W) of all N objects on it, taken as true; they are yielded unchanged.
        low: first slice.
        high: last slice + 1; the end by default.
        directions: `up` for rising slice numbers, `down` for falling ones.
        features: encodings to share with other calls on the same images.

    Yields:
        (t, masks): bool (N, H, W) at native size.
    """
    high = len(images) if high is None else high
    if not conditioning:
        raise UserError("propagation needs masks on at least one slice")
    if not low <= min(conditioning) <= max(conditioning) < high:
        raise UserError(f"the masks are on slices {sorted(conditioning)}, outside the z-range {low} to {high - 1}")
    if len({len(masks) for masks in conditioning.values()}) > 1:
        raise UserError("every conditioning slice must hold a mask of every object")
    tracker = _Tracker(predictor, features or FeatureCache(predictor, images), low, high)
    for t, masks in sorted(conditioning.items()):
        tracker.condition(t, masks)
    start = min(conditioning)
    sweeps = {"up": range(start, high), "down": range(start - 1, low - 1, -1)}
    for direction in ("up", "down"):
        if direction not in directions:
            continue
        tracker.forget_tracked()
        for t in sweeps[direction]:
            yield t, conditioning[t] if t in conditioning else tracker.step(t, reverse=direction == "down")
    if "up" not in directions:
        yield start, conditioning[start]


def propagate_groups(
    predictor: Predictor,
    images: NDArray[np.uint8],
    *,
    groups: Sequence[Mapping[int, Masks]],
    low: int = 0,
    high: int | None = None,
) -> Iterator[tuple[int, int, Masks]]:
    """`propagate` for groups of objects that are prompted on different slices; they advance together and share encodings.

    Args:
        predictor: the model.
        images: uint8 (T, H, W) or (T, H, W, 3).
        groups: each with the masks of its objects on its own conditioning slices.
        low: first slice.
        high: last slice + 1; the end by default.

    Yields:
        (t, index of the group, masks of its objects on slice t): every slice in [low, high) once for each group.
    """
    high = len(images) if high is None else high
    features = FeatureCache(predictor, images)
    starts = [min(group) for group in groups]
    up, down = (
        [
            propagate(
                predictor, images, conditioning=group, low=low, high=high, directions=(direction,), features=features
            )
            for group in groups
        ]
        for direction in ("up", "down")
    )
    for t in range(min(starts), high):
        for number, start in enumerate(starts):
            if start <= t:  # a group is read in when the others have reached it
                yield t, number, next(up[number])[1]
    for t in range(max(starts) - 1, low - 1, -1):
        for number, start in enumerate(starts):
            if t < start:
                yield t, number, next(down[number])[1]


class _Tracker:
    """SAM2's tracking state for N objects over the slices [low, high)."""

    def __init__(self, predictor: Predictor, features: FeatureCache, low: int, high: int) -> None:
        self.predictor, self.features, self.low, self.high = predictor, features, low, high
        self.sam2 = predictor.segmenter.sam2
        self.num_objects = 0
        self.outputs: dict[str, dict[int, dict[str, Any]]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}

    def forget_tracked(self) -> None:
        """Drop what was tracked, keep what was given."""
        self.outputs["non_cond_frame_outputs"].clear()

    @torch.inference_mode()
    def condition(self, t: int, masks_NHW: Masks) -> None:
        """Take masks as true on slice t, as stock SAM2's `add_new_mask` does."""
        self.num_objects = len(masks_NHW)
        side = self.predictor.image_size
        masks = torch.from_numpy(np.ascontiguousarray(masks_NHW)).to(self.predictor.device).float()[:, None]
        if masks.shape[-2:] != (side, side):
            masks = F.interpolate(masks, (side, side), mode="bilinear", antialias=True, align_corners=False)
            masks = (masks >= 0.5).float()
        with autocast(self.predictor.device, self.predictor.precision):
            output = self._track(t, mask_inputs=masks, is_init_cond_frame=True, run_mem_encoder=False)
            feats, _, sizes = self._frame(t)
            high_res = F.interpolate(output["pred_masks"].float(), (side, side), mode="bilinear", align_corners=False)
            memory, position = self.sam2._encode_new_memory(
                feats, sizes, high_res, output["object_score_logits"], is_mask_from_pts=True
            )
        output |= {"maskmem_features": memory, "maskmem_pos_enc": position}
        self.outputs["cond_frame_outputs"][t - self.low] = _compact(output)

    @torch.inference_mode()
    def step(self, t: int, *, reverse: bool) -> Masks:
        """Track all objects onto slice t and remember the answer."""
        with autocast(self.predictor.device, self.predictor.precision):
            output = self._track(t, reverse=reverse)
        tracked = self.outputs["non_cond_frame_outputs"]
        tracked[t - self.low] = _compact(output)
        self._prune(t - self.low)
        shape_hw = self.features.images.shape[1:3]
        return (resize_logits(output["pred_masks"], shape_hw) > 0).cpu().numpy()

    def _track(
        self,
        t: int,
        *,
        mask_inputs: Tensor | None = None,
        is_init_cond_frame: bool = False,
        run_mem_encoder: bool = True,
        reverse: bool = False,
    ) -> dict[str, Any]:
        feats, positions, sizes = self._frame(t)
        output: dict[str, Any] = self.sam2.track_step(
            frame_idx=t - self.low,
            is_init_cond_frame=is_init_cond_frame,
            current_vision_feats=feats,
            current_vision_pos_embeds=positions,
            feat_sizes=sizes,
            point_inputs=None,
            mask_inputs=mask_inputs,
            output_dict=self.outputs,
            num_frames=self.high - self.low,
            track_in_reverse=reverse,
            run_mem_encoder=run_mem_encoder,
        )
        return output

    def _frame(self, t: int) -> tuple[list[Tensor], list[Tensor], list[tuple[int, int]]]:
        """Features of slice t in SAM2's own layout, expanded over the objects without copying: [(hw, N, C)], positions, sizes."""
        features = self.features[t].features
        levels = (*features.high_res, features.embedding_BChw)
        sizes = [(level.shape[-2], level.shape[-1]) for level in levels]
        feats = [level.expand(self.num_objects, -1, -1, -1).flatten(2).permute(2, 0, 1) for level in levels]
        position = features.position_BChw.expand(self.num_objects, -1, -1, -1).flatten(2).permute(2, 0, 1)
        return feats, [position], sizes

    def _prune(self, index: int) -> None:
        """Forget memories that the network can no longer look back on: maps beyond `num_maskmem`, pointers beyond their limit."""
        tracked = self.outputs["non_cond_frame_outputs"]
        for past in [i for i in tracked if abs(i - index) >= self.sam2.max_obj_ptrs_in_encoder]:
            del tracked[past]
        for past, output in tracked.items():
            if abs(past - index) >= self.sam2.num_maskmem * self.sam2.memory_temporal_stride_for_eval:
                output["maskmem_features"] = None


def _compact(output: dict[str, Any]) -> dict[str, Any]:
    """What later frames need of a tracked frame; memory in bfloat16, as stock SAM2 stores it."""
    return {
        "maskmem_features": output["maskmem_features"].to(torch.bfloat16),
        "maskmem_pos_enc": output["maskmem_pos_enc"],
        "obj_ptr": output["obj_ptr"],
    }


def _num_bytes(features: Features) -> int:
    tensors = (features.embedding_BChw, *features.high_res, features.position_BChw)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
