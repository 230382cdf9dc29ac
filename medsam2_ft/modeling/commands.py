"""The commands `export` and `inspect`: checkpoints to files that open elsewhere, and what a file is."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from medsam2_ft.errors import UserError
from medsam2_ft.modeling.build import STRIDE
from medsam2_ft.modeling.weights import Checkpoint, export_checkpoint, export_meta, read_checkpoint, recognise

FORMATS = {"pt": ".pt", "safetensors": ".safetensors", "onnx": ".onnx"}


def export(argv: list[str]) -> None:
    """`export RUN/last.ckpt --out model.pt`: weights under Meta's own keys, with everything needed to open them."""
    parser = argparse.ArgumentParser(prog="python -m medsam2_ft export", description=export.__doc__)
    parser.add_argument("checkpoint", type=Path, help="a .ckpt of training, or any SAM2 checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="model.pt, model.safetensors, or a folder for onnx")
    parser.add_argument("--format", choices=FORMATS, help="by default what the name of --out ends in")
    parser.add_argument("--half", action="store_true", help="store float16; loaders cast it up")
    args = parser.parse_args(argv)
    kind = args.format or next((name for name, ending in FORMATS.items() if args.out.suffix == ending), "")
    if kind == "onnx":
        from medsam2_ft.modeling.onnx import export_onnx

        export_onnx(args.checkpoint, args.out)
    else:
        if args.out.suffix != FORMATS.get(kind):
            raise UserError(f"--out {args.out} does not end in .pt or .safetensors; name the format in the file name")
        checkpoint = read_checkpoint(args.checkpoint)
        meta = checkpoint.meta or export_meta(checkpoint.spec())
        dtype = torch.float16 if args.half else torch.float32
        export_checkpoint(checkpoint.state, args.out, meta=meta, dtype=dtype)
    print(f"wrote {args.out}; open it with: python -m medsam2_ft inspect {args.out}")


def inspect(argv: list[str]) -> None:
    """`inspect model.pt`: the network, its size, labels and recipe, and the call that opens it in stock sam2."""
    parser = argparse.ArgumentParser(prog="python -m medsam2_ft inspect", description=inspect.__doc__)
    parser.add_argument("checkpoint", type=Path)
    print(describe(read_checkpoint(parser.parse_args(argv).checkpoint)))


def describe(checkpoint: Checkpoint) -> str:
    """What a checkpoint is, in lines of `name: value`, and the stock call."""
    spec = checkpoint.spec()
    weights = sum(tensor.numel() for tensor in checkpoint.state.values())
    lines = {
        "file": f"{checkpoint.path} (sha256 {checkpoint.sha256[:16]})",
        "network": f"{recognise(checkpoint.state) or 'unknown'}, {spec.sam2_config}, {spec.image_size} px",
        "weights": f"{weights / 1e6:.2f} M in {len(checkpoint.state)} tensors",
        "labels": checkpoint.meta.get("labels") or "not recorded",
        "intensity recipe": checkpoint.meta.get("recipe") or "not recorded",
        "made by": f"medsam2_ft {checkpoint.meta['version']} {checkpoint.meta.get('git', '')[:12]}"
        if checkpoint.meta
        else "others",
    }
    width = max(map(len, lines))
    return "\n".join([*(f"{name:<{width}}  {value}" for name, value in lines.items()), "", stock_call(checkpoint)])


def stock_call(checkpoint: Checkpoint) -> str:
    """Python that opens the file in stock sam2 and answers as our Predictor does in float32.

    Post-processing is off because it swaps unstable masks for those of tokens that fine-tuning does not supervise;
    the predictor's feature sizes are hard-coded for 1024 px.
    """
    spec = checkpoint.spec()
    side = spec.image_size // STRIDE
    sizes = [(4 * side, 4 * side), (2 * side, 2 * side), (side, side)]
    opening = (
        "from sam2.build_sam import build_sam2\n"
        "from sam2.sam2_image_predictor import SAM2ImagePredictor\n"
        f"model = build_sam2({spec.sam2_config!r}, {str(checkpoint.path)!r}, device='cpu', apply_postprocessing=False,\n"
        f"                   hydra_overrides_extra={spec.hydra_overrides!r})\n"
        "predictor = SAM2ImagePredictor(model)\n"
    )
    return opening if spec.image_size == 1024 else opening + f"predictor._bb_feat_sizes = {sizes}\n"
