"""Does a step fit the device? Measured on one image before training, scaled to the batch.

Bytes are of the tensors themselves: what allocators round up and kernels use for themselves comes on top.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medsam2_ft.data.batch import ClipBatch, collate
from medsam2_ft.errors import ConfigError
from medsam2_ft.modeling.recompute import checkpoint_trunk
from medsam2_ft.training.host_memory import free_host_memory
from medsam2_ft.training.module import FineTuner

log = logging.getLogger(__name__)

RESERVE = 0.1
"""Share of the free memory that is left to what tensors do not count: rounding, fragments, kernels' own."""
NUM_SAMPLES = 8
"""Training samples looked at for the one with the most objects."""
BY_ROUNDS = ("point", "box", "mask", "box_clicks")
"""Kinds of prompts, those with more decoder passes a step last."""


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors made under it that live at once.

    Attributes:
        live: now.
        peak: at most, since the last assignment to it.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device_type, self.live, self.peak = device.type, 0, 0
        self._seen: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count what it made."""
        for tensor in self._tensors((args, kwargs)):
            self._see(tensor, size=0)  # was there before
        result = func(*args, **(kwargs or {}))
        for tensor in self._tensors(result):
            self._see(tensor, size=tensor.untyped_storage().nbytes())
        return result

    def _tensors(self, tree: Any) -> Iterator[Tensor]:
        return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.device.type == self.device_type)

    def _see(self, tensor: Tensor, *, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._seen:
            self._seen[key] = weakref.finalize(storage, self._forget, key, size)
            self.live += size
            self.peak = max(self.peak, self.live)

    def _forget(self, key: int, size: int) -> None:
        del self._seen[key]
        self.live -= size


@dataclass(frozen=True)
class StepMemory:
    """What a training step holds on its device, in bytes.

    Attributes:
        weights: of the network, on the device already.
        trained: of the part that trains; gradients take as much, AdamW's two averages twice as much.
        per_image: activations of one image with its objects, at most.
    """

    weights: int
    trained: int
    per_image: int

    def beside_weights(self, batch_size: int) -> int:
        """What comes on top of the weights."""
        return 3 * self.trained + batch_size * self.per_image

    def largest_batch(self, free: int) -> int:
        """Images that fit into `free` bytes beside gradients and averages; 0 if not one."""
        return max(0, (free - 3 * self.trained) // self.per_image)


def measure_step(module: FineTuner, batch: ClipBatch, context: AbstractContextManager[Any]) -> StepMemory:
    """Forward and backward of one batch, as if it were one image; no gradient is kept and no generator moves on.

    Args:
        module: on its device.
        batch: one sample, on the same device.
        context: of the forward pass: autocast.
    """
    device = module.device
    trained = [p for p in module.parameters() if p.requires_grad]
    trained_bytes = sum(p.nbytes for p in trained)
    kind = max(module.prompts.active, key=BY_ROUNDS.index)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), PeakMemory(device) as memory:
        with context:
            loss = module.losses_of(batch, kind=kind)[0]["loss"]
        forward, memory.peak = memory.peak, memory.live
        # Not backward(): DDP would take its gradients for those of a step.
        torch.autograd.grad(loss, trained, allow_unused=True)
    per_image = max(forward, memory.peak - trained_bytes)
    return StepMemory(sum(p.nbytes for p in module.parameters()), trained_bytes, per_image)


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process may still take on a device, or None where nobody tells."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    return free_host_memory() if device.type == "cpu" else None


class FitCheck(Callback):
    """Say what a step will hold, and refuse to start what does not fit, naming the nearest settings that do."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure one image, scale to the batch, compare with what is free."""
        assert isinstance(pl_module, FineTuner)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        device, free = pl_module.device, free_memory(pl_module.device)
        if free is not None and device.type == "cpu":
            free //= trainer.num_devices  # ranks share the machine
        batch = _fullest_sample(data.train_set).to(device)
        try:
            step = measure_step(pl_module, batch, trainer.precision_plugin.forward_context())
        except torch.OutOfMemoryError:
            raise ConfigError(
                f"not even one image of {pl_module.segmenter.image_size} px fits the free memory of {device}; "
                "choose a smaller model.image_size or finetune=decoder, or trainer.check_memory=false to try regardless"
            ) from None
        needed = step.beside_weights(data.batch_size)
        usable = None if free is None else int((1 - RESERVE) * free)
        log.log(
            logging.INFO if trainer.is_global_zero else logging.DEBUG,
            "a step holds about %.2f GB: weights %.2f, gradients and AdamW %.2f, %d images of %.2f each; %s free on %s",
            *(amount / 1e9 for amount in (step.weights + needed, step.weights, 3 * step.trained)),
            data.batch_size,
            step.per_image / 1e9,
            "unknown" if free is None else f"{free / 1e9:.1f} GB",
            device,
        )
        fits = usable is None or needed <= usable
        if trainer.strategy.reduce_boolean_decision(fits, all=True):
            return
        if usable is None or fits:
            raise ConfigError(f"a step of another rank does not fit its device; {device} of this rank could hold it")
        ways = self._ways_out(pl_module, step, batch, trainer, free=usable)
        raise ConfigError(
            f"a step needs about {needed / 1e9:.1f} GB beside the weights, and {usable / 1e9:.1f} GB may be used on {device}; "
            f"{ways}; trainer.check_memory=false starts regardless"
        )

    def _ways_out(self, module: FineTuner, step: StepMemory, batch: ClipBatch, trainer: L.Trainer, *, free: int) -> str:
        """Settings that fit, the nearest first, by the same measure."""
        batch_size: int = trainer.datamodule.batch_size  # type: ignore[attr-defined]
        ways = []
        encoder_trains = any(p.requires_grad for p in module.segmenter.sam2.image_encoder.parameters())
        is_checkpointed = "forward" in vars(module.segmenter.sam2.image_encoder.trunk.blocks[0])
        plans = [("", step)]
        if encoder_trains and not is_checkpointed:
            checkpoint_trunk(module.segmenter.sam2)
            lean = measure_step(module, batch, trainer.precision_plugin.forward_context())
            plans.append(("trainer.activation_checkpointing=true", lean))
        for setting, plan in plans:
            if fitting := min(batch_size, plan.largest_batch(free)):
                parts = [setting]
                if fitting < batch_size:
                    windows = math.ceil(batch_size * trainer.accumulate_grad_batches / fitting)
                    parts.append(f"data.batch_size={fitting} trainer.accumulate_grad_batches={windows}")
                ways.append(f"{' '.join(filter(None, parts))} ({plan.beside_weights(fitting) / 1e9:.1f} GB)")
        if ways:
            return "what fits: " + ", or ".join(ways)
        room = max(0.0, free - 3 * step.trained) / plans[-1][1].per_image
        side = int(module.segmenter.image_size * math.sqrt(room)) // 32 * 32
        smaller = f"model.image_size={side}" if side >= 64 else "a smaller model"
        return f"not one image fits: try {smaller}" + (", or finetune=decoder" if encoder_trains else "")


def _fullest_sample(dataset: Any) -> ClipBatch:
    """The one with the most objects among samples spread over the dataset."""
    stride = max(1, len(dataset) // NUM_SAMPLES)
    samples = [dataset[0, index] for index in range(0, len(dataset), stride)[:NUM_SAMPLES]]
    return collate([max(samples, key=lambda clip: len(clip.boxes_N4))])
