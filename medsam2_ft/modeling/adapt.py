"""What trains: freeze by name, so that every trained weight gets a gradient and DDP needs no search for unused ones.

SAM2 has parts that the box-prompted image path never touches; left trainable they stop DDP, and weight decay shrinks them.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from medsam2_ft.errors import ConfigError, nearest
from medsam2_ft.losses import LossWeights

MEMORY = (
    "memory_attention", "memory_encoder", "maskmem_tpos_enc", "no_mem_pos_enc", "mask_downsample", "obj_ptr_proj",
    "obj_ptr_tpos_proj", "no_obj_ptr", "no_obj_embed_spatial",
)  # fmt: skip
"""Touched by tracking alone; the image path leaves their gradients None."""

UNSUPERVISED_TOKENS = tuple(f"sam_mask_decoder.output_hypernetworks_mlps.{i}" for i in (1, 2, 3))
"""Mask tokens 1-3, whose masks no loss sees: their gradient is zero, not None, so only weight decay would move them."""

PARTS = {
    "encoder": ("image_encoder",),
    "decoder": ("sam_mask_decoder",),
    "no_memory": ("no_mem_embed",),
    "prompt_encoder": ("sam_prompt_encoder",),
}
"""Names a user may train, and the first parts of the parameters they stand for."""


def trainable_parts(sam2: nn.Module, parts: Iterable[str], *, losses: LossWeights) -> list[str]:
    """Make the named parts trainable and freeze everything else.

    Args:
        sam2: the network.
        parts: of `PARTS`.
        losses: heads whose loss has no weight are frozen too.

    Returns:
        Names of the parameters that train.

    Raises:
        ConfigError: for an unknown part.
    """
    prefixes: list[str] = []
    for part in parts:
        if part not in PARTS:
            raise ConfigError(f"finetune.train names '{part}'{nearest(part, list(PARTS))}")
        prefixes += PARTS[part]
    frozen = list(UNSUPERVISED_TOKENS)
    if not losses.iou:
        frozen.append("sam_mask_decoder.iou_prediction_head")
    if not losses.object_score:
        frozen.append("sam_mask_decoder.pred_obj_score_head")
    if "prompt_encoder" in parts:
        # Clicks and mask prompts have embeddings of their own, which a box never touches.
        frozen += [
            f"sam_prompt_encoder.{name}" for name in ("point_embeddings.0", "point_embeddings.1", "mask_downscaling")
        ]
    trained = []
    for name, parameter in sam2.named_parameters():
        wanted = _starts(name, prefixes) and not _starts(name, frozen)
        parameter.requires_grad_(wanted)
        if wanted:
            trained.append(name)
    return trained


def _starts(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)
