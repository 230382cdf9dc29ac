"""The training step alone, on a batch that is on the device already: ours beside the reference recipe's, in turns, in one run.

    python -m benchmarks.training_step --model sam2.1_tiny --image-size 512 --batch 2 --steps 3

The reference side follows the published recipe: fp32, one label an image, stock SAM2's forward, resize on the CPU one image at a
time, nearest targets on the quarter grid, MONAI's Dice + BCE, unfused AdamW over encoder and decoder. The two losses are compared
first. Seconds are medians; memory is what weights, gradients, optimiser and activations hold at once. On a GPU the defaults are
1024 px and batch 16, the reference runs with TF32 off and on, and a profile of our step follows.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

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
from medsam2_ft.modeling.recompute import checkpoint_trunk
from medsam2_ft.modeling.segmenter import IMAGE_MEAN, IMAGE_STD, Features, PromptedSegmenter
from medsam2_ft.modeling.zoo import zoo_entry
from medsam2_ft.prompts.sampling import tight_boxes
from medsam2_ft.training.embeddings import encode_slice, high_res_is_frozen
from medsam2_ft.training.memory import PeakMemory
from medsam2_ft.training.optim import OptimiserSettings, build_optimiser
from medsam2_ft.training.targets import resize_masks

NUM_LABELS = 5
FULL = ["encoder", "decoder", "no_memory"]
GFLOP_PER_IMAGE_1024 = 929
"""Of a training step of SAM2.1-T, counted by torch.utils.flop_counter."""
PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "RTX 4090": 165}
"""Dense bfloat16, from the makers' data sheets."""


@dataclass
class Side:
    """One competitor.

    Attributes:
        name: in the table.
        labels: masks an image.
        segmenter: its own network.
        optimiser: over what trains.
        step: one training step.
        tf32: whether float32 products may use TF32.
        seconds: of each timed step.
        gigabytes: held at once.
    """

    name: str
    labels: int
    segmenter: PromptedSegmenter
    optimiser: torch.optim.Optimizer
    step: Callable[[], Tensor]
    tf32: bool
    seconds: list[float]
    gigabytes: float = 0.0

    def run(self) -> float:
        """Seconds of one step."""
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = self.tf32
        device = self.segmenter.device
        start = now(device)
        self.step()
        return now(device) - start

    def measure_memory(self) -> None:
        """What is held already, and the peak of one more step."""
        self.optimiser.zero_grad()
        averages = [t for state in self.optimiser.state.values() for t in state.values() if isinstance(t, Tensor)]
        held = sum(t.nbytes for t in (*self.segmenter.parameters(), *averages))
        device = self.segmenter.device
        if device.type == "cuda":
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            self.step()
            peak = torch.cuda.max_memory_allocated(device) - before
        else:
            with PeakMemory(device) as counted:
                self.step()
            peak = counted.peak
        self.gigabytes = (held + peak) / 1e9


def now(device: torch.device) -> float:
    """Seconds: the wall clock's, but this process's own where one CPU thread does all, so that work beside it does not count."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


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


def reference_batch(clips: list[Clip], *, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images (B, 3, S, S), targets (B, 1, S/4, S/4), boxes (B, 4) in model pixels, made on the CPU as the authors do."""
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
    return torch.stack(images), torch.stack(targets), torch.stack(boxes)


def reference_step(
    segmenter: PromptedSegmenter, batch: tuple[Tensor, Tensor, Tensor], optimiser: torch.optim.Optimizer
) -> Tensor:
    """One step of the reference recipe, with stock SAM2's own forward."""
    images, target, boxes = (tensor.to(segmenter.device) for tensor in batch)
    out = segmenter.sam2.forward_image(images)
    high, middle, low = out["backbone_fpn"]
    index = torch.arange(len(images), device=images.device)
    sizes = torch.full((len(images), 2), segmenter.image_size, device=images.device)
    features = Features(low, (high, middle), out["vision_pos_enc"][-1])
    decoded = segmenter.decode(features, image_index_N=index, points=segmenter.box_points(boxes, sizes))
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
        if batch.embeddings is None:
            features = segmenter.encode(segmenter.normalise(batch.frame(0)))
        else:
            features = segmenter.features_of(batch.embeddings)
        points = segmenter.box_points(batch.boxes_N4, batch.sizes_hw_N2)
        decoded = segmenter.decode(features, image_index_N=batch.image_index_N, points=points)
    targets = resize_masks(batch.masks_at(0), segmenter.image_size // 4)
    terms = segmentation_losses(decoded.logits_NMhw, targets, decoded.iou_NM, decoded.object_score_N, LossWeights())
    loss = terms["loss"] / batch.num_objects
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.detach()


def check_loss() -> float:
    """Largest difference between our loss and MONAI's Dice + torch's BCE over random logits."""
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 1, 64, 64) * 3, (torch.rand(6, 64, 64) > 0.7).float()
    ours = segmentation_losses(logits, targets, torch.zeros(6, 1), torch.zeros(6), LossWeights())["loss"] / 6
    theirs = DiceLoss(sigmoid=True, squared_pred=True)(logits, targets[:, None])
    theirs = theirs + F.binary_cross_entropy_with_logits(logits[:, 0], targets)
    return float((ours - theirs).abs())


def build_network(args: argparse.Namespace, parts: list[str], *, cached: bool = False) -> PromptedSegmenter:
    """Random weights, the same each time."""
    torch.manual_seed(0)
    segmenter = PromptedSegmenter(zoo_entry(args.model).spec.resized(args.image_size)).to(args.device).train()
    trainable_parts(segmenter.sam2, parts, losses=LossWeights(), cached=cached)
    return segmenter


def build_side(
    name: str, make_batch: Callable[[PromptedSegmenter], ClipBatch | list[Clip]], args: argparse.Namespace,
    *, parts: list[str], cached: bool = False, checkpointed: bool = False, tf32: bool = True,
) -> Side:  # fmt: skip
    """A network with random weights, its optimiser and its step; a list of clips makes it the reference."""
    segmenter = build_network(args, parts, cached=cached)
    if checkpointed:
        checkpoint_trunk(segmenter.sam2)
    data = make_batch(segmenter)
    if isinstance(data, ClipBatch):
        ours, _ = build_optimiser(segmenter, OptimiserSettings(), total_steps=100)
        labels = data.num_objects // len(data.images)
        return Side(name, labels, segmenter, ours, lambda: our_step(segmenter, data, ours, args.precision), tf32, [])
    theirs = torch.optim.AdamW([p for p in segmenter.parameters() if p.requires_grad], lr=6e-5, fused=False)
    batch = reference_batch(data, side=args.image_size)
    return Side(name, 1, segmenter, theirs, lambda: reference_step(segmenter, batch, theirs), tf32, [])


@torch.no_grad()
def with_embeddings(segmenter: PromptedSegmenter, batch: ClipBatch) -> ClipBatch:
    """The batch with its images encoded, as the cache hands them out."""
    projected = high_res_is_frozen(segmenter)
    rows = [encode_slice(segmenter, image, projected=projected) for image in batch.frame(0)]
    return replace(batch, embeddings=tuple(torch.cat(level) for level in zip(*rows, strict=True)))


def build_sides(args: argparse.Namespace) -> list[Side]:
    """Reference first."""
    clips = make_clips(args.batch, size=args.image_size)
    five = collate(clips).to(args.device)
    one = collate([replace(c, masks=c.masks[:1], boxes_N4=c.boxes_N4[:1], regions=c.regions[:1]) for c in clips])
    one, precision, parts = one.to(args.device), args.precision, ["encoder", "decoder"]
    decoder = ["decoder", "no_memory"]
    sides = []
    if args.device.type == "cuda":
        sides.append(build_side("reference, fp32, TF32 off, 1 label", lambda _: clips, args, parts=parts, tf32=False))
        sides.append(build_side("reference, fp32, TF32 on, 1 label", lambda _: clips, args, parts=parts))
    else:
        sides.append(build_side("reference, fp32, 1 label", lambda _: clips, args, parts=parts))
    return [
        *sides,
        build_side(f"ours, {precision}, 1 label", lambda _: one, args, parts=FULL),
        build_side(f"ours, {precision}, 5 labels", lambda _: five, args, parts=FULL),
        build_side("  with activation checkpointing", lambda _: five, args, parts=FULL, checkpointed=True),
        build_side("  decoder, encoder run", lambda _: five, args, parts=decoder),
        build_side(
            "  decoder, cached embeddings", lambda net: with_embeddings(net, five), args, parts=decoder, cached=True
        ),
        build_side(
            "ours, 1 label, decoder, cached", lambda net: with_embeddings(net, one), args, parts=decoder, cached=True
        ),
    ]


def print_table(sides: list[Side], args: argparse.Namespace) -> None:
    """Rates against the first side's."""
    batch, base = args.batch, float(np.median(sides[0].seconds))
    print("| step on a resident batch | s | images/s | ratio | masks/s | ratio | GB |\n|---|---|---|---|---|---|---|")
    for side in sides:
        seconds = float(np.median(side.seconds))
        rates = f"{batch / seconds:.2f} | {base / seconds:.2f} | {side.labels * batch / seconds:.2f}"
        print(f"| {side.name} | {seconds:.2f} | {rates} | {side.labels * base / seconds:.2f} | {side.gigabytes:.2f} |")


def print_gpu_notes(side: Side, args: argparse.Namespace) -> None:
    """The share of the device's bf16 peak that a step reaches, and where its time goes."""
    name = torch.cuda.get_device_name(args.device)
    peak = args.peak_tflops or next((value for key, value in PEAK_TFLOPS.items() if key in name), None)
    if peak and args.image_size == 1024 and args.model == "sam2.1_tiny":
        rate = GFLOP_PER_IMAGE_1024 * args.batch / float(np.median(side.seconds)) / 1e3
        print(
            f"\n{name}: {rate:.0f} of {peak} TFLOP/s in bf16, {rate / peak:.0%}; {GFLOP_PER_IMAGE_1024} GFLOP an image"
        )
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        side.run()
    print(profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=15, max_name_column_width=70))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default="sam2.1_tiny")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--device", type=resolve_device, default="auto")
    parser.add_argument("--peak-tflops", type=float, help="of the GPU in bf16, where the script does not know it")
    args = parser.parse_args()
    on_gpu = args.device.type == "cuda"
    args.image_size = args.image_size or (1024 if on_gpu else 512)
    args.batch, args.steps = args.batch or (16 if on_gpu else 1), args.steps or (20 if on_gpu else 3)
    args.precision = "bf16" if has_fast_bf16(args.device) else "fp32"
    print(f"largest difference of the losses: {check_loss():.1e}")
    print(
        f"{args.model} at {args.image_size} px, batch {args.batch}, {args.device}, {torch.get_num_threads()} threads\n"
    )
    sides = build_sides(args)
    for side in sides:
        side.run()
        side.measure_memory()
    for _ in range(args.steps):
        for side in sides:
            side.seconds.append(side.run())
    print_table(sides, args)
    if on_gpu:
        print_gpu_notes(next(side for side in sides if side.name.endswith("5 labels")), args)
    else:
        print("\nno GPU is here: bf16, TF32 and the share of the GPU's peak are left out")


if __name__ == "__main__":
    main()
