"""Segmentation losses, one value per object, so that the caller decides how objects are averaged over ranks.

Logits and targets are (N, h, w); targets may be soft (the share of each cell that the object covers).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

DICE_SMOOTH = 1e-5
"""Added to numerator and denominator; MONAI's default, kept for parity with the paper's authors."""


def dice_loss(logits_Nhw: Tensor, targets_Nhw: Tensor) -> Tensor:
    """Soft Dice loss with squared terms in the denominator (Milletari 2016), (N,), always in float32."""
    probabilities, targets = logits_Nhw.float().sigmoid().flatten(1), targets_Nhw.float().flatten(1)
    overlap = (probabilities * targets).sum(1)
    size = probabilities.square().sum(1) + targets.square().sum(1)
    return 1 - (2 * overlap + DICE_SMOOTH) / (size + DICE_SMOOTH)


def bce_loss(logits_Nhw: Tensor, targets_Nhw: Tensor) -> Tensor:
    """Mean binary cross-entropy of each object, (N,)."""
    loss = F.binary_cross_entropy_with_logits(logits_Nhw.float(), targets_Nhw.float(), reduction="none")
    return loss.flatten(1).mean(1)


def focal_loss(logits_Nhw: Tensor, targets_Nhw: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss (Lin 2017), mean over pixels, (N,)."""
    logits, targets = logits_Nhw.float(), targets_Nhw.float()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    probabilities = logits.sigmoid()
    miss = probabilities * (1 - targets) + (1 - probabilities) * targets
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return (weight * miss.pow(gamma) * cross_entropy).flatten(1).mean(1)


def iou_loss(iou_N: Tensor, logits_Nhw: Tensor, targets_Nhw: Tensor) -> Tensor:
    """Absolute error of the decoder's own IoU estimate against the IoU of its thresholded mask, (N,)."""
    with torch.no_grad():
        predicted, truth = logits_Nhw.flatten(1) > 0, targets_Nhw.flatten(1) >= 0.5
        union = (predicted | truth).sum(1)
        actual = (predicted & truth).sum(1) / union.clamp(min=1)
    return (iou_N.float() - actual).abs()


def object_score_loss(object_score_N: Tensor, targets_Nhw: Tensor) -> Tensor:
    """Cross-entropy of "the object is there" against whether the target holds any of it, (N,)."""
    present = (targets_Nhw.flatten(1).amax(1) > 0).float()
    return F.binary_cross_entropy_with_logits(object_score_N.float(), present, reduction="none")


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms; zero leaves a term out. Dice + BCE at 1:1 is the paper's loss.

    Mask terms (dice, bce, focal) count only objects that the target holds: an empty frame has nothing to overlap with and would
    teach the decoder to answer every prompt with nothing. Absence is learned by `object_score`.
    """

    dice: float = 1.0
    bce: float = 1.0
    focal: float = 0.0
    iou: float = 0.0
    object_score: float = 0.0


def segmentation_losses(
    logits_Nhw: Tensor,
    targets_Nhw: Tensor,
    iou_N: Tensor,
    object_score_N: Tensor,
    weights: LossWeights,
    *,
    known_N: Tensor | None = None,
) -> dict[str, Tensor]:
    """Each weighted term summed over the N objects, and their sum under `loss`.

    Divide by the number of objects in the global batch: sums keep the gradient exact when ranks hold different numbers.

    Args:
        logits_Nhw: mask logits.
        targets_Nhw: true masks on the same grid, soft or hard.
        iou_N: the decoder's estimate of its IoU.
        object_score_N: logit that the object is there.
        weights: of the terms.
        known_N: False for objects on slices that nobody annotated, which no term counts; None where all are annotated.
    """
    known = torch.ones_like(object_score_N) if known_N is None else known_N.float()
    present = (targets_Nhw.flatten(1).amax(1) > 0).float() * known
    per_object: dict[str, Callable[[], Tensor]] = {
        "dice": lambda: dice_loss(logits_Nhw, targets_Nhw) * present,
        "bce": lambda: bce_loss(logits_Nhw, targets_Nhw) * present,
        "focal": lambda: focal_loss(logits_Nhw, targets_Nhw) * present,
        "iou": lambda: iou_loss(iou_N, logits_Nhw, targets_Nhw) * present,
        "object_score": lambda: object_score_loss(object_score_N, targets_Nhw) * known,
    }
    terms = {name: getattr(weights, name) * term().sum() for name, term in per_object.items() if getattr(weights, name)}
    terms["loss"] = torch.stack(list(terms.values())).sum() if terms else logits_Nhw.sum() * 0
    return terms
