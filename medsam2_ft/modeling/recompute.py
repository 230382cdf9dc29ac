"""Activation checkpointing of the image encoder's trunk: less memory for a second forward pass of it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch.utils.checkpoint import checkpoint

from medsam2_ft.errors import ConfigError

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base


def checkpoint_trunk(sam2: SAM2Base) -> None:
    """Let each trunk block keep its input only and run again in the backward pass (Chen 2016); gradients stay the same.

    Raises:
        ConfigError: where no weight of the encoder trains, so that nothing is kept in the first place.
    """
    if not any(p.requires_grad for p in sam2.image_encoder.parameters()):
        raise ConfigError(
            "trainer.activation_checkpointing=true saves nothing where the encoder does not train; leave it out"
        )
    for block in sam2.image_encoder.trunk.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
