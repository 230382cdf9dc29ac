"""The differentiable SAM2 forward of the memory path: prompt the first frame of each clip, track through the others.

Tracked frames get as many masks as in stock tracking: three to choose from, unless the network's config turns that off.

Stock `track_step` blanks the logits of frames on which the object score says "absent", so a wrong score meets the mask loss with
constant logits: no gradient, and a loss in the hundreds. Here the loss sees the decoder's own logits and only the memory sees the
blanked ones.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medsam2_ft.modeling.rounds import PromptRounds
from medsam2_ft.modeling.segmenter import Decoded, Features, Points, PromptedSegmenter

NO_OBJECT_LOGIT = -1024.0
"""What SAM2 writes into the mask of an object that its score calls absent."""


def track_clips(
    segmenter: PromptedSegmenter,
    features: list[Features],
    *,
    image_index_N: Tensor,
    rounds: PromptRounds | None = None,
    masks_N1SS: Tensor | None = None,
) -> list[tuple[int, Decoded]]:
    """Answers for N objects on every frame of B clips, given each object's prompt on the first frame.

    Args:
        segmenter: the network.
        features: of each frame, T entries for B images.
        image_index_N: which clip each object lies on.
        rounds: how the objects are prompted on the first frame; or
        masks_N1SS: each object's mask on the first frame at input size, taken as true.

    Returns:
        Answers with the frames they are for, in order: of the first frame one for each round, of the others one.
    """
    sam2 = segmenter.sam2
    if not len(image_index_N):
        nothing = [frame.pick(image_index_N) for frame in features]
        ask = segmenter.decode_embedding
        return [
            (t, ask(frame.embedding_BChw, frame.high_res, points=None, mask_logits_N1hw=None))
            for t, frame in enumerate(nothing)
        ]
    outputs: dict[str, dict[int, dict[str, Any]]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    answers: list[tuple[int, Decoded]] = []
    for t, frame in enumerate(features):
        picked = frame.pick(image_index_N)
        vectors = picked.embedding_BChw.flatten(2).permute(2, 0, 1)
        positions = picked.position_BChw.flatten(2).permute(2, 0, 1)
        size = (picked.embedding_BChw.shape[-2], picked.embedding_BChw.shape[-1])
        conditioned = sam2._prepare_memory_conditioned_features(
            frame_idx=t,
            is_init_cond_frame=t == 0,
            current_vision_feats=[vectors],
            current_vision_pos_embeds=[positions],
            feat_sizes=[size],
            output_dict=outputs,
            num_frames=len(features),
        )
        given = None
        if t == 0 and masks_N1SS is not None:
            decoded, given = _decode_given_masks(segmenter, picked, masks_N1SS)
            answers.append((t, decoded))
        elif t == 0 and rounds is not None:
            answers += [(t, answer) for answer in rounds.decode(segmenter, conditioned, picked.high_res)]
        else:
            decoded = segmenter.decode_embedding(
                conditioned,
                picked.high_res,
                points=_padding_point(vectors),
                mask_logits_N1hw=None,
                multimask=segmenter.wants_several(None, prompted=t == 0),
            )
            answers.append((t, decoded))
        decoded = answers[-1][1]
        store = outputs["cond_frame_outputs" if t == 0 else "non_cond_frame_outputs"]
        store[t] = _remember(segmenter, decoded, vectors, size, given=given, prompted=t == 0)
    return answers


def _padding_point(vectors: Tensor) -> Points:
    """No prompt, in the form SAM2 was trained with: one point of label -1."""
    num_objects = vectors.shape[1]
    return Points(
        torch.zeros(num_objects, 1, 2, device=vectors.device),
        -torch.ones(num_objects, 1, dtype=torch.int32, device=vectors.device),
    )


def _decode_given_masks(
    segmenter: PromptedSegmenter, picked: Features, masks_N1SS: Tensor
) -> tuple[Decoded, tuple[Tensor, Tensor]]:
    """SAM2's way with a mask taken as true: the decoder runs on it for the object pointer; the mask itself goes to memory.

    Returns:
        The decoder's answer, and (logits, object score) of the given masks.
    """
    side = segmenter.image_size // 4
    reduced = segmenter.sam2.mask_downsample(masks_N1SS).float()  # antialiasing has no bfloat16 gradient on CPU
    prompt = F.interpolate(reduced, (side, side), mode="bilinear", antialias=True)
    padding = _padding_point(picked.embedding_BChw[None, :, 0, 0])
    decoded = segmenter.decode_embedding(
        picked.embedding_BChw, picked.high_res, points=padding, mask_logits_N1hw=prompt
    )
    low_res = F.interpolate(masks_N1SS * 20.0 - 10.0, (side, side), mode="bilinear", antialias=True)
    is_there = masks_N1SS.flatten(1).any(1).float()
    return decoded, (low_res, 20.0 * is_there - 10.0)


def _remember(
    segmenter: PromptedSegmenter,
    decoded: Decoded,
    vectors: Tensor,
    size: tuple[int, int],
    *,
    given: tuple[Tensor, Tensor] | None,
    prompted: bool,
) -> dict[str, Any]:
    """What later frames attend to: the memory map and the object pointer of this frame."""
    sam2 = segmenter.sam2
    logits, score_N = given or (decoded.logits_N1hw, decoded.object_score_N)
    is_there_N1 = (score_N > 0).float()[:, None]
    if given is None:
        logits = torch.where(is_there_N1[..., None, None] > 0, logits, NO_OBJECT_LOGIT)
    high_res = F.interpolate(logits, (segmenter.image_size, segmenter.image_size), mode="bilinear", align_corners=False)
    memory, position = sam2._encode_new_memory(
        current_vision_feats=[vectors],
        feat_sizes=[size],
        pred_masks_high_res=high_res,
        object_score_logits=score_N[:, None],
        is_mask_from_pts=prompted,
    )
    pointer = sam2.obj_ptr_proj(decoded.token_NC)
    if sam2.fixed_no_obj_ptr:
        pointer = is_there_N1 * pointer
    pointer = pointer + (1 - is_there_N1) * sam2.no_obj_ptr
    return {"maskmem_features": memory, "maskmem_pos_enc": position, "obj_ptr": pointer}
