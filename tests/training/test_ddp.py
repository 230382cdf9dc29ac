"""Two ranks with unequal numbers of labels give the gradients and the validation DSC of one process, and stay alike however they
are tuned and prompted."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from blobs import write_blobs
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy

from medsam2_ft.data.datamodule import PromptedDataModule
from medsam2_ft.losses import LossWeights
from medsam2_ft.modeling.adapt import trainable_parts
from medsam2_ft.modeling.segmenter import PromptedSegmenter
from medsam2_ft.prompts.simulator import KINDS
from medsam2_ft.training.module import FineTuner
from medsam2_ft.training.optim import OptimiserSettings


class KeepGradients(Callback):
    """Save the first step's gradients, the objects each rank had and the validation DSC."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        torch.save(batch.num_objects, self.folder / f"objects_{trainer.global_rank}.pt")

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        grads = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}
        if trainer.is_global_zero:
            torch.save(grads, self.folder / "gradients.pt")

    def on_validation_end(self, trainer, pl_module):
        if trainer.is_global_zero:
            torch.save(trainer.callback_metrics["val/dsc"], self.folder / "dsc.pt")


def fit_one_step(spec, root: Path, folder: Path, *, devices: int) -> None:
    folder.mkdir()
    torch.manual_seed(0)
    segmenter = PromptedSegmenter(spec)
    losses = LossWeights()
    trainable_parts(segmenter.sam2, ["encoder", "decoder", "no_memory"], losses=losses)
    module = FineTuner(segmenter, losses=losses, optim=OptimiserSettings())
    data = PromptedDataModule(root, batch_size=4 // devices, num_workers=0, seed=3)
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, max_steps=1, logger=False, enable_checkpointing=False, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, limit_train_batches=1,
        strategy=DDPStrategy(start_method="spawn", broadcast_buffers=False) if devices > 1 else "auto",
        callbacks=[KeepGradients(folder)],
    )  # fmt: skip
    trainer.fit(module, datamodule=data)


def test_two_ranks_equal_one(tiny_spec, tmp_path):
    root = write_blobs(tmp_path / "data", splits="train train val", num_slices=5)
    for devices in (1, 2):
        fit_one_step(tiny_spec, root, tmp_path / str(devices), devices=devices)
    counts = [torch.load(tmp_path / "2" / f"objects_{rank}.pt") for rank in (0, 1)]
    assert counts[0] != counts[1], "the ranks should differ for this test to say anything; choose another seed"
    assert sum(counts) == torch.load(tmp_path / "1" / "objects_0.pt")
    one, two = (torch.load(tmp_path / str(devices) / "gradients.pt") for devices in (1, 2))
    assert one.keys() == two.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(
            two[name], gradient, atol=1e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )
    torch.testing.assert_close(
        torch.load(tmp_path / "2" / "dsc.pt"), torch.load(tmp_path / "1" / "dsc.pt"), atol=2e-3, rtol=0
    )


WAYS = [f"finetune={name}" for name in ("full", "decoder", "lora", "memory", "meta")]
MORE_MIXES = [
    ("finetune=full finetune.train=[encoder,decoder,no_memory,prompt_encoder]", "box"),
    ("finetune=full finetune.train=[encoder,decoder,no_memory,prompt_encoder]", "box_clicks"),
    ("finetune=meta finetune.train=[memory,encoder,decoder] finetune.clip_length=3", "point"),
    ("finetune=meta finetune.train=[memory,encoder,decoder] finetune.clip_length=3", "box_clicks"),
]


def test_two_ranks_stay_alike_in_every_mix_of_tuning_and_prompts(tiny_spec):
    """One pair of processes, as torchrun starts them, goes through all mixes; on one step a rank has no object."""
    mixes = [*itertools.product(WAYS, KINDS), *MORE_MIXES]
    settings = {
        "config": tiny_spec.sam2_config, "overrides": tiny_spec.overrides, "image_size": tiny_spec.image_size, "mixes": mixes,
    }  # fmt: skip
    here = Path(__file__).resolve()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, str(here.with_name("mixes.py")), json.dumps(settings)],
        env={**os.environ, "PYTHONPATH": str(here.parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=380, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    for overrides, kind in mixes:
        assert f"{overrides} x {kind}: " in done.stdout


@pytest.mark.parametrize("samples", [1, 7, 16])
def test_equal_batch_counts_and_the_same_global_batch(samples):
    from medsam2_ft.data.sampler import EpochBatches

    whole = list(EpochBatches(samples, batch_size=4, seed=1))
    shares = [list(EpochBatches(samples, batch_size=2, seed=1, rank=rank, world_size=2)) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1]) == len(whole)
    for both, a, b in zip(whole, *shares, strict=True):
        assert sorted(both) == sorted(a + b)
    assert {index for batch in whole for _, index in batch} == set(range(samples))
