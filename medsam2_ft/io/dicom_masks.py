"""Masks in DICOM: segmentation objects (SEG) through highdicom, and contours (RTSTRUCT).

Both are returned on the image's own grid, one mask a structure, because structures may overlap.
"""

from pathlib import Path

import numpy as np
import pydicom
from matplotlib.path import Path as Polygon
from numpy.typing import NDArray

from medsam2_ft.errors import DataError
from medsam2_ft.io.faults import reading
from medsam2_ft.io.volume import Volume

_OFF_GRID = 0.05
"""How far, in voxels, a segmentation's grid may be off the image's."""


def read_dicom_masks(path: Path | str, *, like: Volume) -> dict[str, NDArray[np.bool_]]:
    """Read every structure of a SEG or RTSTRUCT.

    Args:
        path: the file.
        like: the image the structures were drawn on.

    Returns:
        structure name -> bool (T, H, W) on the image's grid.

    Raises:
        DataError: if the file is neither, or lies on another grid than the image.
    """
    path = Path(path)
    with reading(path):
        modality = str(pydicom.dcmread(path, specific_tags=["Modality"]).get("Modality", ""))
        if modality == "SEG":
            return _segments(path, like)
        if modality == "RTSTRUCT":
            return _contours(pydicom.dcmread(path), path, like)
    raise DataError(f"{path} is a DICOM file of modality '{modality}'; masks are SEG or RTSTRUCT.")


def _segments(path: Path, like: Volume) -> dict[str, NDArray[np.bool_]]:
    try:
        import highdicom
    except ImportError:
        raise DataError(f"{path} is a DICOM SEG; reading it needs: pip install 'medsam2-ft[dicomseg]'.") from None
    segmentation = highdicom.seg.segread(path)
    masks: dict[str, NDArray[np.bool_]] = {}
    for number in segmentation.segment_numbers:
        volume = segmentation.get_volume(segment_numbers=[number], combine_segments=False)
        name = str(segmentation.get_segment_description(number).segment_label)
        # highdicom's index is (slice, row, column) in LPS.
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(volume.affine)
        array = np.asarray(volume.array)[..., 0] > 0
        placed = _placed(array, affine, path, like)
        masks[name] = masks[name] | placed if name in masks else placed
    return masks


def _placed(mask: NDArray[np.bool_], affine: NDArray[np.float64], path: Path, like: Volume) -> NDArray[np.bool_]:
    """Put a mask whose grid is a part of the image's grid, in any axis order, into the whole."""
    assert like.affine is not None
    index = np.argwhere(mask)
    placed = np.linalg.inv(like.affine) @ affine @ np.c_[index, np.ones(len(index))].T
    target = np.rint(placed[:3]).astype(int)
    shape = like.array.shape[:3]
    if index.size and np.abs(placed[:3] - target).max() > _OFF_GRID:
        raise DataError(f"{path} lies on another grid than its image {like.source}.")
    if index.size and (target.min() < 0 or np.any(target.max(axis=1) >= shape)):
        raise DataError(f"{path} reaches outside its image {like.source}; is it the mask of another case?")
    whole = np.zeros(shape, bool)
    whole[tuple(target)] = True
    return whole


def _contours(dataset: pydicom.Dataset, path: Path, like: Volume) -> dict[str, NDArray[np.bool_]]:
    assert like.original_affine is not None and like.original_shape is not None and like.affine is not None
    names = {int(roi.ROINumber): str(roi.ROIName) for roi in dataset.StructureSetROISequence}
    to_index = np.linalg.inv(np.diag([-1.0, -1.0, 1.0, 1.0]) @ like.original_affine)
    masks: dict[str, NDArray[np.bool_]] = {}
    for roi in dataset.get("ROIContourSequence", []):
        whole = np.zeros(like.original_shape, bool)
        for contour in roi.get("ContourSequence", []):
            if str(contour.ContourGeometricType) != "CLOSED_PLANAR":
                continue
            points = np.reshape(np.array(contour.ContourData, float), (-1, 3))
            index = (to_index @ np.c_[points, np.ones(len(points))].T)[:3]
            k = round(float(index[2].mean()))
            if np.ptp(index[2]) > 0.5 or not 0 <= k < like.original_shape[2]:
                raise DataError(
                    f"{path}: a contour of '{names[int(roi.ReferencedROINumber)]}' lies off the image's slices."
                )
            # Exclusive or, so that an inner contour is a hole.
            whole[..., k] ^= _filled(index[:2].T, like.original_shape[:2])
        affine = like.original_affine
        masks[names[int(roi.ReferencedROINumber)]] = _placed(whole, affine, path, like)
    if not masks:
        raise DataError(f"{path} holds no contours.")
    return masks


def _filled(corners: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The pixels whose centres are inside a polygon, (i, j) order."""
    mask = np.zeros(shape[:2], bool)
    low = np.maximum(np.floor(corners.min(axis=0)).astype(int), 0)
    high = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 1, shape[:2])
    if np.any(high <= low):
        return mask
    grid = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"), axis=-1)
    inside = Polygon(corners).contains_points(grid.reshape(-1, 2)).reshape(grid.shape[:2])
    mask[low[0] : high[0], low[1] : high[1]] = inside
    return mask
