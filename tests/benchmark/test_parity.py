"""The DSC that training logs is the DSC that the benchmark measures."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from blobs import write_blobs

from medsam2_ft.benchmark.protocol import load_protocol
from medsam2_ft.benchmark.runner import run_benchmark

ROOT = Path(__file__).resolve().parents[2]


def test_validation_in_training_equals_the_benchmark(tmp_path):
    write_blobs(tmp_path / "sample_data", splits="train val val")
    subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "model.weights=null", "model.image_size=64", "trainer.max_epochs=1",
         "trainer.accelerator=cpu", "data.num_workers=0", "data.val_slices_per_case=null", "trainer.num_overlays=0",
         "hydra.run.dir=run"],
        cwd=tmp_path, check=True, capture_output=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    logged = [row["val/dsc"] for row in csv.DictReader((tmp_path / "run/csv/metrics.csv").open()) if row.get("val/dsc")]
    rows = run_benchmark(
        load_protocol("validation"), roots=[tmp_path / "sample_data"], models=[str(tmp_path / "run/model.pt")],
        out=tmp_path / "out", split="val", devices=["cpu"],
    )  # fmt: skip
    assert rows["dsc"].mean() == pytest.approx(float(logged[-1]), abs=2e-3)
