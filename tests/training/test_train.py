"""`python train.py` as users run it, on a network of 64 px."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from blobs import write_blobs
from omegaconf import OmegaConf

from medsam2_ft.inference.predictor import Predictor
from medsam2_ft.modeling.build import SINGLE_MASK
from medsam2_ft.modeling.commands import stock_call
from medsam2_ft.modeling.segmenter import Points
from medsam2_ft.modeling.weights import read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "model.weights=null", "model.image_size=64", "trainer.max_epochs=1", "trainer.accelerator=cpu", "data.num_workers=0",
    "trainer.num_overlays=1",
]  # fmt: skip


def run_train(*overrides: str, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *overrides],
        cwd=cwd, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1", **env},
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """One short training with every logger, its folder."""
    cwd = tmp_path_factory.mktemp("work")
    write_blobs(cwd / "sample_data", splits="train train val")
    done = run_train(*SMALL, "logger=wandb", "logger.names=[csv,tensorboard,wandb]", "hydra.run.dir=run", cwd=cwd)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "before training; best validation DSC" in done.stdout + done.stderr
    return cwd / "run"


def test_run_leaves_all_it_promises(finished_run):
    for name in ("last.ckpt", "best.ckpt", "model.pt", "config.yaml", "versions.json", "overlays/val_0.png"):
        assert (finished_run / name).is_file(), name
    assert list(finished_run.glob("wandb/offline-run-*"))
    assert list(finished_run.glob("tensorboard/events*"))
    rows = list(csv.DictReader((finished_run / "csv" / "metrics.csv").open()))
    assert next(row["step"] for row in rows if row.get("val/dsc")) == "0", "before training, too"
    assert any(row.get("val/dsc") for row in rows[1:])
    assert any(row.get("train/dice") for row in rows)
    assert json.loads((finished_run / "versions.json").read_text())["sam2"] == "1.1.0"


def test_export_opens_in_stock_sam2_by_the_call_that_inspect_prints(finished_run, tmp_path, rng):
    image = rng.integers(0, 256, (80, 96, 3), dtype=np.uint8)
    np.save(tmp_path / "image.npy", image)
    path = finished_run / "model.pt"
    script = stock_call(read_checkpoint(path)) + (
        "import numpy as np\n"
        f"predictor.set_image(np.load({str(tmp_path / 'image.npy')!r}))\n"
        "masks, _, logits = predictor.predict(box=np.array([10, 12, 70, 60.]), multimask_output=False)\n"
        f"np.savez({str(tmp_path / 'stock.npz')!r}, masks=masks, logits=logits)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    stock = np.load(tmp_path / "stock.npz")
    predictor = Predictor.from_checkpoint(path, device="cpu", precision="fp32")
    ours = predictor.predict(predictor.embed(image), boxes_N4=[[10, 12, 70, 60]])
    np.testing.assert_array_equal(ours.masks_NHW, stock["masks"].astype(bool))
    np.testing.assert_allclose(ours.logits_Nhw.clamp(-32, 32).numpy(), stock["logits"], atol=1e-4)


def test_sweep_by_joblib_leaves_runs_whose_three_masks_stock_sam2_answers_alike(tmp_path, rng):
    """Two rates at a time, tuned as Meta does: the exports keep SAM2's multimask output, because its tokens were trained."""
    write_blobs(tmp_path / "sample_data", splits="train train val")
    done = run_train(
        "-m", *SMALL, "trainer.limit_train_batches=2", "finetune=meta", "prompts=mixed", "optim.lr=1e-4,3e-4",
        "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    runs = [tmp_path / "sweep" / str(number) for number in (0, 1)]
    assert [OmegaConf.load(run / "config.yaml").optim.lr for run in runs] == [1e-4, 3e-4]
    first, second = (read_checkpoint(run / "model.pt") for run in runs)
    assert not any(
        torch.equal(first.state[key], second.state[key]) for key in first.state if ".mlp.layers.0.weight" in key
    )
    assert not set(SINGLE_MASK) & set(first.meta["sam2_overrides"])

    image = rng.integers(0, 256, (80, 96, 3), dtype=np.uint8)
    np.save(tmp_path / "image.npy", image)
    script = stock_call(first) + (
        "import numpy as np\n"
        f"predictor.set_image(np.load({str(tmp_path / 'image.npy')!r}))\n"
        "masks, iou, logits = predictor.predict(point_coords=np.array([[40, 30.]]), point_labels=np.array([1]))\n"
        f"np.savez({str(tmp_path / 'stock.npz')!r}, iou=iou, logits=logits)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    stock = np.load(tmp_path / "stock.npz")
    segmenter = Predictor.from_checkpoint(first.path, device="cpu", precision="fp32").segmenter
    with torch.no_grad():
        features = segmenter.encode(segmenter.normalise([torch.from_numpy(image)]))
        click = segmenter.scale_points(torch.tensor([[[40.0, 30.0]]]), torch.tensor([[80, 96]]))
        points = Points(click, torch.ones(1, 1, dtype=torch.int32))
        ours = segmenter.decode_embedding(
            segmenter.without_memory(features.embedding_BChw), features.high_res, points=points, mask_logits_N1hw=None,
            multimask=segmenter.wants_several(points),
        )  # fmt: skip
    np.testing.assert_allclose(ours.logits_NMhw[0].clamp(-32, 32).numpy(), stock["logits"], atol=1e-4)
    np.testing.assert_allclose(ours.iou_NM[0].numpy(), stock["iou"], atol=1e-4)


def test_last_ckpt_loads_without_running_code_and_exports(finished_run, tmp_path):
    from medsam2_ft.modeling.commands import export

    torch.load(finished_run / "last.ckpt", weights_only=True)
    export([str(finished_run / "last.ckpt"), "--out", str(tmp_path / "again.safetensors")])
    again, first = read_checkpoint(tmp_path / "again.safetensors"), read_checkpoint(finished_run / "last.ckpt")
    assert again.meta == first.meta
    assert again.state.keys() == first.state.keys()
    assert all(torch.equal(again.state[key], first.state[key]) for key in first.state)


def test_literal_four_devices(tmp_path):
    write_blobs(tmp_path / "sample_data", splits="train train val val val")
    done = run_train(*SMALL, "trainer.devices=4", "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run" / "model.pt").is_file()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["optim.lrr=1"], "there is no setting 'optim.lrr'; did you mean 'optim.lr'?"),
        (["data.root=nowhere", "model.weights=null"], "nowhere is not a prepared dataset"),
    ],
)
def test_mistakes_get_one_sentence(overrides, sentence, tmp_path):
    done = run_train(*overrides, cwd=tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
