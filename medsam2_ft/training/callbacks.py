"""What happens beside training: speed on the progress bar, pictures of validation cases, a record of the run."""

from __future__ import annotations

import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from omegaconf import OmegaConf

from medsam2_ft.data.batch import ClipBatch
from medsam2_ft.modeling.segmenter import resize_logits
from medsam2_ft.modeling.weights import git_revision
from medsam2_ft.overlay import draw_masks

PACKAGES = ("torch", "lightning", "sam2", "monai", "numpy", "hydra-core", "albumentations")


class Throughput(Callback):
    """Images a second over all ranks, on the progress bar and in the logs as `images_per_s`."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._start, self._images = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: ClipBatch, batch_idx: int
    ) -> None:
        """Count a batch."""
        self._images += len(batch.images)
        rate = self._images * trainer.world_size / (time.perf_counter() - self._start)
        pl_module.log("images_per_s", rate, prog_bar=True, batch_size=1)


class BeforeTraining(Callback):
    """The validation DSC of the weights that training starts from, in `dsc` and as the first `val/dsc` of the logs.

    Lightning's sanity check computes it, when that runs over the whole validation split; a resumed run has none.
    """

    dsc: float | None = None

    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep it."""
        self.dsc = float(trainer.callback_metrics["val/dsc"])
        for logger in trainer.loggers:
            logger.log_metrics({"val/dsc": self.dsc}, step=0)


class RunRecord(Callback):
    """Write the resolved config and the versions beside the checkpoints before the first step."""

    def __init__(self, cfg: Any, run_dir: Path) -> None:
        self.cfg, self.run_dir = cfg, run_dir

    @rank_zero_only
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write `config.yaml` and `versions.json`."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        (self.run_dir / "config.yaml").write_text(OmegaConf.to_yaml(self.cfg, resolve=True))
        device = trainer.strategy.root_device
        record = {name: version(name) for name in PACKAGES} | {
            "python": platform.python_version(),
            "git": git_revision(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
            "world_size": trainer.world_size,
            "precision": str(trainer.precision),
        }
        (self.run_dir / "versions.json").write_text(json.dumps(record, indent=2))


class ValidationOverlays(Callback):
    """Draw the first validation slices, truth beside prediction, after each validation; files and loggers both get them.

    Args:
        folder: for the PNG files, overwritten each time.
        count: slices drawn.
    """

    def __init__(self, folder: Path, *, count: int) -> None:
        self.folder, self.count = folder, count

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: ClipBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw one batch."""
        step = max(1, int(sum(trainer.num_val_batches)) // self.count)
        if not trainer.is_global_zero or batch_idx % step or batch_idx // step >= self.count:
            return
        with torch.no_grad():
            logits = pl_module(batch)[0][1].logits_N1hw  # of the prompted slice, whatever follows
        shape_hw = (batch.images[0].shape[1], batch.images[0].shape[2])
        pred = (resize_logits(logits, shape_hw) > 0).cpu().numpy()
        picture = side_by_side(
            batch.images[0][0].cpu().numpy(), batch.masks[0][:, 0].cpu().numpy(), pred, batch.boxes_N4.cpu().numpy()
        )
        self._keep(trainer, picture, batch_idx // step)

    def _keep(self, trainer: L.Trainer, picture: NDArray[np.uint8], number: int) -> None:
        from PIL import Image

        self.folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(self.folder / f"val_{number}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(f"val/{number}", picture, trainer.global_step, dataformats="HWC")
            elif isinstance(logger, WandbLogger):
                logger.log_image(f"val/{number}", [picture], step=trainer.global_step)


def side_by_side(
    image: NDArray[np.uint8], truth_NHW: NDArray[np.bool_], pred_NHW: NDArray[np.bool_], boxes_N4: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Truth on the left, prediction on the right, the prompted boxes on both; uint8 (H, 2 W, 3)."""
    return np.concatenate(
        [draw_masks(image, truth_NHW, boxes_N4=boxes_N4), draw_masks(image, pred_NHW, boxes_N4=boxes_N4)], axis=1
    )
