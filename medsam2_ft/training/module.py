"""The LightningModule that fine-tunes a PromptedSegmenter: one `_step`, losses exact over ranks, validation DSC as
benchmarked."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from medsam2_ft.data.batch import ClipBatch
from medsam2_ft.losses import LossWeights, segmentation_losses
from medsam2_ft.metrics import MeanDSC
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
        meta: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.losses, self.optim = losses, optim
        self.loss_side, self.target_resize = segmenter.image_size // loss_stride, target_resize
        self.meta, self.seed = meta or {}, seed

    def setup(self, stage: str) -> None:
        """Make the metric for the regions of the data, the same on all ranks."""
        self.val_dsc = MeanDSC(self.trainer.datamodule.regions)  # type: ignore[attr-defined]

    def forward(self, batch: ClipBatch) -> Decoded:
        """Logits of all objects of a batch, one encoder pass an image."""
        features = self.segmenter.encode(self.segmenter.normalise(batch.frame(0)))
        points = self.segmenter.box_points(batch.boxes_N4, batch.sizes_hw_N2)
        return self.segmenter.decode(features, image_index_N=batch.image_index_N, points=points)

    def _step(self, batch: ClipBatch, stage: str) -> tuple[Tensor, Decoded]:
        """The loss summed over the batch's objects, and what the decoder answered."""
        decoded = self(batch)
        logits = decoded.logits_N1hw
        if logits.shape[-1] != self.loss_side:
            logits = F.interpolate(logits, (self.loss_side, self.loss_side), mode="bilinear", align_corners=False)
        targets = resize_masks([mask[:, 0] for mask in batch.masks], self.loss_side, how=self.target_resize)
        terms = segmentation_losses(logits[:, 0], targets, decoded.iou_N, decoded.object_score_N, self.losses)
        count = batch.num_objects
        for name, term in terms.items():
            self.log(
                f"{stage}/{name}", term.detach() / count, batch_size=count, sync_dist=True, on_step=False, on_epoch=True
            )
        return terms["loss"], decoded

    def _mean_count(self, count: int) -> Tensor | int:
        """Objects a rank, on average over ranks: DDP averages gradients, so sums divided by this give the single-process ones."""
        if self.trainer.world_size == 1:
            return count
        total = torch.tensor(float(count), device=self.device)
        torch.distributed.all_reduce(total)
        return total / self.trainer.world_size

    def on_train_batch_start(self, batch: ClipBatch, batch_idx: int) -> None:
        """Tie the step's randomness to its number."""
        torch.manual_seed(hash((self.seed, self.current_epoch, batch_idx, self.global_rank)) % 2**63)

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        """Loss of one batch; the progress bar shows it beside the DSC of the training objects at low resolution."""
        total, decoded = self._step(batch, "train")
        loss = total / self._mean_count(batch.num_objects)
        self.log("loss", loss.detach(), prog_bar=True, logger=False, batch_size=batch.num_objects)
        self.log("dsc", self._batch_dsc(batch, decoded), prog_bar=True, logger=False, batch_size=batch.num_objects)
        return loss

    @torch.no_grad()
    def _batch_dsc(self, batch: ClipBatch, decoded: Decoded) -> Tensor:
        logits = decoded.logits_N1hw[:, 0]
        truth = resize_masks([mask[:, 0] for mask in batch.masks], logits.shape[-1]) >= 0.5
        pred = logits > 0
        overlap, total = (pred & truth).flatten(1).sum(1), pred.flatten(1).sum(1) + truth.flatten(1).sum(1)
        return (2 * overlap / total.clamp(min=1)).mean()

    def validation_step(self, batch: ClipBatch, batch_idx: int) -> None:
        """DSC of every object at native size, by the code that the benchmark scores with."""
        _, decoded = self._step(batch, "val")
        first = 0
        for masks in batch.masks:
            truth = masks[:, 0]
            logits = decoded.logits_N1hw[first : first + len(truth)]
            pred = resize_logits(logits, (truth.shape[-2], truth.shape[-1])) > 0
            for i, (p, t) in enumerate(zip(pred.cpu().numpy(), truth.cpu().numpy(), strict=True)):
                self.val_dsc.update(p, t, region=batch.regions[first + i])
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
