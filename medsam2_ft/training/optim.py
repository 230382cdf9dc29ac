"""AdamW with separate rates for encoder, decoder and memory, lower ones towards the image if asked, no decay on norms and
biases, warm-up and cosine."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from medsam2_ft.errors import ConfigError
from medsam2_ft.modeling.adapt import MEMORY

SELDOM_REACHED = re.compile(
    r"sam_prompt_encoder\.(point_embeddings|not_a_point_embed|no_mask_embed|mask_downscaling)|iou_prediction_head\.layers\.2"
)
"""Weights with rows of their own for a kind of prompt or a mask token: a step that shows neither leaves them a zero gradient, and
decay alone would shrink what nothing supervises."""


@dataclass(frozen=True)
class OptimiserSettings:
    """How weights are updated.

    Attributes:
        lr: of the decoder and everything that has no rate of its own.
        encoder_lr: of the image encoder; None for the same.
        memory_lr: of memory attention and memory encoder; None for the same.
        layer_decay: factor on the encoder's rate from one trunk block to the one before it, as in fine-tuning MAE (He 2022); the
            patch embedding is one more below the first block. None keeps one rate; SAM2's own training has 0.9.
        weight_decay: on matrices and kernels; norms, biases, embeddings of one dimension and `SELDOM_REACHED` have none unless
            `decay_all`.
        decay_all: decay every weight, as the paper's authors do.
        schedule: `cosine` falls to `final_ratio` of the rate, `constant` stays.
        warmup: share of all steps over which the rate rises from zero.
        final_ratio: of the rate, at the end of the cosine.
        betas: of AdamW.
    """

    lr: float = 1e-4
    encoder_lr: float | None = None
    memory_lr: float | None = None
    layer_decay: float | None = None
    weight_decay: float = 0.01
    decay_all: bool = False
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: float = 0.05
    final_ratio: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        for name in ("lr", "encoder_lr", "memory_lr"):
            rate = getattr(self, name)
            if rate is not None and rate <= 0:
                raise ConfigError(f"optim.{name}={rate} must be above 0")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ConfigError(f"optim.layer_decay={self.layer_decay} must be above 0 and at most 1, or null for none")
        if self.schedule not in ("cosine", "constant"):
            raise ConfigError(f"optim.schedule='{self.schedule}' is neither cosine nor constant")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"optim.warmup={self.warmup} must be a share of all steps, from 0 to below 1")


def parameter_groups(model: nn.Module, settings: OptimiserSettings) -> list[dict[str, object]]:
    """Trainable parameters by rate and decay, empty groups left out; names follow them, and the block under layer decay."""
    depth = 1 + max((block for name, _ in model.named_parameters() if (block := _block(name)) is not None), default=0)
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    rates: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part, rate = "decoder", settings.lr
            if "image_encoder." in name:
                part, rate = "encoder", settings.encoder_lr or settings.lr
                block = _block(name)
                if settings.layer_decay is not None and block is not None:
                    part = "encoder_patch_embed" if block < 0 else f"encoder_block{block}"
                    rate *= settings.layer_decay ** (depth - block)
            elif any(f"sam2.{memory}" in name for memory in MEMORY):
                part, rate = "memory", settings.memory_lr or settings.lr
            rates[part] = rate
            decayed = settings.decay_all or (parameter.ndim > 1 and not SELDOM_REACHED.search(name))
            groups.setdefault((part, decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": rates[part],
            "weight_decay": settings.weight_decay if decayed else 0.0,
            "name": part if decayed else f"{part}_no_decay",
        }
        for (part, decayed), parameters in groups.items()
    ]


def _block(name: str) -> int | None:
    """Which trunk block a parameter belongs to; -1 for what comes before the first, None for what is no part of the trunk."""
    found = re.search(r"image_encoder\.trunk\.(?:blocks\.(\d+)\.)?", name)
    return None if found is None else int(found[1] or -1)


def build_optimiser(model: nn.Module, settings: OptimiserSettings, *, total_steps: int) -> tuple[AdamW, LambdaLR]:
    """AdamW over the trainable weights, fused where the device can, and its schedule by optimiser step."""
    groups = parameter_groups(model, settings)
    fused = all(p.device.type in ("cuda", "cpu") for group in groups for p in group["params"])  # type: ignore[attr-defined]
    optimiser = AdamW(groups, lr=settings.lr, betas=settings.betas, fused=fused)
    warmup_steps = round(settings.warmup * total_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if settings.schedule == "constant":
            return 1.0
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return settings.final_ratio + (1 - settings.final_ratio) * (1 + math.cos(math.pi * min(1.0, progress))) / 2

    return optimiser, LambdaLR(optimiser, factor)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) weights."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable, sum(p.numel() for p in model.parameters())
