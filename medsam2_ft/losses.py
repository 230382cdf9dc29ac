"""Segmentation losses, one value per object, so that the caller decides how objects are averaged over ranks.

Logits and targets are (N, h, w); targets may be soft (the share of each cell that the object covers). Where the decoder answers
with M masks for each object, mask terms count the best of them and the IoU term all, as in SAM2's own training.
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


MASK_TERMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"dice": dice_loss, "bce": bce_loss, "focal": focal_loss}


def mask_terms(logits_Nhw: Tensor, targets_Nhw: Tensor, weights: LossWeights) -> dict[str, Tensor]:
    """The weighted terms that compare masks, (N,) each."""
    used = {name: getattr(weights, name) for name in MASK_TERMS if getattr(weights, name)}
    return {name: weight * MASK_TERMS[name](logits_Nhw, targets_Nhw) for name, weight in used.items()}


@torch.no_grad()
def best_masks(logits_NMhw: Tensor, targets_Nhw: Tensor, weights: LossWeights) -> Tensor:
    """Which of its M masks has the lowest weighted sum of mask terms, for each object: (N,)."""
    losses = [
        sum(mask_terms(logits, targets_Nhw, weights).values(), logits.new_zeros(len(logits)))
        for logits in logits_NMhw.unbind(1)
    ]
    return torch.stack(losses, 1).argmin(1)


def segmentation_losses(
    logits_NMhw: Tensor,
    targets_Nhw: Tensor,
    iou_NM: Tensor,
    object_score_N: Tensor,
    weights: LossWeights,
    *,
    known_N: Tensor | None = None,
) -> dict[str, Tensor]:
    """Each weighted term summed over the N objects, and their sum under `loss`.

    Divide by the number of objects in the global batch: sums keep the gradient exact when ranks hold different numbers.

    Args:
        logits_NMhw: logits of M masks an object, or (N, h, w) of one.
        targets_Nhw: true masks on the same grid, soft or hard.
        iou_NM: the decoder's estimates of their IoU, (N,) for one mask.
        object_score_N: logit that the object is there.
        weights: of the terms.
        known_N: False for objects on slices that nobody annotated, which no term counts; None where all are annotated.
    """
    if logits_NMhw.ndim == 3:
        logits_NMhw, iou_NM = logits_NMhw[:, None], iou_NM[:, None]
    known = torch.ones_like(object_score_N) if known_N is None else known_N.float()
    present = (targets_Nhw.flatten(1).amax(1) > 0).float() * known
    logits_Nhw = logits_NMhw[:, 0]
    if logits_NMhw.shape[1] > 1:
        chosen = best_masks(logits_NMhw, targets_Nhw, weights)
        logits_Nhw = logits_NMhw[torch.arange(len(chosen), device=chosen.device), chosen]
    terms = {name: (term * present).sum() for name, term in mask_terms(logits_Nhw, targets_Nhw, weights).items()}
    if weights.iou:
        pairs = zip(iou_NM.unbind(1), logits_NMhw.unbind(1), strict=True)
        errors = torch.stack([iou_loss(iou_N, logits, targets_Nhw) for iou_N, logits in pairs], 1).mean(1)
        terms["iou"] = weights.iou * (errors * present).sum()
    if weights.object_score:
        terms["object_score"] = weights.object_score * (object_score_loss(object_score_N, targets_Nhw) * known).sum()
    terms["loss"] = torch.stack(list(terms.values())).sum() if terms else logits_NMhw.sum() * 0
    return terms
