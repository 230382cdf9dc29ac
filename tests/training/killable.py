"""A training that kills itself, in a process of its own: `python killable.py ROOT RUN SPEC [KILL_AT] [RESUME]`."""

import io
import json
import os
import signal
import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy

from medsam2_ft.data.augment import ClipAugmentation
from medsam2_ft.data.datamodule import PromptedDataModule
from medsam2_ft.losses import LossWeights
from medsam2_ft.modeling.adapt import trainable_parts
from medsam2_ft.modeling.build import SAM2Spec
from medsam2_ft.modeling.segmenter import PromptedSegmenter
from medsam2_ft.prompts.simulator import KINDS, PromptSettings
from medsam2_ft.training.checkpoints import AtomicCheckpoints
from medsam2_ft.training.embeddings import EmbeddingCaching
from medsam2_ft.training.module import FineTuner
from medsam2_ft.training.optim import OptimiserSettings


class Kill(Callback):
    """SIGKILL after micro-batch `at` of the run, or with `during_save` half-way through the next writing of last.ckpt."""

    def __init__(self, at: int, *, during_save: bool = False) -> None:
        self.at, self.during_save, self.seen = at, during_save, 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen += 1
        if self.seen == self.at and not self.during_save:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        if self.during_save and self.seen >= self.at:
            torch.save = save_half_of_last_and_die


def save_half_of_last_and_die(content, file, save=torch.save):
    if "last" not in Path(file.name).name:
        return save(content, file)
    buffer = io.BytesIO()
    save(content, buffer)
    file.write(buffer.getvalue()[: buffer.tell() // 2])
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def main(settings: dict) -> None:
    torch.set_num_threads(1)
    run = Path(settings["run"])
    torch.manual_seed(0)
    spec = SAM2Spec(settings["config"], tuple(settings["overrides"]), settings["image_size"])
    segmenter = PromptedSegmenter(spec)
    losses, cached = LossWeights(), settings.get("cached", False)
    parts = ["decoder", "no_memory"] if cached else ["encoder", "decoder", "no_memory"]
    trainable_parts(segmenter.sam2, parts, losses=losses, cached=cached)
    prompts = PromptSettings(kinds=dict.fromkeys(KINDS, 1.0))
    module = FineTuner(segmenter, losses=losses, optim=OptimiserSettings(lr=1e-3), prompts=prompts)
    augmentation = None if cached else ClipAugmentation("grey")
    data = PromptedDataModule(settings["root"], batch_size=2, num_workers=1, augmentation=augmentation, seed=5)
    callbacks = [
        ModelCheckpoint(run, filename="step", every_n_train_steps=1, save_last=True, enable_version_counter=False)
    ]
    if cached:
        callbacks.append(EmbeddingCaching())
    if settings["ema"]:
        callbacks.append(EMAWeightAveraging(decay=0.9))
    if settings.get("kill_at"):
        callbacks.append(Kill(settings["kill_at"], during_save=settings.get("during_save", False)))
    devices = settings["devices"]
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, max_epochs=3, accumulate_grad_batches=2, logger=False, callbacks=callbacks,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
        gradient_clip_val=1.0, plugins=[AtomicCheckpoints()],
        strategy=DDPStrategy(broadcast_buffers=False) if devices > 1 else "auto",
    )  # fmt: skip
    last = run / "last.ckpt"
    trainer.fit(module, datamodule=data, ckpt_path=last if settings.get("resume") else None, weights_only=True)
    if trainer.is_global_zero:
        torch.save(segmenter.state_dict(), run / "weights.pt")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
