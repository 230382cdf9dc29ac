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
from torch.optim import Optimizer

from medsam2_ft.data.batch import ClipBatch
from medsam2_ft.errors import UserError
from medsam2_ft.losses import LossWeights, segmentation_losses
from medsam2_ft.metrics import MeanDSC
from medsam2_ft.modeling.clips import track_clips
from medsam2_ft.modeling.rounds import PromptRounds
from medsam2_ft.modeling.segmenter import Decoded, Features, PromptedSegmenter, resize_logits
from medsam2_ft.modeling.weights import META_KEY
from medsam2_ft.prompts.simulator import GIVEN_MASK, PromptSettings, PromptSimulator
from medsam2_ft.training.optim import OptimiserSettings, build_optimiser
from medsam2_ft.training.targets import TargetResize, resize_masks


class FineTuner(L.LightningModule):
    """Fine-tune SAM2 on clips with simulated prompts.

    Args:
        segmenter: the network, its trainable parts already chosen.
        losses: weights of the loss terms.
        optim: rates, decay, schedule.
        loss_stride: model pixels per pixel of the grid that the loss is taken on: 4 is the decoder's own, 1 the input's.
        target_resize: how native masks come onto that grid.
        prompts: what objects are prompted with; boxes come with the data, clicks are drawn here.
        meta: what the exported checkpoint says of itself.
        given_masks: share of steps on clips whose first slice is prompted with the true masks, as propagation does.
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
        prompts: PromptSettings | None = None,
        given_masks: float = 0.5,
        meta: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.prompts, self.given_masks, self._kind = prompts or PromptSettings(), given_masks, "box"
        self.segmenter = segmenter
        self.losses, self.optim = losses, optim
        self.loss_side, self.target_resize = segmenter.image_size // loss_stride, target_resize
        self.meta, self.seed = meta or {}, seed
        self._window_count = torch.zeros(())

    def setup(self, stage: str) -> None:
        """Make the metric for the regions of the data, the same on all ranks."""
        self.val_dsc = MeanDSC(self.trainer.datamodule.regions)  # type: ignore[attr-defined]

    def forward(self, batch: ClipBatch, *, kind: str = "box") -> list[tuple[int, Decoded]]:
        """Answers for all objects of a batch with the slices they are for, in order; one encoder pass a slice at most.

        Args:
            batch: clips of T slices; T = 1 takes the image path, more take SAM2's memory.
            kind: of prompt on the first slice, which gets an answer each round; one of `prompts.simulator.KINDS` or `GIVEN_MASK`.
        """
        segmenter, index, features = self.segmenter, batch.image_index_N, self._features(batch)
        if kind == GIVEN_MASK:
            masks = (resize_masks(batch.masks_at(0), segmenter.image_size)[:, None] >= 0.5).float()
            return track_clips(segmenter, features, image_index_N=index, masks_N1SS=masks)
        simulator = PromptSimulator(batch.masks_at(0), batch.seeds)
        rounds = PromptRounds(kind, batch.boxes_N4, batch.sizes_hw_N2, simulator, self.prompts.clicks)
        if batch.num_slices > 1:
            return track_clips(segmenter, features, image_index_N=index, rounds=rounds)
        picked = features[0].pick(index)
        embedding = segmenter.without_memory(picked.embedding_BChw)
        return [(0, decoded) for decoded in rounds.decode(segmenter, embedding, picked.high_res)]

    def _features(self, batch: ClipBatch) -> list[Features]:
        """Features of each slice: those that came with the batch, or the encoder's."""
        segmenter = self.segmenter
        if batch.embeddings is not None:
            return [segmenter.features_of(batch.embeddings)]
        return [segmenter.encode(segmenter.normalise(batch.frame(t))) for t in range(batch.num_slices)]

    def losses_of(self, batch: ClipBatch, *, kind: str) -> tuple[dict[str, Tensor], int, list[tuple[int, Decoded]]]:
        """Terms of the loss summed over objects and answers, the number of both, and the last answer on every slice."""
        answers = self(batch, kind=kind)
        last = list(dict(answers).items())
        counted = answers if self.prompts.rounds == "every" else last
        count = batch.num_objects * len(counted)
        targets = [self._targets(batch, t, self.loss_side) for t in range(batch.num_slices)]
        parts = [self._losses(decoded, targets[t], batch.labelled_at(t)) for t, decoded in counted]
        return {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}, count, last

    def _step(self, batch: ClipBatch, stage: str) -> tuple[Tensor, int, list[tuple[int, Decoded]]]:
        """The loss of a batch, logged by its terms, with what `losses_of` says beside it."""
        terms, count, last = self.losses_of(batch, kind=self._kind if stage == "train" else "box")
        for name, term in terms.items():
            mean = term.detach() / max(count, 1)
            self.log(f"{stage}/{name}", mean, batch_size=count, sync_dist=True, on_step=False, on_epoch=True)
        return terms["loss"], count, last

    def _losses(self, decoded: Decoded, targets_Nhw: Tensor, known_N: Tensor) -> dict[str, Tensor]:
        """The terms of one answer, summed over its objects, on the grid of the loss."""
        logits = decoded.logits_NMhw
        if logits.shape[-1] != self.loss_side:
            logits = F.interpolate(logits, (self.loss_side, self.loss_side), mode="bilinear", align_corners=False)
        return segmentation_losses(
            logits, targets_Nhw, decoded.iou_NM, decoded.object_score_N, self.losses, known_N=known_N
        )

    def _targets(self, batch: ClipBatch, t: int, side: int) -> Tensor:
        """True masks of all objects on slice t: (N, side, side)."""
        return resize_masks(batch.masks_at(t), side, how=self.target_resize)

    def _mean_count(self, count: int) -> Tensor:
        """Objects a rank, on average over ranks: DDP averages gradients, so sums divided by this give the single-process ones."""
        total = torch.tensor(float(count), device=self.device)
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(total)
        return total / self.trainer.world_size

    def on_train_batch_start(self, batch: ClipBatch, batch_idx: int) -> None:
        """Tie the step's randomness to its number; what decides which weights take part is the same on all ranks."""
        torch.manual_seed(hash((self.seed, self.current_epoch, batch_idx, self.global_rank)) % 2**63)
        rng = np.random.default_rng((self.seed, self.current_epoch, batch_idx))
        self._kind = self.prompts.draw_kind(rng, given_masks=self.given_masks if batch.num_slices > 1 else 0.0)

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        """Loss of one batch; the progress bar shows it beside the DSC of the training objects at low resolution."""
        total, own_count, answers = self._step(batch, "train")
        count = self._mean_count(own_count)
        loss = total / count.clamp(min=1 / self.trainer.world_size)
        self._check_finite(loss, batch)
        self.log("loss", loss.detach(), prog_bar=True, logger=False, batch_size=batch.num_objects)
        self.log("dsc", self._batch_dsc(batch, answers), prog_bar=True, logger=False, batch_size=batch.num_objects)
        if self.trainer.accumulate_grad_batches > 1:
            self._window_count = self._window_count + count
            loss = total
        if batch.num_slices > 1 or self.prompts.active != {"box"} or not batch.num_objects:
            # Kinds of prompt leave different weights out, and no objects leave out all: a zero keeps them in DDP's reduction.
            loss = loss + 0.0 * torch.stack([p.sum() for p in self.segmenter.parameters() if p.requires_grad]).sum()
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide accumulated gradients by the objects of the whole window, so that they are those of one large batch."""
        num_batches = self.trainer.accumulate_grad_batches
        if num_batches > 1:  # Lightning has divided by their number already
            scale = num_batches / self._window_count.clamp(min=1 / self.trainer.world_size)
            for gradient in [p.grad for p in self.parameters() if p.grad is not None]:
                gradient.mul_(scale)
            self._window_count = torch.zeros(())

    def _check_finite(self, loss: Tensor, batch: ClipBatch) -> None:
        """Stop all ranks together when one rank's loss is no number, and keep the batch that caused it."""
        bad = (~torch.isfinite(loss.detach())).float()
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX)
        if bad:
            what = "the loss of another rank is no number"
            if not torch.isfinite(loss):
                path = Path(self.trainer.default_root_dir) / f"nonfinite_rank{self.global_rank}.pt"
                torch.save(vars(batch), path)
                what = f"the loss is {loss.item()} on {', '.join(batch.names)}; the batch is kept in {path}"
            raise UserError(
                f"step {self.global_step}: {what}; lower optim.lr or use trainer.precision=32-true, and resume from last.ckpt"
            )

    @torch.no_grad()
    def _batch_dsc(self, batch: ClipBatch, answers: list[tuple[int, Decoded]]) -> Tensor:
        side = answers[0][1].logits_NMhw.shape[-1]
        truth = torch.cat([self._targets(batch, t, side) for t, _ in answers]) >= 0.5
        pred = torch.cat([decoded.logits_N1hw[:, 0] for _, decoded in answers]) > 0
        overlap, total = (pred & truth).flatten(1).sum(1), pred.flatten(1).sum(1) + truth.flatten(1).sum(1)
        return (2 * overlap.sum() / total.sum().clamp(min=1)).float()

    def validation_step(self, batch: ClipBatch, batch_idx: int) -> None:
        """DSC of every object at native size over its whole clip, by the code that the benchmark scores with."""
        _, _, answers = self._step(batch, "val")
        logits_TN1hw = torch.stack([decoded.logits_N1hw for _, decoded in answers])
        if batch.num_slices > 1:  # tracking shows no mask where the object is called absent
            absent_TN = torch.stack([decoded.object_score_N for _, decoded in answers]) <= 0
            logits_TN1hw = logits_TN1hw.masked_fill(absent_TN[..., None, None, None], -1.0)
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
