"""Turn the last checkpoint of the base model's training into the file that ships: half precision, and no labels or recipe.

A base model answers prompts on any image, so it carries no label names, and no intensity recipe that would be taken for its own.

    python benchmarks/base_model_export.py runs/nano/clip_256/last.ckpt --out checkpoints/sam2.1_nano.pt
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from medsam2_ft.errors import exit_on_user_error
from medsam2_ft.modeling.weights import export_checkpoint, export_meta, read_checkpoint
from medsam2_ft.modeling.zoo import zoo_entry

MAX_MB = 20.0


def main() -> None:
    """Write the file and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    checkpoint = read_checkpoint(arguments.checkpoint)
    meta = export_meta(
        zoo_entry("sam2.1_nano").spec,
        name="sam2.1_nano",
        recipe=None,
        labels={},
        data_sha256=checkpoint.meta.get("data_sha256", ""),
    )
    path = export_checkpoint(checkpoint.state, arguments.out, meta=meta, dtype=torch.float16)
    size_mb = path.stat().st_size / 1e6
    print(f"{path}: {size_mb:.2f} MB, sha256 {read_checkpoint(path).sha256}")
    if size_mb > MAX_MB:
        raise SystemExit(f"more than the {MAX_MB:.0f} MB that a shipped base may have")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
