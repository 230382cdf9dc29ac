"""A SAM2 of SAM's decoder width can start from a SAM's prompt encoder and mask decoder, which know what a box means.

SAM2's decoder differs from SAM's by the object score and the skip connections, which stay as they are, and by a sigmoid on the
IoU head, whose last layer is left out too. Everything else has the same shapes and meaning.
"""

from __future__ import annotations

from torch import Tensor, nn

from medsam2_ft.errors import CheckpointError

ROOMS = {"prompt_encoder.": "sam_prompt_encoder.", "mask_decoder.": "sam_mask_decoder."}
"""First parts of SAM's keys, and of SAM2's."""

RENAMED = {"mlp.lin1.": "mlp.layers.0.", "mlp.lin2.": "mlp.layers.1."}
LEFT_OUT = "sam_mask_decoder.iou_prediction_head.layers.2."


def transplant(sam2: nn.Module, sam_state: dict[str, Tensor]) -> list[str]:
    """Copy what fits of a SAM's prompt encoder and mask decoder.

    Args:
        sam2: changed in place.
        sam_state: state dict with SAM's own keys.

    Returns:
        Names of the weights copied, as SAM2 calls them.

    Raises:
        CheckpointError: if any weight of SAM's two parts has no place.
    """
    own, copied, misfits = sam2.state_dict(), [], []
    for key, value in sam_state.items():
        room = next((name for name in ROOMS if key.startswith(name)), None)
        if room is None:
            continue
        name = key.replace(room, ROOMS[room], 1)
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        if name.startswith(LEFT_OUT):
            continue
        if name not in own or own[name].shape != value.shape:
            misfits.append(name)
            continue
        own[name].copy_(value)
        copied.append(name)
    if misfits or not copied:
        raise CheckpointError(
            f"{len(misfits)} weights of SAM's decoder have no place here, {(misfits or ['all'])[0]} among them"
        )
    return copied
