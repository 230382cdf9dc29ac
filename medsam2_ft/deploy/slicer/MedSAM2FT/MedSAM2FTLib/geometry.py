"""From Slicer's millimetres to the server's pixels and back.

A volume's array is indexed [k, j, i], as `slicer.util.arrayFromVolume` gives it; `ijk_to_ras` maps (i, j, k, 1) to RAS
mm, voxel centres at whole numbers. A slice is `array.take(index, axis)`; x runs along the last array axis left, y along
the other.
Pixel p covers [p, p + 1) in box coordinates, so a voxel coordinate gains one half on its way into a box.
"""

from __future__ import annotations

from typing import Any

import numpy as np

IJK_OF_AXIS = (2, 1, 0)
"""Array axis -> position in (i, j, k)."""


def matrix_to_array(matrix: Any) -> np.ndarray:
    """A vtkMatrix4x4 (anything with `GetElement`) as a 4x4 float array."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)], float)


def slice_axis(ijk_to_ras: np.ndarray, normal_ras: np.ndarray) -> int:
    """The array axis whose direction in space is nearest to the normal of a slice view."""
    directions = ijk_to_ras[:3, :3] / np.linalg.norm(ijk_to_ras[:3, :3], axis=0)
    along = np.abs(directions.T @ np.asarray(normal_ras, float))
    return int(IJK_OF_AXIS[int(np.argmax(along))])


def other_axes(axis: int) -> tuple[int, int]:
    """Array axes of a slice's rows (y) and columns (x)."""
    rows, columns = (other for other in range(3) if other != axis)
    return rows, columns


def to_ijk(ijk_to_ras: np.ndarray, points_ras: np.ndarray) -> np.ndarray:
    """RAS points (P, 3) in mm as voxel coordinates (P, 3) in (i, j, k) order."""
    points = np.atleast_2d(np.asarray(points_ras, float))
    return (np.c_[points, np.ones(len(points))] @ np.linalg.inv(ijk_to_ras).T)[:, :3]


def roi_corners(object_to_world: np.ndarray, size_mm: np.ndarray) -> np.ndarray:
    """The eight corners (8, 3) in RAS mm of a markups ROI, which may be rotated."""
    signs = np.array(np.meshgrid(*[(-0.5, 0.5)] * 3)).reshape(3, 8)
    local = np.r_[signs * np.asarray(size_mm, float)[:, None], np.ones((1, 8))]
    return (object_to_world @ local)[:3].T


def slice_index(ijk_to_ras: np.ndarray, shape: tuple[int, ...], axis: int, point_ras: np.ndarray) -> int:
    """The slice along `axis` that a point lies on.

    Raises:
        ValueError: the point lies outside the volume.
    """
    index = int(np.floor(to_ijk(ijk_to_ras, point_ras)[0, IJK_OF_AXIS[axis]] + 0.5))
    if not 0 <= index < shape[axis]:
        raise ValueError("The slice view shows a place outside the volume; scroll back into it.")
    return index


def box_on_slice(
    ijk_to_ras: np.ndarray, shape: tuple[int, ...], axis: int, corners_ras: np.ndarray
) -> tuple[list[float], tuple[int, int]]:
    """A box in space as (x0, y0, x1, y1) on the slices along `axis`, and the first and last slice that it touches.

    Raises:
        ValueError: the box lies outside the volume.
    """
    edges = to_ijk(ijk_to_ras, corners_ras) + 0.5
    low, high = edges.min(axis=0), edges.max(axis=0)
    bounds = []
    for array_axis in range(3):
        ijk = IJK_OF_AXIS[array_axis]
        start, stop = max(low[ijk], 0.0), min(high[ijk], float(shape[array_axis]))
        if start >= stop:
            raise ValueError("The box lies outside the volume; move it onto the structure.")
        bounds.append((start, stop))
    rows, columns = other_axes(axis)
    (y0, y1), (x0, x1), (z0, z1) = bounds[rows], bounds[columns], bounds[axis]
    first = int(np.floor(z0 + 1e-6))
    last = max(first, int(np.ceil(z1 - 1e-6)) - 1)
    return [float(x0), float(y0), float(x1), float(y1)], (first, last)


def click_on_slice(ijk_to_ras: np.ndarray, axis: int, point_ras: np.ndarray) -> tuple[float, float]:
    """A point in space as (x, y) of the pixel centre convention: 0 is the centre of the first pixel."""
    ijk = to_ijk(ijk_to_ras, point_ras)[0]
    rows, columns = other_axes(axis)
    return float(ijk[IJK_OF_AXIS[columns]]), float(ijk[IJK_OF_AXIS[rows]])
