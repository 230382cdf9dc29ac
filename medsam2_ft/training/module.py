"""The LightningModule that fine-tunes a PromptedSegmenter: one `_step`, losses exact over ranks, validation DSC as
benchmarked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from medsam2_ft.data.batch import ClipBatch
from medsam2_ft.errors import UserError
from medsam2_ft.losses import LossWeights, segmentation_losses
from medsam2_ft.metrics import MeanDSC
from medsam2_ft.modeling.clips import track_clips
from medsam2_ft.modeling.segmenter import Decoded, PromptedSegmenter, resize_logits
from medsam2_ft.modeling.weights import META_KEY
from medsam2_ft.training.optim import OptimiserSettings, build_optimiser
from medsam2_ft.training.targets import TargetResize, resize_masks


class FineTuner(L.LightningModule):
    """Fine-tune SAM2 on clips with box prompts.

    Args:
        segmenter: the network, its trainable parts already chosen.
        losses: weights of the loss terms.
        optim: rates, decay, schedule.
        loss_stride: model pixels per pixel of the grid that the loss is taken on: 4 is the decoder's own, 1 the input's.
        target_resize: how native masks come onto that grid.
        meta: what the exported checkpoint says of itself.
        given_masks: share of steps on clips whose first slice is prompted with the true masks instead of with boxes.
        seed: dropout on step k draws from (seed, k, rank), so that a resumed run draws what the straight one would.
    """

    def __init__(
        self,
        segmenter: PromptedSegmenter,
        *,
        losses: LossWeights,
        optim: OptimiserSettings,
        loss_stride: int = 4,
        target_resize: TargetResize = "area",
        given_masks: float = 0.5,
        meta: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.given_masks, self._given_masks = given_masks, False
        self.segmenter = segmenter
        self.losses, self.optim = losses, optim
        self.loss_side, self.target_resize = segmenter.image_size // loss_stride, target_resize
        self.meta, self.seed = meta or {}, seed

    def setup(self, stage: str) -> None:
        """Make the metric for the regions of the data, the same on all ranks."""
        self.val_dsc = MeanDSC(self.trainer.datamodule.regions)  # type: ignore[attr-defined]

    def forward(self, batch: ClipBatch, *, given_masks: bool = False) -> Decoded:
        """Answers for all objects of a batch on all its slices, slice after slice (T x N); one encoder pass a slice.

        Args:
            batch: clips of T slices; T = 1 takes the image path, more take SAM2's memory.
            given_masks: prompt the first slice with the true masks, as propagation does, instead of with the boxes.
        """
        segmenter, index = self.segmenter, batch.image_index_N
        features = [segmenter.encode(segmenter.normalise(batch.frame(t))) for t in range(batch.num_slices)]
        points = segmenter.box_points(batch.boxes_N4, batch.sizes_hw_N2)
        if batch.num_slices == 1:
            return segmenter.decode(features[0], image_index_N=index, points=points)
        masks = None
        if given_masks:
            masks = (resize_masks(batch.masks_at(0), segmenter.image_size)[:, None] >= 0.5).float()
        return Decoded.cat(track_clips(segmenter, features, image_index_N=index, points=points, masks_N1SS=masks))

    def _step(self, batch: ClipBatch, stage: str) -> tuple[Tensor, Decoded]:
        """The loss summed over the batch's objects, and what the decoder answered."""
        decoded = self(batch, given_masks=stage == "train" and self._given_masks)
        logits = decoded.logits_N1hw
        if logits.shape[-1] != self.loss_side:
            logits = F.interpolate(logits, (self.loss_side, self.loss_side), mode="bilinear", align_corners=False)
        terms = segmentation_losses(
            logits[:, 0],
            self._targets(batch, self.loss_side),
            decoded.iou_N,
            decoded.object_score_N,
            self.losses,
            known_N=batch.labelled_N,
        )
        count = batch.num_objects * batch.num_slices
        for name, term in terms.items():
            self.log(
                f"{stage}/{name}", term.detach() / count, batch_size=count, sync_dist=True, on_step=False, on_epoch=True
            )
        return terms["loss"], decoded

    def _targets(self, batch: ClipBatch, side: int) -> Tensor:
        """True masks of all objects on all slices, slice after slice: (T x N, side, side)."""
        return torch.cat(
            [resize_masks(batch.masks_at(t), side, how=self.target_resize) for t in range(batch.num_slices)]
        )

    def _mean_count(self, count: int) -> Tensor | int:
        """Objects a rank, on average over ranks: DDP averages gradients, so sums divided by this give the single-process ones."""
        if self.trainer.world_size == 1:
            return count
        total = torch.tensor(float(count), device=self.device)
        torch.distributed.all_reduce(total)
        return total / self.trainer.world_size

    def on_train_batch_start(self, batch: ClipBatch, batch_idx: int) -> None:
        """Tie the step's randomness to its number; what decides which weights take part is the same on all ranks."""
        torch.manual_seed(hash((self.seed, self.current_epoch, batch_idx, self.global_rank)) % 2**63)
        draw = np.random.default_rng((self.seed, self.current_epoch, batch_idx)).random()
        self._given_masks = bool(draw < self.given_masks)

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        """Loss of one batch; the progress bar shows it beside the DSC of the training objects at low resolution."""
        total, decoded = self._step(batch, "train")
        loss = total / self._mean_count(batch.num_objects * batch.num_slices)
        self._check_finite(loss, batch)
        if batch.num_slices > 1:
            # A prompt by mask leaves other weights out than a prompt by box: a zero keeps all of them in DDP's reduction.
            loss = loss + 0.0 * torch.stack([p.sum() for p in self.segmenter.parameters() if p.requires_grad]).sum()
        self.log("loss", loss.detach(), prog_bar=True, logger=False, batch_size=batch.num_objects)
        self.log("dsc", self._batch_dsc(batch, decoded), prog_bar=True, logger=False, batch_size=batch.num_objects)
        return loss

    def _check_finite(self, loss: Tensor, batch: ClipBatch) -> None:
        """Stop all ranks together when one rank's loss is no number, and keep the batch that caused it."""
        bad = (~torch.isfinite(loss.detach())).float()
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX)
        if bad:
            path = Path(self.trainer.default_root_dir) / f"nonfinite_rank{self.global_rank}.pt"
            if not torch.isfinite(loss):
                torch.save(vars(batch), path)
            raise UserError(
                f"the loss is {loss.item()} at step {self.global_step} on {', '.join(batch.names)}; the batch is kept in {path}; "
                "lower optim.lr or use trainer.precision=32-true, and resume from last.ckpt"
            )

    @torch.no_grad()
    def _batch_dsc(self, batch: ClipBatch, decoded: Decoded) -> Tensor:
        logits = decoded.logits_N1hw[:, 0]
        truth = self._targets(batch, logits.shape[-1]) >= 0.5
        pred = logits > 0
        overlap, total = (pred & truth).flatten(1).sum(1), pred.flatten(1).sum(1) + truth.flatten(1).sum(1)
        return (2 * overlap.sum() / total.sum().clamp(min=1)).float()

    def validation_step(self, batch: ClipBatch, batch_idx: int) -> None:
        """DSC of every object at native size over its whole clip, by the code that the benchmark scores with."""
        _, decoded = self._step(batch, "val")
        logits_TN1hw = decoded.logits_N1hw.view(batch.num_slices, batch.num_objects, *decoded.logits_N1hw.shape[1:])
        if batch.num_slices > 1:  # tracking shows no mask where the object is called absent
            absent = decoded.object_score_N.view(batch.num_slices, -1, 1, 1, 1) <= 0
            logits_TN1hw = logits_TN1hw.masked_fill(absent, -1.0)
        first = 0
        for truth, known in zip(batch.masks, batch.labelled_BT, strict=True):
            size_hw = (truth.shape[-2], truth.shape[-1])
            for i in range(len(truth)):
                pred = resize_logits(logits_TN1hw[known, first + i], size_hw) > 0
                self.val_dsc.update(pred.cpu().numpy(), truth[i, known].cpu().numpy(), region=batch.regions[first + i])
            first += len(truth)

    def on_validation_epoch_end(self) -> None:
        """Log the mean DSC over all validation objects of all ranks, and each region's."""
        scores = self.val_dsc.compute()
        self.val_dsc.reset()
        self.log("val/dsc", scores.pop("mean"), prog_bar=True, rank_zero_only=False)
        self.log_dict({f"val/dsc_{region}": score for region, score in scores.items()})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW and its schedule, stepped once an optimiser step."""
        total_steps = int(self.trainer.estimated_stepping_batches)
        optimiser, schedule = build_optimiser(self.segmenter, self.optim, total_steps=total_steps)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let `export RUN/last.ckpt` know what the weights are."""
        checkpoint[META_KEY] = self.meta
