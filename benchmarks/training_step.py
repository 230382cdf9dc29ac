"""Images and masks a second of our training step against the reference recipe's, same model, same images, in one run.

    python benchmarks/training_step.py --model sam2.1_tiny --image-size 512 --batch 2 --steps 3

The reference side follows the published recipe: fp32, one label an image, resize on the CPU one image at a time, nearest
targets on the quarter grid, MONAI's Dice + BCE, unfused AdamW over encoder and decoder. The two losses are compared first.
"""

import argparse
import resource
import time
from collections.abc import Callable

import numpy as np
import torch
from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import Normalize, Resize, ToTensor

from medsam2_ft.data.batch import Clip, ClipBatch, collate
from medsam2_ft.losses import LossWeights, segmentation_losses
from medsam2_ft.modeling.adapt import trainable_parts
from medsam2_ft.modeling.device import autocast, has_fast_bf16, resolve_device
from medsam2_ft.modeling.segmenter import IMAGE_MEAN, IMAGE_STD, PromptedSegmenter
from medsam2_ft.modeling.zoo import zoo_entry
from medsam2_ft.prompts.sampling import tight_boxes
from medsam2_ft.training.optim import OptimiserSettings, build_optimiser
from medsam2_ft.training.targets import resize_masks

NUM_LABELS = 5


def make_clips(count: int, *, size: int) -> list[Clip]:
    """Noise with five discs each."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size]
    clips = []
    for _ in range(count):
        centres = rng.uniform(0.2, 0.8, (NUM_LABELS, 2)) * size
        masks = np.stack([(rows - y) ** 2 + (columns - x) ** 2 < (0.08 * size) ** 2 for y, x in centres])
        image = np.clip(rng.normal(100, 30, (size, size, 3)) + 60 * masks.any(0)[..., None], 0, 255).astype(np.uint8)
        clips.append(Clip(image[None], masks[:, None], tight_boxes(masks), ("disc",) * NUM_LABELS, "disc"))
    return clips


def reference_step(segmenter: PromptedSegmenter, clips: list[Clip], optimiser: torch.optim.Optimizer) -> Tensor:
    """One step as the authors' script makes it."""
    side, device = segmenter.image_size, segmenter.device
    transform = [ToTensor(), Resize((side, side)), Normalize(IMAGE_MEAN, IMAGE_STD)]
    images, targets, boxes = [], [], []
    for clip in clips:
        image = clip.images[0]
        for part in transform:
            image = part(image)
        images.append(image)
        mask = torch.from_numpy(clip.masks[:1, 0]).float()[None]
        targets.append(F.interpolate(mask, (side // 4, side // 4), mode="nearest")[0])
        boxes.append(torch.from_numpy(clip.boxes_N4[0]) * side / clip.images.shape[1])
    features = segmenter.encode(torch.stack(images).to(device))
    points = segmenter.box_points(torch.stack(boxes).to(device), torch.full((len(clips), 2), side, device=device))
    decoded = segmenter.decode(features, image_index_N=torch.arange(len(clips), device=device), points=points)
    target = torch.stack(targets).to(device)
    loss = DiceLoss(sigmoid=True, squared_pred=True, reduction="mean")(decoded.logits_N1hw, target)
    loss = loss + nn.BCEWithLogitsLoss(reduction="mean")(decoded.logits_N1hw, target)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.detach()


def our_step(
    segmenter: PromptedSegmenter, batch: ClipBatch, optimiser: torch.optim.Optimizer, precision: str
) -> Tensor:
    """One step as `training/module.py` makes it, without the trainer round it."""
    with autocast(segmenter.device, precision):
        decoded = segmenter(batch.frame(0), batch.boxes_N4, batch.image_index_N)
    targets = resize_masks(batch.masks_at(0), segmenter.image_size // 4)
    terms = segmentation_losses(
        decoded.logits_N1hw[:, 0], targets, decoded.iou_N, decoded.object_score_N, LossWeights()
    )
    loss = terms["loss"] / batch.num_objects
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.detach()


def check_loss() -> float:
    """Largest difference between our loss and MONAI's Dice + torch's BCE over random logits."""
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 64, 64) * 3, (torch.rand(6, 64, 64) > 0.7).float()
    ours = segmentation_losses(logits, targets, torch.zeros(6), torch.zeros(6), LossWeights())["loss"] / 6
    theirs = DiceLoss(sigmoid=True, squared_pred=True)(logits[:, None], targets[:, None])
    theirs = theirs + F.binary_cross_entropy_with_logits(logits, targets)
    return float((ours - theirs).abs())


def measure(step: Callable[[], Tensor], *, steps: int, device: torch.device) -> tuple[float, float]:
    """(median seconds a step, peak GiB): device memory on CUDA, else the process's peak so far."""
    step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    if device.type == "cuda":
        return float(np.median(seconds)), torch.cuda.max_memory_allocated() / 2**30
    return float(np.median(seconds)), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default="sam2.1_tiny")
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = resolve_device(args.device)
    print(f"largest difference of the losses: {check_loss():.1e}")
    clips = make_clips(args.batch, size=args.image_size)
    batch = collate(clips).to(device)
    one_label = collate([Clip(c.images, c.masks[:1], c.boxes_N4[:1], c.regions[:1], c.name) for c in clips]).to(device)
    precision = "bf16" if has_fast_bf16(device) else "fp32"
    rows = []

    def add(
        name: str, labels: int, make: Callable[[PromptedSegmenter], Callable[[], Tensor]], parts: list[str]
    ) -> None:
        torch.manual_seed(0)
        segmenter = PromptedSegmenter(zoo_entry(args.model).spec.resized(args.image_size)).to(device).train()
        trainable_parts(segmenter.sam2, parts, losses=LossWeights())
        seconds, memory = measure(make(segmenter), steps=args.steps, device=device)
        rows.append((name, seconds, args.batch / seconds, labels * args.batch / seconds, memory))

    def reference(segmenter: PromptedSegmenter) -> Callable[[], Tensor]:
        optimiser = torch.optim.AdamW([p for p in segmenter.parameters() if p.requires_grad], lr=6e-5, fused=False)
        return lambda: reference_step(segmenter, clips, optimiser)

    def ours(batch: ClipBatch) -> Callable[[PromptedSegmenter], Callable[[], Tensor]]:
        def make(segmenter: PromptedSegmenter) -> Callable[[], Tensor]:
            optimiser, _ = build_optimiser(segmenter, OptimiserSettings(), total_steps=100)
            return lambda: our_step(segmenter, batch, optimiser, precision)

        return make

    full = ["encoder", "decoder", "no_memory"]
    add("reference recipe, fp32, 1 label", 1, reference, ["encoder", "decoder"])
    add(f"ours, {precision}, 1 label", 1, ours(one_label), full)
    add(f"ours, {precision}, 5 labels", NUM_LABELS, ours(batch), full)
    add(f"ours, {precision}, 5 labels, decoder only", NUM_LABELS, ours(batch), ["decoder", "no_memory"])
    print(f"{args.model} at {args.image_size} px, batch {args.batch}, {device}, {torch.get_num_threads()} threads")
    print(f"{'':44}{'s/step':>8}{'images/s':>10}{'masks/s':>9}{'ratio':>7}{'peak GiB':>10}")
    for name, seconds, images, masks, memory in rows:
        print(f"{name:44}{seconds:8.2f}{images:10.2f}{masks:9.2f}{masks / rows[0][3]:7.2f}{memory:10.2f}")


if __name__ == "__main__":
    main()
