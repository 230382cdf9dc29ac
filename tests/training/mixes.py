"""One rank that trains every way to tune with every kind of prompt, a few steps each: `torchrun mixes.py SPEC`.

On the second step rank 1 has no object. After each mix both ranks must hold the same weights, and every trained weight must have
had a gradient on every step.
"""

import json
import sys
import time
import warnings

import lightning as L
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed
from torch.utils.data import DataLoader

from medsam2_ft.config import typed
from medsam2_ft.data.batch import Clip, ClipBatch, collate
from medsam2_ft.modeling.build import SINGLE_MASK, SAM2Spec
from medsam2_ft.modeling.segmenter import PromptedSegmenter
from medsam2_ft.prompts.sampling import tight_boxes
from medsam2_ft.prompts.simulator import PromptSettings
from medsam2_ft.resources import configs
from medsam2_ft.training.module import FineTuner
from medsam2_ft.training.optim import OptimiserSettings
from medsam2_ft.training.settings import FinetuneSettings, choose_trained

RANK_OBJECTS = ((2, 3), (1, 0), (3, 1))
"""Objects of rank 0 and of rank 1 on each step."""


def clip(num_objects: int, *, num_slices: int, seed: int) -> Clip:
    images = np.random.default_rng(seed).integers(0, 256, (num_slices, 64, 64), dtype=np.uint8)
    masks = np.zeros((num_objects, num_slices, 64, 64), bool)
    for i in range(num_objects):
        masks[i, :, 6 + 12 * i : 26 + 12 * i, 5 + 14 * i : 24 + 14 * i] = True
    return Clip(images, masks, tight_boxes(masks[:, 0]), ("square",) * num_objects, f"clip_{seed}", seed=seed)


class Batches(L.LightningDataModule):
    """The same batches for every mix."""

    regions = ("square",)

    def __init__(self, num_slices: int) -> None:
        super().__init__()
        self.num_slices = num_slices

    def train_dataloader(self) -> DataLoader[ClipBatch]:
        counts = [pair[self.trainer.global_rank] for pair in RANK_OBJECTS]
        clips = [
            clip(count, num_slices=self.num_slices, seed=10 * step + self.trainer.global_rank)
            for step, count in enumerate(counts)
        ]
        return DataLoader(clips, batch_size=1, collate_fn=collate)


class EveryWeightTakesPart(Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        left_out = [name for name, p in pl_module.named_parameters() if p.requires_grad and p.grad is None]
        assert not left_out, f"no gradient for {left_out[:3]}"


def fit(spec: SAM2Spec, finetune: FinetuneSettings, prompts: PromptSettings) -> torch.Tensor:
    torch.manual_seed(0)
    spec = spec.without_overrides(SINGLE_MASK) if finetune.multimask else spec
    segmenter = PromptedSegmenter(spec)
    choose_trained(segmenter, finetune, prompts)
    start = torch.cat([p.detach().flatten() for p in segmenter.parameters()])
    module = FineTuner(
        segmenter, losses=finetune.losses, optim=OptimiserSettings(lr=1e-3), prompts=prompts, given_masks=finetune.given_masks
    )  # fmt: skip
    trainer = L.Trainer(
        accelerator="cpu", devices=2, max_steps=len(RANK_OBJECTS), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        callbacks=[EveryWeightTakesPart()], strategy=DDPStrategy(broadcast_buffers=False),
    )  # fmt: skip
    trainer.fit(module, datamodule=Batches(finetune.clip_length))
    weights = torch.cat([p.detach().flatten() for p in segmenter.parameters()])
    assert torch.isfinite(weights).all()
    assert not torch.equal(weights, start), "nothing was learned"
    return weights


def main(settings: dict) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    spec = SAM2Spec(settings["config"], tuple(settings["overrides"]), settings["image_size"])
    for overrides, kind in settings["mixes"]:
        with initialize_config_dir(str(configs()), version_base="1.3"):
            finetune = typed(FinetuneSettings, compose("train", overrides.split()).finetune, key="finetune")
        other = "box" if kind == "point" else "point"
        kinds = {kind: 1.0, other: 1e-9} if finetune.multimask else {kind: 1.0}
        started = time.perf_counter()
        mine = fit(spec, finetune, PromptSettings(kinds=kinds))
        both = [torch.empty_like(mine) for _ in range(2)]
        distributed.all_gather(both, mine)
        assert torch.equal(*both), f"{overrides} x {kind}: the ranks' weights differ"
        if distributed.get_rank() == 0:
            print(f"{overrides} x {kind}: {time.perf_counter() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
