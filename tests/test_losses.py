"""Losses: the paper's formula, soft targets, empty objects."""

import sys
from types import SimpleNamespace

import pytest
import torch
from monai.losses import DiceLoss
from torch.nn import functional as F

from medsam2_ft.losses import LossWeights, best_masks, dice_loss, focal_loss, iou_loss, segmentation_losses


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


def test_of_several_masks_the_best_is_trained_and_every_estimate(pair):
    _, targets = pair
    torch.manual_seed(1)
    logits, iou = torch.randn(6, 3, 32, 32, requires_grad=True), torch.rand(6, 3, requires_grad=True)
    weights = LossWeights(dice=1, bce=0, focal=20, iou=1)
    chosen = best_masks(logits, targets, weights)
    each = torch.stack([20 * focal_loss(x, targets) + dice_loss(x, targets) for x in logits.unbind(1)], 1)
    assert torch.equal(chosen, each.argmin(1))
    terms = segmentation_losses(logits, targets, iou, torch.zeros(6), weights)
    torch.testing.assert_close(terms["focal"] + terms["dice"], each.amin(1).sum())
    terms["loss"].backward()
    reached = logits.grad.flatten(2).abs().sum(2) > 0
    assert torch.equal(reached, torch.nn.functional.one_hot(chosen, 3).bool())
    assert (iou.grad.abs() > 0).all()


def test_focal_and_the_choice_among_masks_are_metas(monkeypatch):
    """Beside SAM2's own training code, which its package brings; its Dice has other smoothing, so it is left out."""
    monkeypatch.setitem(sys.modules, "training.trainer", SimpleNamespace(CORE_LOSS_KEY="core_loss"))  # needs tensordict
    theirs = pytest.importorskip("training.loss_fns", reason="this sam2 comes without its training package")
    torch.manual_seed(2)
    logits, iou, score = torch.randn(4, 3, 16, 16), torch.rand(4, 3), torch.randn(4, 1)
    targets = (torch.rand(4, 16, 16) > 0.6).float()
    targets[3] = 0
    meta = theirs.MultiStepMultiMasksAndIous(
        {"loss_mask": 20, "loss_dice": 0, "loss_iou": 1, "loss_class": 1},
        supervise_all_iou=True, iou_use_l1_loss=True, pred_obj_scores=True,
    )  # fmt: skip
    outputs = {
        "multistep_pred_multimasks_high_res": [logits], "multistep_pred_ious": [iou], "multistep_object_score_logits": [score],
    }  # fmt: skip
    expected = meta([outputs], targets[None])["core_loss"]
    weights = LossWeights(dice=0, bce=0, focal=20, iou=1, object_score=1)
    ours = segmentation_losses(logits, targets, iou, score[:, 0], weights)["loss"] / 4
    torch.testing.assert_close(ours, expected)
