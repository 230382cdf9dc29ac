"""Medical volumes in: any orientation on disk becomes one (T, H, W) array, and nothing is resampled.

A volume is in LPS array order. Axial arrays run T inferior->superior, H anterior->posterior, W right->left; another
plane moves its axis to the front and keeps the order of the other two. `affine` maps (t, h, w, 1) to RAS mm, nibabel's
world.
"""

import logging
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medsam2_ft.errors import DataError, nearest
from medsam2_ft.io.dicom_kind import is_multiframe, is_series_file
from medsam2_ft.io.faults import reading

PLANES = {"axial": "SPL", "coronal": "PSL", "sagittal": "LSP"}
"""Plane -> the anatomical direction in which (T, H, W) grow."""

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr", ".img")
# MONAI's own default letters changed over its releases; these are nibabel's.
_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))
_TIE = 1.01


@dataclass(frozen=True)
class Volume:
    """An image, volume or video as numbers, with what is needed to write a mask back onto its source.

    Attributes:
        array: (T, H, W) or (T, H, W, 3), raw values.
        spacing_mm: (T, H, W) in mm; None when unknown.
        affine: 4x4, (t, h, w, 1) -> RAS mm; None when unknown.
        original_affine: 4x4, index of the file's own grid -> RAS mm.
        original_shape: shape of the file's own grid in its own axis order.
        kind: "image", "volume" or "video".
        source: the path as given.
        fps: frames a second of a video.
        modality: what the file itself says ("CT", "MR", ...), "" if nothing.
        kept_slices: source T indices when only some slices are held.
    """

    array: NDArray[Any]
    spacing_mm: tuple[float, float, float] | None = None
    affine: NDArray[np.float64] | None = None
    original_affine: NDArray[np.float64] | None = None
    original_shape: tuple[int, ...] | None = None
    kind: str = "volume"
    source: str = ""
    fps: float | None = None
    modality: str = ""
    kept_slices: NDArray[np.int64] | None = None


def read_volume(path: Path | str, *, plane: str = "acquisition", channel: int | None = None) -> Volume:
    """Read a NIfTI, NRRD or MetaImage file, or a folder with one DICOM series.

    Args:
        path: file or folder.
        plane: which axis becomes T: "axial", "coronal", "sagittal", or "acquisition" for the one with the largest
            spacing (axial on ties).
        channel: which channel of a 4D file; needed only if it has several.

    Returns:
        A volume whose `array` is float32 and holds the file's values, scale and intercept applied.

    Raises:
        DataError: one sentence naming the file, if it is missing, damaged, not three-dimensional or has a broken
            geometry.
    """
    from monai.data import MetaTensor
    from monai.transforms import Orientation

    path = Path(path)
    if plane != "acquisition" and plane not in PLANES:
        raise DataError(f"There is no plane '{plane}'{nearest(plane, ('acquisition', *PLANES))}.")
    with reading(path):
        # Given with the call, the reader's own error comes through instead of a list of all readers that failed.
        loaded = _loader()(path, reader=_reader_for(path))
        on_disk = np.asarray(loaded)
        original_affine = np.asarray(loaded.affine, np.float64)
        raw = _three_axes(on_disk, channel, path)
        _check_affine(original_affine, path)
        codes = PLANES[_acquisition_plane(original_affine) if plane == "acquisition" else plane]
        turned = Orientation(axcodes=codes, labels=_LETTERS)(MetaTensor(raw[None], affine=original_affine))
        affine = np.asarray(turned.affine, np.float64)
    return Volume(
        array=np.ascontiguousarray(turned[0]),
        spacing_mm=spacing_of(affine),
        affine=affine,
        original_affine=original_affine,
        original_shape=raw.shape,
        source=str(path),
        modality=str(loaded.meta.get("modality", "")),
    )


def spacing_of(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Distance in mm between neighbours along each array axis of an affine."""
    a, b, c = np.linalg.norm(affine[:3, :3], axis=0)
    # Headers store float32; what they meant is recovered by six digits.
    return float(f"{a:.6g}"), float(f"{b:.6g}"), float(f"{c:.6g}")


def plane_of(volume: Volume) -> str:
    """The plane its slices lie in."""
    assert volume.affine is not None
    world = int(nib.orientations.io_orientation(volume.affine)[0, 0])
    return ("sagittal", "coronal", "axial")[world]


def is_volume(path: Path) -> bool:
    """Whether `read_volume` is for this: a volume by its name, a folder of DICOM slices, or one multi-frame file."""
    if path.is_dir():
        return any(is_series_file(entry) for entry in path.iterdir())
    if path.suffix.lower() == ".dcm":
        return is_multiframe(path)
    return path.name.lower().endswith(VOLUME_SUFFIXES)


@cache
def _loader() -> Any:
    """MONAI's LoadImage, made once: it looks for every optional reader and reports those that are absent."""
    from monai.transforms import LoadImage

    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LoadImage(image_only=True, dtype=np.float32)


def _reader_for(path: Path) -> Any:
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz", ".hdr", ".img")):
        from monai.data import NibabelReader

        return NibabelReader()
    if path.is_dir() or not name.endswith(VOLUME_SUFFIXES):
        from medsam2_ft.io.dicom import DicomReader

        return DicomReader()
    from medsam2_ft.io.itk import ItkReader

    return ItkReader()


def _three_axes(array: NDArray[Any], channel: int | None, path: Path) -> NDArray[Any]:
    if array.ndim > 3 and array.shape[3:] == (1,) * (array.ndim - 3):
        array = array.reshape(array.shape[:3])
    if array.ndim == 2:
        return array[:, :, None]
    if array.ndim == 4:
        if channel is None or not 0 <= channel < array.shape[3]:
            raise DataError(
                f"{path} has {array.shape[3]} channels or time points; "
                f"choose one with --channel 0..{array.shape[3] - 1}."
            )
        return array[..., channel]
    if array.ndim != 3:
        raise DataError(f"{path} has {array.ndim} axes; a volume has three.")
    return array


def _check_affine(affine: NDArray[np.float64], path: Path) -> None:
    if not np.all(np.isfinite(affine)) or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DataError(f"{path} has a broken geometry: its affine is singular or not finite.")


def _acquisition_plane(affine: NDArray[np.float64]) -> str:
    """The plane across the largest spacing; axial first, so that it wins ties."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    world = nib.orientations.io_orientation(affine)[:, 0]
    along = {name: spacing[world == axis].item() for name, axis in (("axial", 2), ("coronal", 1), ("sagittal", 0))}
    return next(name for name, step in along.items() if step * _TIE >= max(along.values()))
