"""Losses: the paper's formula, soft targets, empty objects."""

import pytest
import torch
from monai.losses import DiceLoss
from torch.nn import functional as F

from medsam2_ft.losses import LossWeights, dice_loss, iou_loss, segmentation_losses


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return torch.randn(6, 32, 32) * 3, (torch.rand(6, 32, 32) > 0.7).float()


def test_dice_and_bce_are_the_papers(pair):
    logits, targets = pair
    terms = segmentation_losses(logits, targets, torch.zeros(6), torch.zeros(6), LossWeights())
    dice = DiceLoss(sigmoid=True, squared_pred=True)(logits[:, None], targets[:, None])
    torch.testing.assert_close(terms["dice"] / 6, dice, atol=1e-5, rtol=0)
    expected = dice + F.binary_cross_entropy_with_logits(logits, targets)
    torch.testing.assert_close(terms["loss"] / 6, expected, atol=1e-5, rtol=0)


def test_dice_stays_in_float32_under_bfloat16(pair):
    logits, targets = pair
    half = dice_loss(logits.bfloat16(), targets)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, dice_loss(logits, targets), atol=5e-3, rtol=0)


def test_objects_that_are_not_there_do_not_poison_the_mask_terms(pair):
    logits, targets = pair
    targets = targets.clone()
    targets[3:] = 0
    weights = LossWeights(dice=1, bce=1, focal=1, iou=1, object_score=1)
    both = segmentation_losses(logits, targets, torch.zeros(6), torch.zeros(6), weights)
    only = segmentation_losses(logits[:3], targets[:3], torch.zeros(3), torch.zeros(3), weights)
    for name in ("dice", "bce", "focal", "iou"):
        torch.testing.assert_close(both[name], only[name])
    assert both["object_score"] > only["object_score"]
    logits.requires_grad_()
    segmentation_losses(logits, targets, torch.zeros(6), torch.zeros(6), LossWeights())["loss"].backward()
    assert (logits.grad[3:] == 0).all()
    assert torch.isfinite(logits.grad).all()


def test_iou_head_learns_the_iou_of_the_thresholded_mask():
    logits = torch.full((1, 4, 4), -1.0)
    logits[0, :2] = 1
    targets = torch.zeros(1, 4, 4)
    targets[0, :4, :2] = 1
    torch.testing.assert_close(iou_loss(torch.tensor([1.0]), logits, targets), torch.tensor([1 - 4 / 12]))
