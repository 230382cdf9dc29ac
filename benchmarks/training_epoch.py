"""Training end to end, each side with its own loader, in turns in one run: the reference recipe, ours, ours on cached embeddings.

    python -m benchmarks.training_epoch --model sam2.1_tiny --image-size 512 --slices 4

The reference's loader follows the authors': one `.npy` of a slice in three channels and one of its 256 x 256 labels, one random
label, torchvision's resize on the CPU. Ours reads the memory-mapped copies of npz cases and resizes on the device. No loader has
worker processes, as in the authors' script, so that `step / loader` says how many steps one worker can feed. Medians.
"""

import argparse
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import Normalize, Resize, ToTensor

from benchmarks.training_step import NUM_LABELS, build_network, now, our_step, reference_step
from medsam2_ft.data.batch import collate
from medsam2_ft.data.case import Case
from medsam2_ft.data.datamodule import PromptedDataModule
from medsam2_ft.data.embeddings import EmbeddingStore
from medsam2_ft.data.manifest import Record, write_manifest
from medsam2_ft.modeling.device import has_fast_bf16, resolve_device
from medsam2_ft.modeling.segmenter import IMAGE_MEAN, IMAGE_STD
from medsam2_ft.training.embeddings import embedding_key, embedding_shapes, encode_slices
from medsam2_ft.training.optim import OptimiserSettings, build_optimiser


def write_cases(root: Path, *, num_slices: int, size: int) -> None:
    """A volume of noise with five discs on every slice, as an npz case and as the reference's `.npy` files."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size]
    labels = {f"disc_{i}": [i] for i in range(1, NUM_LABELS + 1)}
    gts = np.zeros((num_slices, size, size), np.uint8)
    for t in range(num_slices):
        for label in range(1, NUM_LABELS + 1):
            y, x = (0.15 + 0.17 * (label - 1)) * size, rng.uniform(0.2, 0.8) * size
            gts[t][(rows - y) ** 2 + (columns - x) ** 2 < (0.08 * size) ** 2] = label
    imgs = np.clip(rng.normal(80, 30, gts.shape) + 20 * gts, 0, 255).astype(np.uint8)
    records = []
    for split, pixels in (("train", imgs), ("val", 255 - imgs)):
        Case(split, pixels, gts, spacing_mm=(1.0, 1.0, 1.0), labels=labels, kind="volume").save(root / f"{split}.npz")
        records.append(Record(split, f"{split}.npz", "CT", split, split, labels, gts.shape, (1.0, 1.0, 1.0), "", split))
    write_manifest(root, records)
    pick = np.arange(256) * size // 256
    for t in range(num_slices):
        np.save(root / f"img_{t}.npy", np.repeat(imgs[t][..., None], 3, -1))
        np.save(root / f"gt_{t}.npy", gts[t][pick][:, pick])


def reference_sample(root: Path, t: int, *, side: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Image (3, S, S), target (1, S/4, S/4) and box (4,) in model pixels; the 256 grid is the authors' at 1024 px."""
    image = np.load(root / f"img_{t}.npy")
    for part in (ToTensor(), Resize((side, side)), Normalize(IMAGE_MEAN, IMAGE_STD)):
        image = part(image)
    gt = np.load(root / f"gt_{t}.npy")
    mask = gt == rng.choice(np.unique(gt)[1:])
    ys, xs = np.nonzero(mask)
    shift = rng.integers(0, 6, 4)
    box = np.array([xs.min() - shift[0], ys.min() - shift[1], xs.max() + shift[2], ys.max() + shift[3]]).clip(0, 256)
    target = torch.nn.functional.interpolate(torch.from_numpy(mask)[None, None].float(), (side // 4, side // 4))[0]
    return image, target, torch.from_numpy(box).float() * (side / 256)


class Side:
    """One competitor: what loads a batch, what trains on it, and the seconds of both, step by step."""

    def __init__(self, name: str, labels: int, load: Callable[[list[int]], Any], step: Callable[[Any], Tensor]) -> None:
        self.name, self.labels, self.load, self.step = name, labels, load, step
        self.seconds: list[tuple[float, float]] = []

    def run(self, indices: list[int], device: torch.device) -> None:
        """Load and train one batch."""
        start = now(device)
        batch = self.load(indices)
        loaded = now(device)
        self.step(batch)
        self.seconds.append((loaded - start, now(device) - loaded))


def our_side(name: str, data: PromptedDataModule, args: argparse.Namespace, *, parts: list[str], cached: bool) -> Side:
    """Ours on a data module's training set; with `cached`, the slices are encoded first, and the time for it printed."""
    segmenter = build_network(args, parts, cached=cached)
    optimiser, _ = build_optimiser(segmenter, OptimiserSettings(), total_steps=100)
    data.setup()
    dataset: Any = data.train_set
    if cached:
        store = EmbeddingStore(embedding_key(segmenter, precision=args.precision), embedding_shapes(segmenter))
        start = now(args.device)
        encode_slices(segmenter, dataset.keys, store, context=nullcontext())
        seconds = (now(args.device) - start) / len(dataset)
        print(f"cold: {seconds:.2f} s a slice to encode, {store.bytes_per_slice / 1e6:.1f} MB to keep\n")
        dataset.embeddings = store
    return Side(
        name,
        NUM_LABELS,
        lambda indices: collate([dataset[0, i] for i in indices]),
        lambda batch: our_step(segmenter, batch.to(args.device), optimiser, args.precision),
    )


def reference_side(root: Path, args: argparse.Namespace) -> Side:
    """The reference recipe."""
    segmenter, rng = build_network(args, ["encoder", "decoder"]), np.random.default_rng(0)
    optimiser = torch.optim.AdamW([p for p in segmenter.parameters() if p.requires_grad], lr=6e-5, fused=False)

    def load(indices: list[int]) -> Any:
        samples = [reference_sample(root, t, side=args.image_size, rng=rng) for t in indices]
        return tuple(torch.stack(part) for part in zip(*samples, strict=True))

    return Side("reference recipe, 1 label", 1, load, lambda batch: reference_step(segmenter, batch, optimiser))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default="sam2.1_tiny")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--native-size", type=int, default=512)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--slices", type=int, default=4, help="trained on by each side")
    parser.add_argument("--device", type=resolve_device, default="auto")
    args = parser.parse_args()
    on_gpu = args.device.type == "cuda"
    args.image_size = args.image_size or (1024 if on_gpu else 512)
    args.batch = args.batch or (16 if on_gpu else 1)
    args.precision = "bf16" if has_fast_bf16(args.device) else "fp32"
    torch.set_float32_matmul_precision("high")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_cases(root, num_slices=max(args.slices, args.batch), size=args.native_size)
        data = PromptedDataModule(root, num_workers=0)
        data.prepare_data()
        sides = [
            reference_side(root, args),
            our_side("ours, 5 labels", data, args, parts=["encoder", "decoder", "no_memory"], cached=False),
            our_side(
                "ours, 5 labels, decoder on cached embeddings", data, args, parts=["decoder", "no_memory"], cached=True
            ),
        ]
        batches = [list(range(i, i + args.batch)) for i in range(0, args.slices - args.batch + 1, args.batch)]
        for indices in [batches[0], *batches]:
            for side in sides:
                side.run(indices, args.device)
    print(
        f"{args.model} at {args.image_size} px, batch {args.batch}, {args.device}, {torch.get_num_threads()} threads\n"
    )
    print(
        "| end to end | loader ms/image | step / loader | images/s | ratio | masks/s | ratio |\n|---|---|---|---|---|---|---|"
    )
    base = None
    for side in sides:
        load, step = np.median(np.array(side.seconds[1:]), axis=0) / args.batch  # the first warms up
        rate = 1 / (load + step)
        base = base or rate
        print(
            f"| {side.name} | {1e3 * load:.1f} | {step / load:.0f} | {rate:.2f} | {rate / base:.2f} "
            f"| {side.labels * rate:.2f} | {side.labels * rate / base:.2f} |"
        )


if __name__ == "__main__":
    main()
