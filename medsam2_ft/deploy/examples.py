"""Small phantoms to try the app on, made when it starts: no patient's data is shipped."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medsam2_ft.deploy.downloads import write_overlay_video

SHAPE = (24, 160, 192)
SPACING_MM = (3.0, 1.0, 1.0)


@contextmanager
def write_examples() -> Iterator[dict[str, list[Path]]]:
    """Files by tab, in a folder that goes with the context: a CT-like volume, one slice of it, and a beating video."""
    volume_hu = phantom_hu(beat=1.0)
    with tempfile.TemporaryDirectory(prefix="medsam2_ft-examples-") as name:
        folder = Path(name)
        affine = np.diag([*SPACING_MM[::-1], 1.0])
        # LPS arrays in nibabel's RAS world: x and y are flipped.
        nib.save(nib.Nifti1Image(volume_hu[:, ::-1, ::-1].transpose(2, 1, 0), affine), folder / "ct_phantom.nii.gz")
        Image.fromarray(_window(volume_hu[len(volume_hu) // 2])).save(folder / "slice_phantom.png")
        beats = 1 + 0.25 * np.sin(np.linspace(0, 4 * np.pi, 32))
        frames = np.stack([_window(phantom_hu(beat=float(beat))[SHAPE[0] // 2]) for beat in beats])
        write_overlay_video(folder / "beating_phantom.mp4", frames, np.zeros_like(frames), fps=16)
        yield {
            "image": [folder / "slice_phantom.png"],
            "volume": [folder / "ct_phantom.nii.gz"],
            "video": [folder / "beating_phantom.mp4"],
        }


def phantom_hu(*, beat: float) -> NDArray[np.int16]:
    """A body with a liver-like and a vessel-like organ, (T, H, W) in HU; `beat` scales the organs."""
    grid_THW = np.indices(SHAPE).astype(np.float32)
    t, y, x = (axis * spacing for axis, spacing in zip(grid_THW, SPACING_MM, strict=True))
    middle_mm = SHAPE[0] * SPACING_MM[0] / 2
    noise = np.random.default_rng(0).normal(0, 12, SHAPE)
    hu = np.full(SHAPE, -1000.0) + noise
    hu[((x - 96) / 84) ** 2 + ((y - 80) / 66) ** 2 < 1] = -90
    hu[((x - 96) / 76) ** 2 + ((y - 80) / 58) ** 2 < 1] = 20
    hu[((x - 66) / (34 * beat)) ** 2 + ((y - 72) / (26 * beat)) ** 2 + ((t - middle_mm) / 30) ** 2 < 1] = 115
    hu[((x - 126) / (18 * beat)) ** 2 + ((y - 84) / (18 * beat)) ** 2 + ((t - middle_mm) / 28) ** 2 < 1] = 190
    hu[((x - 96) / 11) ** 2 + ((y - 118) / 9) ** 2 < 1] = 600
    return np.rint(hu + noise).astype(np.int16)


def _window(hu: NDArray[np.int16]) -> NDArray[np.uint8]:
    return np.clip((hu.astype(np.float32) + 160) / 400 * 255, 0, 255).astype(np.uint8)
