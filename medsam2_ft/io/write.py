"""Masks out: back onto the grid of the file they were predicted from, voxel for voxel."""

import os
from pathlib import Path
from typing import Any, Protocol

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medsam2_ft.errors import DataError

_TOLERANCE = 1e-2


class Geometry(Protocol):
    """What `write_mask` needs to know of the image; `Volume` and `Case` both have it."""

    @property
    def affine(self) -> NDArray[np.float64] | None: ...  # noqa: D102
    @property
    def original_affine(self) -> NDArray[np.float64] | None: ...  # noqa: D102
    @property
    def original_shape(self) -> tuple[int, ...] | None: ...  # noqa: D102
    @property
    def kept_slices(self) -> NDArray[np.int64] | None: ...  # noqa: D102


def to_source_grid(labels: NDArray[Any], *, like: Geometry) -> NDArray[Any]:
    """Turn a (T, H, W) mask into the axis order, directions and size of its source file.

    The two affines differ by a signed permutation, which is undone exactly; slices that were not kept come back empty.

    Args:
        labels: (T, H, W) ids on the case's grid.
        like: the image's geometry.

    Returns:
        ids of `like.original_shape`.

    Raises:
        DataError: if the geometry is unknown, inconsistent, or not that of `labels`.
    """
    if like.affine is None or like.original_affine is None or like.original_shape is None:
        raise DataError("The source's geometry is unknown, so a mask cannot be written back onto its grid.")
    to_source = np.linalg.inv(like.original_affine) @ like.affine
    turn = np.rint(to_source[:3, :3]).astype(int)
    if np.abs(to_source[:3, :3] - turn).max() > _TOLERANCE or not np.array_equal(
        np.abs(turn) @ np.abs(turn).T, np.eye(3)
    ):
        raise DataError("The case's affine is not its source's grid turned by whole axes; it cannot be written back.")
    axes = [int(np.flatnonzero(row)[0]) for row in turn]
    flips = [int(row.sum()) < 0 for row in turn]
    full_T = like.original_shape[axes.index(0)]
    if like.kept_slices is not None:
        whole = np.zeros((full_T, *labels.shape[1:]), labels.dtype)
        whole[like.kept_slices] = labels
        labels = whole
    source = labels.transpose(axes)
    if source.shape != tuple(like.original_shape):
        raise DataError(
            f"The mask is {source.shape} on the source grid, but the source is {tuple(like.original_shape)}."
        )
    return np.ascontiguousarray(np.flip(source, tuple(axis for axis, flip in enumerate(flips) if flip)))


def write_mask(path: Path | str, labels: NDArray[Any], *, like: Geometry) -> Path:
    """Write a (T, H, W) label mask as a volume on its image's original grid.

    Args:
        path: ends in .nii, .nii.gz, .nrrd, .mha or .mhd.
        labels: (T, H, W) ids, bool or integer.
        like: the `Volume` or `Case` that was segmented.

    Raises:
        DataError: for an unknown ending, or as `to_source_grid`.
    """
    path = Path(path)
    name = path.name.lower()
    ids = to_source_grid(labels, like=like)
    ids = ids.astype(np.uint8 if ids.size == 0 or ids.max() < 256 else np.uint16)
    assert like.original_affine is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    # The draft keeps the ending, which tells the writers the format.
    draft = path.with_name(f".{os.getpid()}.{path.name}")
    if name.endswith((".nii", ".nii.gz")):
        image = nib.Nifti1Image(ids, like.original_affine)
        image.set_sform(like.original_affine, code=1)
        image.set_qform(like.original_affine, code=1)
        nib.save(image, draft)
    elif name.endswith((".nrrd", ".mha")):
        from medsam2_ft.io.itk import write_array

        write_array(draft, ids, like.original_affine)
    else:
        raise DataError(f"{path.name}: masks are written as .nii.gz, .nii, .nrrd or .mha.")
    draft.replace(path)
    return path
