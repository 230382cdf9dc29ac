"""An installed wheel works in an empty folder: prepare, predict, benchmark."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The wheel, unpacked into a folder of its own; dependencies come from this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True, timeout=120
    )
    return folder / "site"


def run(site: Path, cwd: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=cwd, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_prepare_predict_benchmark(site, tmp_path):
    where = run(site, tmp_path, "medsam2_ft", "--help") and subprocess.run(
        [sys.executable, "-c", "import medsam2_ft; print(medsam2_ft.__file__)"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert str(site) in where
    run(site, tmp_path, "data_prep", "phantoms", "--out", "raw", "--cases", "3")
    run(
        site, tmp_path, "data_prep", "volumes", "--images", "raw/images", "--masks", "raw/masks", "--out", "data",
        "--modality", "CT", "--image-suffix", "_0000.nii.gz",
    )  # fmt: skip
    run(
        site, tmp_path, "medsam2_ft", "predict", "--checkpoint", "sam2.1_nano@random", "--image",
        "raw/images/phantom_000_0000.nii.gz", "--box", "20 20 60 60", "--out", "mask.nii.gz",
    )  # fmt: skip
    run(
        site, tmp_path, "medsam2_ft", "benchmark", "--data", "data", "--protocol", "paper_3d", "--models",
        "sam2.1_nano@random", "--out", "bench", "--split", "test", "--limit", "1",
    )  # fmt: skip
    assert (tmp_path / "mask.nii.gz").is_file()
    assert (tmp_path / "bench" / "rows.csv").is_file()
    assert (tmp_path / "bench" / "report.html").is_file()
