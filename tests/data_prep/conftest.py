"""Small raw datasets on disk, as users have them."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main

AFFINE = np.diag([-0.8, -0.8, 3.0, 1.0])


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def volume_pair(seed: int, shape=(20, 24, 6)) -> tuple[np.ndarray, np.ndarray]:
    """HU-like noise with two boxes in it, and their labels 1 and 2."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 20, shape).astype(np.int16)
    mask = np.zeros(shape, np.uint8)
    x, y = rng.integers(2, 8, 2)
    mask[x : x + 6, y : y + 8, 1:5] = 1
    mask[x + 7 : x + 10, y + 2 : y + 6, 2:4] = 2
    image[mask == 1] += 120
    image[mask == 2] += 250
    return image, mask


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Four volumes in nnU-Net's naming."""
    for index in range(4):
        image, mask = volume_pair(index)
        write_nifti(tmp_path / f"raw/images/case{index}_0000.nii.gz", image)
        write_nifti(tmp_path / f"raw/masks/case{index}.nii.gz", mask)
    return tmp_path / "raw"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four colour photographs with black and white masks."""
    for index in range(4):
        rng = np.random.default_rng(index)
        image = rng.integers(0, 200, (24, 30, 3), dtype=np.uint8)
        mask = np.zeros((24, 30), np.uint8)
        mask[5:15, 4 + index : 16 + index] = 255
        for folder, array, suffix in (("images", image, ".jpg"), ("masks", mask, ".png")):
            (tmp_path / "raw" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(tmp_path / "raw" / folder / f"photo_{index}{suffix}")
    return tmp_path / "raw"


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., int]:
    """Run a preparing command on `raw/` into `out/`."""

    def run(command: str, *options: object, raw: Path = tmp_path / "raw", out: Path = tmp_path / "out") -> int:
        words = [command, "--images", raw / "images", "--masks", raw / "masks", "--out", out, "--workers", 1, *options]
        return main([str(word) for word in words])

    return run
