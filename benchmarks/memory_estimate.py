"""The fit check's estimate beside what the process really took, each configuration in a process of its own.

    python -m benchmarks.memory_estimate

On a CPU "taken" is how much the process grew at most over three optimiser steps, from the loaded weights on, as the C library's
malloc is set up and with MALLOC_MMAP_THRESHOLD_=1048576, which keeps large tensors off its heap and so free of gaps; on a GPU it
is the allocator's peak. The weights are in all figures.
"""

import argparse
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

from benchmarks.training_step import FULL, build_network, make_clips, our_step
from medsam2_ft.data.batch import collate
from medsam2_ft.losses import LossWeights
from medsam2_ft.modeling.device import autocast, has_fast_bf16, resolve_device
from medsam2_ft.modeling.recompute import checkpoint_trunk
from medsam2_ft.training.memory import measure_step
from medsam2_ft.training.module import FineTuner
from medsam2_ft.training.optim import OptimiserSettings, build_optimiser

CONFIGURATIONS = (
    "--image-size 512 --batch 1",
    "--image-size 512 --batch 4",
    "--image-size 512 --batch 4 --checkpointed",
    "--image-size 512 --batch 4 --decoder",
    "--image-size 1024 --batch 2",
)


def resident_bytes(field: str) -> int:
    """VmRSS (now) or VmHWM (at most) of this process."""
    found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def report(args: argparse.Namespace) -> None:
    """One row: estimate, taken, in GB."""
    args.precision = "bf16" if has_fast_bf16(args.device) else "fp32"
    network = build_network(args, ["decoder", "no_memory"] if args.decoder else FULL)
    if args.checkpointed:
        checkpoint_trunk(network.sam2)
    clips = make_clips(args.batch, size=args.image_size)
    module = FineTuner(network, losses=LossWeights(), optim=OptimiserSettings()).to(args.device)
    context = nullcontext() if args.precision == "fp32" else autocast(args.device, args.precision)
    if args.estimate:
        step = measure_step(module, collate(clips[:1]).to(args.device), context)
        print(f"{(step.weights + step.beside_weights(args.batch)) / 1e9:.2f}")
        return
    optimiser, _ = build_optimiser(network, OptimiserSettings(), total_steps=100)
    batch = collate(clips).to(args.device)
    before = 0 if args.device.type == "cuda" else resident_bytes("VmRSS")
    for _ in range(3):
        our_step(network, batch, optimiser, args.precision)
    if args.device.type == "cuda":
        print(f"{torch.cuda.max_memory_allocated() / 1e9:.2f}")
    else:
        weights = sum(p.nbytes for p in network.parameters())
        print(f"{(resident_bytes('VmHWM') - before + weights) / 1e9:.2f}")


def main() -> None:
    """Print the table, or with `--image-size` one figure of it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default="sam2.1_tiny")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--checkpointed", action="store_true")
    parser.add_argument("--decoder", action="store_true")
    parser.add_argument("--estimate", action="store_true", help="before training, as the fit check does")
    parser.add_argument("--device", type=resolve_device, default="auto")
    args = parser.parse_args()
    if args.image_size:
        report(args)
        return
    print(f"{args.model} on {args.device}, 5 labels an image\n")
    print("| configuration | estimate, GB | taken, GB | with mmap, GB |\n|---|---|---|---|")
    for words in CONFIGURATIONS:
        command = [sys.executable, "-m", "benchmarks.memory_estimate", "--model", args.model, *words.split()]
        runs = ((["--estimate"], {}), ([], {}), ([], {"MALLOC_MMAP_THRESHOLD_": "1048576"}))
        figures = [
            subprocess.run([*command, *more], capture_output=True, text=True, check=True, env={**os.environ, **env})
            .stdout.split()[-1]
            for more, env in runs
        ]  # fmt: skip
        print(f"| `{words}` | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main()
