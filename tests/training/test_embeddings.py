"""Decoder tuning on cached embeddings: the same training, without the encoder."""

import collections
import os
import shutil
import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from blobs import write_blobs

from medsam2_ft.data.datamodule import PromptedDataModule
from medsam2_ft.errors import UserError
from medsam2_ft.losses import LossWeights
from medsam2_ft.modeling.adapt import trainable_parts
from medsam2_ft.modeling.commands import stock_call
from medsam2_ft.modeling.segmenter import PromptedSegmenter
from medsam2_ft.modeling.weights import read_checkpoint
from medsam2_ft.training.embeddings import EmbeddingCaching, embedding_key, embedding_shapes, require_cacheable
from medsam2_ft.training.module import FineTuner
from medsam2_ft.training.optim import OptimiserSettings

ROOT = Path(__file__).resolve().parents[2]
PARTS = ["decoder", "no_memory"]


def fit(spec, root, *, cached, parts=PARTS, epochs=2):
    """Weights after training, losses of the steps, and how many images went through the trunk."""
    torch.manual_seed(0)
    segmenter = PromptedSegmenter(spec)
    trainable_parts(segmenter.sam2, parts, losses=LossWeights(), cached=True)
    images = []
    segmenter.sam2.image_encoder.trunk.register_forward_hook(lambda module, args, out: images.append(len(args[0])))
    module = FineTuner(segmenter, losses=LossWeights(), optim=OptimiserSettings(lr=1e-3))
    losses = []
    module.on_train_batch_end = lambda outputs, batch, batch_idx: losses.append(float(outputs["loss"]))
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=epochs, default_root_dir=root, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
        callbacks=[EmbeddingCaching()] if cached else [],
    )  # fmt: skip
    trainer.fit(module, datamodule=PromptedDataModule(root, batch_size=2, num_workers=0, seed=3))
    return segmenter.sam2.state_dict(), losses, sum(images)


@pytest.fixture
def root(tmp_path):
    return write_blobs(tmp_path / "data", splits="train train val", num_slices=4)


@pytest.mark.parametrize("parts", [PARTS, [*PARTS, "high_res"]])
def test_same_training_and_the_encoder_runs_once_a_slice(tiny_spec, root, parts):
    plain, plain_losses, _ = fit(tiny_spec, root, cached=False, parts=parts)
    cold, cold_losses, encoded = fit(tiny_spec, root, cached=True, parts=parts)
    assert encoded == 12, "three cases of four slices"
    warm, warm_losses, encoded = fit(tiny_spec, root, cached=True, parts=parts)
    assert encoded == 0
    np.testing.assert_allclose(cold_losses, plain_losses, rtol=2e-3)
    assert warm_losses == cold_losses
    torch.manual_seed(0)
    before = PromptedSegmenter(tiny_spec).sam2.state_dict()
    moved = {name.split(".")[0] for name in plain if not torch.equal(plain[name], before[name])}
    assert moved == {"sam_mask_decoder", "no_mem_embed"}
    for name, weight in plain.items():
        assert torch.equal(warm[name], cold[name]), name
        # AdamW moves a weight by the rate whatever its gradient's size, so a few of the smallest may go either way.
        assert (cold[name] - weight).abs().float().mean() < 2e-4, name


def test_half_written_files_are_not_read(tiny_spec, root):
    fit(tiny_spec, root, cached=True, epochs=1)
    files = sorted((root / ".cache" / "embeddings").rglob("*.npy"))
    assert len(files) == 12
    files[0].write_bytes(files[0].read_bytes()[:1000])
    files[1].rename(files[1].with_name(f".{files[1].name}.123"))
    assert fit(tiny_spec, root, cached=True, epochs=1)[2] == 2


def test_key_follows_weights_size_and_what_is_kept(tiny_spec, tiny_segmenter):
    trainable_parts(tiny_segmenter.sam2, PARTS, losses=LossWeights(), cached=True)
    key = embedding_key(tiny_segmenter, precision="32-true")
    assert key == embedding_key(tiny_segmenter, precision="32-true")
    with torch.no_grad():
        tiny_segmenter.sam2.sam_mask_decoder.iou_token.weight += 1
    assert key == embedding_key(tiny_segmenter, precision="32-true"), "what the decoder learns changes no feature"
    others = [embedding_key(tiny_segmenter, precision="bf16-mixed")]
    torch.manual_seed(0)
    larger = PromptedSegmenter(tiny_spec.resized(128))
    trainable_parts(larger.sam2, PARTS, losses=LossWeights(), cached=True)
    others.append(embedding_key(larger, precision="32-true"))
    trainable_parts(tiny_segmenter.sam2, [*PARTS, "high_res"], losses=LossWeights(), cached=True)
    others.append(embedding_key(tiny_segmenter, precision="32-true"))
    trainable_parts(tiny_segmenter.sam2, PARTS, losses=LossWeights(), cached=True)
    with torch.no_grad():
        tiny_segmenter.sam2.image_encoder.trunk.pos_embed += 1
    others.append(embedding_key(tiny_segmenter, precision="32-true"))
    assert len({key, *others}) == 5


def test_sizes_at_1024_are_those_of_the_docs():
    from medsam2_ft.modeling.zoo import ZOO

    segmenter = PromptedSegmenter(ZOO["sam2.1_tiny"].spec)
    for parts, megabytes in ((PARTS, 8.4), ([*PARTS, "high_res"], 44.0)):
        trainable_parts(segmenter.sam2, parts, losses=LossWeights(), cached=True)
        assert 2 * sum(np.prod(shape) for shape in embedding_shapes(segmenter)) / 1e6 == pytest.approx(
            megabytes, abs=0.1
        )


def test_full_disk_is_refused_before_the_first_slice(tiny_spec, root, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12 - 10**4, 10**4))
    with pytest.raises(UserError, match=r"need 0\.\d GB under .* where 0\.0 GB are free; set data.cache_dir"):
        fit(tiny_spec, root, cached=True)
    assert not (root / ".cache" / "embeddings").exists()


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"augmentation": object()}, "data.augmentation=null"),
        ({"synthetic": object()}, "no cache holds"),
        ({"clip_length": 3}, "finetune.clip_length=1"),
        ({"parts": ["encoder"]}, "finetune=decoder"),
    ],
)
def test_what_a_cache_cannot_follow_is_refused(tiny_segmenter, how, sentence):
    how = {"augmentation": None, "synthetic": None, "clip_length": 1, "parts": PARTS, **how}
    trainable_parts(tiny_segmenter.sam2, how.pop("parts"), losses=LossWeights())
    with pytest.raises(UserError, match=sentence):
        require_cacheable(tiny_segmenter, **how)


def test_decoder_tuning_from_the_command_line_opens_in_stock_sam2(tmp_path):
    write_blobs(tmp_path / "sample_data", splits="train train val")
    command = [sys.executable, str(ROOT / "train.py"), "finetune=decoder", "model.weights=null", "model.image_size=64"]
    command += [
        "trainer.max_epochs=2",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "data.num_workers=1",
        "hydra.run.dir=run",
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((tmp_path / "sample_data" / ".cache" / "embeddings").rglob("*.npy"))) == 12
    exported = read_checkpoint(tmp_path / "run" / "model.pt")
    before = PromptedSegmenter(exported.spec()).sam2.state_dict()
    assert exported.state.keys() == before.keys()
    script = stock_call(exported) + "import numpy as np\npredictor.set_image(np.zeros((64, 64, 3), np.uint8))\n"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)

    refused = [*command, "data.augmentation=grey"]
    done = subprocess.run(refused, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "error: data.augmentation makes every image new" in done.stderr
