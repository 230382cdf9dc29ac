"""A mask's grid against its image's: compared, and on request moved onto it by nearest neighbour."""

from dataclasses import replace

import numpy as np
from scipy.ndimage import affine_transform

from medsam2_ft.errors import DataError
from medsam2_ft.io.volume import Volume

_TOLERANCE = 0.1
"""How far a mask's corners may lie from the image's, in voxels: headers are rounded, patients are not."""


def on_grid(mask: Volume, *, like: Volume, resample: bool = False) -> Volume:
    """The mask on its image's (T, H, W) grid.

    Args:
        mask: as `read_volume` gives it.
        like: the image.
        resample: whether a mask on another grid is moved by nearest neighbour instead of refused.

    Raises:
        DataError: if the grids differ and `resample` is off, or if the two do not even touch.
    """
    difference = _difference(mask, like)
    if not difference:
        # Equal grids of nearly cubic voxels can still have been turned to different planes by rounding.
        return mask if mask.array.shape == like.array.shape else _resampled(mask, like)
    if resample:
        moved = _resampled(mask, like)
        if mask.array.any() and not moved.array.any():
            raise DataError(f"{mask.source} shows nothing inside its image; is it the mask of another case?")
        return moved
    raise DataError(
        f"{mask.source} {difference}; is it the mask of another case? "
        "If both show the same patient, use --resample-masks."
    )


def _difference(mask: Volume, like: Volume) -> str:
    assert like.original_affine is not None and mask.original_affine is not None
    assert like.original_shape is not None and mask.original_shape is not None
    if mask.original_shape != like.original_shape:
        return f"is {_times(mask.original_shape)} voxels, its image {_times(like.original_shape)}"
    corners = np.array([[i, j, k, 1.0] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    corners[:, :3] *= np.subtract(like.original_shape, 1)
    apart = np.linalg.norm(((mask.original_affine - like.original_affine) @ corners.T)[:3], axis=0).max()
    if apart > _TOLERANCE * min(like.spacing_mm or (1.0,)):
        return f"lies on another grid than its image (corners up to {apart:.3g} mm apart)"
    return ""


def _resampled(mask: Volume, like: Volume) -> Volume:
    assert mask.affine is not None and like.affine is not None
    to_mask = np.linalg.inv(mask.affine) @ like.affine
    array = affine_transform(
        mask.array, to_mask[:3, :3], to_mask[:3, 3], output_shape=like.array.shape[:3], order=0, mode="constant", cval=0
    )
    return replace(mask, array=array, affine=like.affine, spacing_mm=like.spacing_mm)


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
