"""DICOM in: a folder with one series (or one multi-frame file) as a volume, a single file as an image.

Slices are ordered by position, never by file name. Values are rescaled (HU for CT, SUV for PET where the tags allow).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from monai.data import ImageReader
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError

from medsam2_ft.errors import DataError
from medsam2_ft.io.suv import suv_factor
from medsam2_ft.io.volume import Volume

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SPACING_TOLERANCE = 0.05
"""A step between slices may differ from the median step by this share before the series counts as having a gap."""
_MODALITIES = {
    "CT": "CT", "MR": "MR", "PT": "PET", "US": "Ultrasound", "CR": "X-ray", "DX": "X-ray", "MG": "Mammography",
}  # fmt: skip


@dataclass(frozen=True)
class _Frame:
    """One slice: where it lies, and how to get its pixels."""

    path: Path
    number: int
    position: NDArray[np.float64]
    orientation: NDArray[np.float64]
    pixel_spacing: tuple[float, float]
    rescale: tuple[float, float]
    size: tuple[int, int]


class DicomReader(ImageReader):  # type: ignore[misc]
    """One series as MONAI's LoadImage wants it, with the checks that its own DICOM reader lacks."""

    def verify_suffix(self, filename: Sequence[Path | str] | Path | str) -> bool:
        """Whether the path may be DICOM; contents decide, so any may."""
        return True

    def read(self, data: Sequence[Path | str] | Path | str, **kwargs: Any) -> Any:
        """Read a folder or a multi-frame file."""
        return read_series(Path(data if isinstance(data, str | Path) else data[0]))

    def get_data(self, img: Any) -> tuple[NDArray[Any], dict[str, Any]]:
        """(i, j, k) array and the meta data MONAI expects."""
        array, affine, modality = img
        return array, {
            "affine": affine, "original_affine": affine.copy(), "spatial_shape": np.asarray(array.shape),
            "original_channel_dim": float("nan"), "space": "RAS", "modality": modality,
        }  # fmt: skip


def read_series(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64], str]:
    """Read one series.

    Args:
        path: a folder, whose files that are not DICOM are passed over, or one multi-frame file.

    Returns:
        values (i, j, k) with i along image columns and k along slices; the 4x4 affine of that index to RAS mm; the
        modality as this project names it, or "".

    Raises:
        DataError: for no or several series, slices of different size or direction, and gaps, naming the slice.
    """
    datasets = _headers(path)
    frames = [frame for file, dataset in datasets for frame in _frames(file, dataset)]
    frames = _ordered(frames, path)
    first = datasets[0][1]
    pixels: dict[Path, NDArray[Any]] = {}
    array = np.empty((frames[0].size[1], frames[0].size[0], len(frames)), np.float32)
    for k, frame in enumerate(frames):
        if frame.path not in pixels:
            pixels = {frame.path: _pixels(frame.path)}
        stored = pixels[frame.path]
        plane = stored[frame.number] if stored.ndim == 3 else stored
        array[..., k] = plane.T * frame.rescale[0] + frame.rescale[1]
    modality = str(first.get("Modality", ""))
    if modality == "PT":
        array *= suv_factor(first)
    if first.get("PhotometricInterpretation") == "MONOCHROME1":
        array = array.max() + array.min() - array
    return array, _affine(frames, first), _MODALITIES.get(modality, "")


def read_single(path: Path) -> Volume:
    """Read a single-frame file (radiograph, mammogram, photograph) as an image.

    Returns:
        array (1, H, W) or (1, H, W, 3), bright where the picture is bright, as stored unless there is a rescale.

    Raises:
        DataError: if the file holds several frames.
    """
    dataset = pydicom.dcmread(path)
    if int(dataset.get("NumberOfFrames", 1) or 1) > 1:
        raise DataError(f"{path} holds {dataset.NumberOfFrames} frames; prepare it with volumes or videos.")
    array = dataset.pixel_array
    slope, intercept = _rescale(dataset)
    if (slope, intercept) != (1.0, 0.0):
        array = array.astype(np.float32) * slope + intercept
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        array = array.max() - (array - array.min())
    step = dataset.get("PixelSpacing") or dataset.get("ImagerPixelSpacing")
    return Volume(
        array=array[None],
        spacing_mm=(1.0, float(step[0]), float(step[1])) if step else None,
        kind="image",
        source=str(path),
        modality=_MODALITIES.get(str(dataset.get("Modality", "")), ""),
    )


def _headers(path: Path) -> list[tuple[Path, pydicom.Dataset]]:
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    found: list[tuple[Path, pydicom.Dataset]] = []
    for file in files:
        try:
            dataset = pydicom.dcmread(file, stop_before_pixels=True)
        except InvalidDicomError:
            continue
        if "Rows" in dataset:
            found.append((file, dataset))
    if not found:
        raise DataError(f"{path} holds no DICOM images.")
    series = {str(head.get("SeriesInstanceUID", "")): str(head.get("SeriesDescription", "")) for _, head in found}
    if len(series) > 1:
        names = ", ".join(f"'{text or uid}'" for uid, text in list(series.items())[:4])
        raise DataError(f"{path} mixes {len(series)} series ({names}); put each into a folder of its own.")
    return found


def _frames(path: Path, dataset: pydicom.Dataset) -> list[_Frame]:
    size = (int(dataset.Rows), int(dataset.Columns))
    number = int(dataset.get("NumberOfFrames", 1) or 1)
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        if "ImagePositionPatient" not in dataset or "ImageOrientationPatient" not in dataset:
            raise DataError(f"{path} has no slice position; it cannot be placed in a volume.")
        if number > 1:
            raise DataError(f"{path} holds {number} frames without positions; prepare it with videos.")
        return [_frame(path, 0, size, position=dataset, orientation=dataset, spacing=dataset, rescale=dataset)]
    shared = dataset.get("SharedFunctionalGroupsSequence", [pydicom.Dataset()])[0]

    def group(own: pydicom.Dataset, name: str) -> pydicom.Dataset:
        holder = own if name in own else shared
        item: pydicom.Dataset = holder[name].value[0] if name in holder else pydicom.Dataset()
        return item

    return [
        _frame(
            path,
            index,
            size,
            position=group(own, "PlanePositionSequence"),
            orientation=group(own, "PlaneOrientationSequence"),
            spacing=group(own, "PixelMeasuresSequence"),
            rescale=group(own, "PixelValueTransformationSequence"),
        )
        for index, own in enumerate(dataset.PerFrameFunctionalGroupsSequence)
    ]


def _frame(
    path: Path,
    number: int,
    size: tuple[int, int],
    *,
    position: pydicom.Dataset,
    orientation: pydicom.Dataset,
    spacing: pydicom.Dataset,
    rescale: pydicom.Dataset,
) -> _Frame:
    if "PixelSpacing" not in spacing:
        raise DataError(f"{path} has no pixel spacing.")
    return _Frame(
        path=path,
        number=number,
        position=np.array(position.ImagePositionPatient, float),
        orientation=np.array(orientation.ImageOrientationPatient, float),
        pixel_spacing=(float(spacing.PixelSpacing[0]), float(spacing.PixelSpacing[1])),
        rescale=_rescale(rescale),
        size=size,
    )


def _rescale(dataset: pydicom.Dataset) -> tuple[float, float]:
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    return (1.0 if slope is None else float(slope)), (0.0 if intercept is None else float(intercept))


def _ordered(frames: Sequence[_Frame], path: Path) -> list[_Frame]:
    first = frames[0]
    for frame in frames:
        if frame.size != first.size:
            raise DataError(f"{path} mixes slices of {first.size} and {frame.size} pixels ({_name(frame)}).")
        if np.abs(frame.orientation - first.orientation).max() > 1e-3:
            raise DataError(f"{path} mixes slice directions: {_name(frame)} is turned against {_name(first)}.")
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    ordered = sorted(frames, key=lambda frame: float(frame.position @ normal))
    depth = np.array([frame.position @ normal for frame in ordered])
    steps = np.diff(depth)
    if not len(steps):
        return ordered
    usual = float(np.median(steps))
    for index, step in enumerate(steps):
        here, following = ordered[index], ordered[index + 1]
        if step < 1e-3:
            raise DataError(
                f"{path} has two slices at {depth[index]:.2f} mm ({_name(here)} and {_name(following)}); "
                "it mixes several acquisitions."
            )
        if abs(step - usual) > _SPACING_TOLERANCE * usual:
            raise DataError(
                f"{path} has a gap: {_name(here)} at {depth[index]:.2f} mm and {_name(following)} at "
                f"{depth[index + 1]:.2f} mm lie {step:.2f} mm apart, the others {usual:.2f} mm; a slice is missing."
            )
    return ordered


def _name(frame: _Frame) -> str:
    return frame.path.name if frame.number == 0 else f"frame {frame.number + 1} of {frame.path.name}"


def _pixels(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = pydicom.dcmread(path).pixel_array
    if array.ndim == 4 or (array.ndim == 3 and array.shape[-1] == 3):
        raise DataError(f"{path} is in colour; a volume is grey.")
    return array


def _affine(frames: Sequence[_Frame], dataset: pydicom.Dataset) -> NDArray[np.float64]:
    first, last = frames[0], frames[-1]
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[:3] * first.pixel_spacing[1]
    affine[:3, 1] = first.orientation[3:] * first.pixel_spacing[0]
    if len(frames) > 1:
        affine[:3, 2] = (last.position - first.position) / (len(frames) - 1)
    else:
        normal = np.cross(first.orientation[:3], first.orientation[3:])
        affine[:3, 2] = normal * float(dataset.get("SliceThickness") or 1.0)
    affine[:3, 3] = first.position
    return _LPS_TO_RAS @ affine
