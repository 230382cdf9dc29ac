"""AdamW with separate rates for encoder and decoder, no decay on norms and biases, warm-up and cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from medsam2_ft.errors import ConfigError


@dataclass(frozen=True)
class OptimiserSettings:
    """How weights are updated.

    Attributes:
        lr: of the decoder and everything else but the encoder.
        encoder_lr: of the image encoder; None for the same.
        weight_decay: on matrices and kernels; norms, biases and embeddings of one dimension have none unless `decay_all`.
        decay_all: decay every weight, as the paper's authors do.
        schedule: `cosine` falls to `final_ratio` of the rate, `constant` stays.
        warmup: share of all steps over which the rate rises from zero.
        final_ratio: of the rate, at the end of the cosine.
        betas: of AdamW.
    """

    lr: float = 1e-4
    encoder_lr: float | None = None
    weight_decay: float = 0.01
    decay_all: bool = False
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: float = 0.05
    final_ratio: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if self.lr <= 0 or (self.encoder_lr is not None and self.encoder_lr <= 0):
            raise ConfigError(f"optim.lr={self.lr} and optim.encoder_lr={self.encoder_lr} must be above 0")
        if self.schedule not in ("cosine", "constant"):
            raise ConfigError(f"optim.schedule='{self.schedule}' is neither cosine nor constant")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"optim.warmup={self.warmup} must be a share of all steps, from 0 to below 1")


def parameter_groups(model: nn.Module, settings: OptimiserSettings) -> list[dict[str, object]]:
    """Trainable parameters by rate and decay, empty groups left out; names follow the two."""
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = "encoder" if "image_encoder." in name else "decoder"
            groups.setdefault((part, settings.decay_all or parameter.ndim > 1), []).append(parameter)
    rates = {"encoder": settings.encoder_lr or settings.lr, "decoder": settings.lr}
    return [
        {
            "params": parameters,
            "lr": rates[part],
            "weight_decay": settings.weight_decay if decayed else 0.0,
            "name": part if decayed else f"{part}_no_decay",
        }
        for (part, decayed), parameters in groups.items()
    ]


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
