"""Milliseconds to embed one image and to answer one box, small base model and LiteMedSAM in turns: the best of each is kept.

python benchmarks/base_model_speed.py --models sam2.1_nano,lite_medsam
"""

from __future__ import annotations

import argparse
from time import perf_counter

import numpy as np
import torch

from medsam2_ft.benchmark.models.catalogue import open_model
from medsam2_ft.errors import exit_on_user_error


def main() -> None:
    """Print one line a model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", default="sam2.1_nano,lite_medsam")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    models = [open_model(spec, device="cpu") for spec in arguments.models.split(",")]
    image = np.random.default_rng(0).integers(0, 255, (512, 512), dtype=np.uint8)
    box = np.array([[100.0, 120.0, 300.0, 330.0]], np.float32)
    best = {model.name: [np.inf, np.inf] for model in models}
    for _ in range(arguments.rounds):
        for model in models:
            start = perf_counter()
            embedding = model.embed(image)
            middle = perf_counter()
            model.masks_from_boxes(embedding, boxes_N4=box)
            times = (middle - start, perf_counter() - middle)
            best[model.name] = [min(old, new) for old, new in zip(best[model.name], times, strict=True)]
    for model in models:
        embed_ms, prompt_ms = (1000 * seconds for seconds in best[model.name])
        print(
            f"{model.name}: {model.num_parameters / 1e6:.2f} M parameters, embed {embed_ms:.0f} ms, box {prompt_ms:.0f} ms"
        )


if __name__ == "__main__":
    with exit_on_user_error():
        main()
