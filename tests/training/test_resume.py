"""A run killed with SIGKILL and resumed ends in the weights of the run that was not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from blobs import write_blobs

from medsam2_ft.data.sampler import EpochBatches
from medsam2_ft.errors import CheckpointError
from medsam2_ft.modeling.weights import export_checkpoint, export_meta
from medsam2_ft.training.run import resumable

HERE = Path(__file__).resolve().parent


def run(spec, root, folder, *, ema=False, devices=1, **how) -> int:
    settings = {
        "config": spec.sam2_config, "overrides": spec.overrides, "image_size": spec.image_size, "root": str(root),
        "run": str(folder), "ema": ema, "devices": devices, **how,
    }  # fmt: skip
    paths = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent)])
    done = subprocess.run(
        [sys.executable, str(HERE / "killable.py"), json.dumps(settings)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-3000:]
    return done.returncode


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_blobs(tmp_path_factory.mktemp("data"), splits="train train val", num_slices=5)  # 5 batches an epoch


@pytest.mark.parametrize(
    ("kill_at", "how"),
    [
        (6, {}),  # the second epoch's first batch: inside an accumulation window
        (4, {"cached": True}),
        pytest.param(3, {"ema": True}, marks=pytest.mark.slow),
        pytest.param(5, {"ema": True}, marks=pytest.mark.slow),  # an epoch's end
        pytest.param(7, {"during_save": True}, marks=pytest.mark.slow),
        pytest.param(4, {"devices": 2, "ema": True}, marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_equals_straight(tiny_spec, root, tmp_path, kill_at, how):
    shared = {key: value for key, value in how.items() if key != "during_save"}
    (tmp_path / "straight").mkdir()
    assert run(tiny_spec, root, tmp_path / "straight", **shared) == 0
    (tmp_path / "killed").mkdir()
    assert run(tiny_spec, root, tmp_path / "killed", kill_at=kill_at, **how) == -signal.SIGKILL
    assert run(tiny_spec, root, tmp_path / "killed", resume=True, **shared) == 0
    straight, resumed = (torch.load(tmp_path / name / "weights.pt") for name in ("straight", "killed"))
    different = [name for name in straight if not torch.equal(straight[name], resumed[name])]
    assert not different, f"{len(different)} of {len(straight)} weights differ, {different[:3]}"


def test_sampler_goes_on_where_it_was():
    straight = EpochBatches(20, batch_size=3, seed=1)
    straight.set_epoch(4)
    resumed = EpochBatches(20, batch_size=3, seed=1)
    resumed.resume(epoch=4, batches=2)
    assert list(resumed) == list(straight)[2:]
    assert list(resumed) == list(straight), "only the first pass starts late"


def test_a_damaged_last_checkpoint_falls_back_and_a_missing_one_is_an_error(tiny_segmenter, tmp_path, caplog):
    with pytest.raises(CheckpointError, match="does not exist"):
        resumable(tmp_path / "last.ckpt")
    good = export_checkpoint(
        tiny_segmenter.sam2.state_dict(), tmp_path / "good.pt", meta=export_meta(tiny_segmenter.spec)
    )
    good.rename(tmp_path / "step.ckpt")
    (tmp_path / "last.ckpt").write_bytes((tmp_path / "step.ckpt").read_bytes()[:1000])
    assert resumable(tmp_path / "last.ckpt") == tmp_path / "step.ckpt"
    assert "instead of the damaged" in caplog.text
