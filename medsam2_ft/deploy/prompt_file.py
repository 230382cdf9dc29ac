"""What `predict` is told to segment: boxes from the command line, JSON, CSV or a coarse mask, in three spaces.

Spaces of a box, all half-open: `array` is pixels of the (T, H, W) array, x0 y0 x1 y1 or x0 y0 z0 x1 y1 z1 with z along
T; `ijk` is voxels of the file's own grid, i0 j0 k0 i1 j1 k1; `ras` is two opposite corners in mm, in nibabel's world.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam2_ft.errors import DataError, UserError
from medsam2_ft.io.volume import Volume
from medsam2_ft.prompts.prompt import Prompt

SPACES = ("array", "ijk", "ras")
COARSE_DEPTH_SLICES = 2
"""A coarse mask places its object; slices this far beyond it are searched too."""


@dataclass(frozen=True)
class Target:
    """One object to segment: a prompt, a name, and the slices that it may lie on.

    Attributes:
        prompt: on one slice of the (T, H, W) array.
        name: "" where the user gave none.
        depth: first and last + 1 slice; None for all.
    """

    prompt: Prompt
    name: str = ""
    depth: tuple[int, int] | None = None


def target_from_box(
    numbers: Sequence[float],
    volume: Volume,
    *,
    object_id: int,
    space: str = "array",
    index: int | None = None,
    name: str = "",
) -> Target:
    """A box as a target.

    Args:
        numbers: four of them in `array` space, or six.
        volume: the image that it lies on.
        object_id: 1 or more.
        space: `array`, `ijk` or `ras`.
        index: slice of the array to prompt; the middle of the box, or of the volume, where None.
        name: of the object.

    Raises:
        UserError: the wrong count of numbers, a box that is empty or outside, or a space that the source has not.
    """
    values = [float(number) for number in numbers]
    if len(values) == 4 and space == "array":
        middle = len(volume.array) // 2 if index is None else index
        return Target(Prompt(object_id, middle, box=(values[0], values[1], values[2], values[3])), name)
    if len(values) != 6:
        wanted = "four or six" if space == "array" else "six"
        raise UserError(f"A box in {space} space takes {wanted} numbers; {len(values)} were given: {numbers}.")
    low_THW, high_THW = _array_bounds(values, volume, space)
    shape = np.array(volume.array.shape[:3])
    if (high_THW <= low_THW).any():
        raise UserError(f"The box {values} in {space} space is empty: the first corner must lie before the second.")
    if (high_THW <= 0).any() or (low_THW >= shape).any():
        raise UserError(f"The box {values} in {space} space lies outside the image of {tuple(int(s) for s in shape)}.")
    first = max(int(np.floor(low_THW[0] + 1e-6)), 0)
    stop = min(int(np.ceil(high_THW[0] - 1e-6)), int(shape[0]))
    middle = (first + stop - 1) // 2 if index is None else index
    if not first <= middle < stop:
        raise UserError(f"Slice {middle} lies outside the box, which covers the slices {first} to {stop - 1}.")
    box = (float(low_THW[2]), float(low_THW[1]), float(high_THW[2]), float(high_THW[1]))
    return Target(Prompt(object_id, middle, box=box), name, (first, stop))


def read_targets(path: Path, volume: Volume, *, space: str = "array", index: int | None = None) -> list[Target]:
    """Targets from a JSON list of `{"box", "slice", "object", "name", "points", "point_labels"}`, or a CSV.

    A CSV has the columns x0 y0 x1 y1 (z0 z1 for six numbers), and object, name, slice where wanted. Rows without an
    object number are numbered in turn.

    Raises:
        DataError: naming the file and the row.
    """
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    rows = _read_csv(path) if path.suffix.lower() == ".csv" else _read_json(path)
    if not rows:
        raise DataError(f"{path} holds no boxes.")
    targets = []
    for number, row in enumerate(rows, start=1):
        try:
            targets.append(_target_from_row(row, volume, number=number, space=space, index=index))
        except (KeyError, TypeError, ValueError) as error:
            reason = f"there is no {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{path}, entry {number}: {reason}") from None
    return targets


def targets_from_mask(labels: NDArray[Any], volume: Volume, *, margin_px: float = 3.0) -> list[Target]:
    """A target for each label of a coarse mask: the box of its largest slice, a little wider.

    Args:
        labels: (T, H, W) ids on the grid of the volume, nnU-Net's or TotalSegmentator's for instance.
        volume: the image.
        margin_px: how much wider, on each side.

    Raises:
        DataError: another grid, or nothing in it.
    """
    if labels.shape != volume.array.shape[:3]:
        raise DataError(f"The coarse mask is {labels.shape}, the image {volume.array.shape[:3]}: they differ in grid.")
    targets = []
    for object_id in (int(value) for value in np.unique(labels) if value > 0):
        areas = (labels == object_id).sum(axis=(1, 2))
        index = int(areas.argmax())
        rows, columns = np.nonzero(labels[index] == object_id)
        height, width = labels.shape[1:]
        box = (
            max(columns.min() - margin_px, 0.0),
            max(rows.min() - margin_px, 0.0),
            min(columns.max() + 1 + margin_px, float(width)),
            min(rows.max() + 1 + margin_px, float(height)),
        )
        slices = np.flatnonzero(areas)
        first, stop = int(slices[0]) - COARSE_DEPTH_SLICES, int(slices[-1]) + 1 + COARSE_DEPTH_SLICES
        targets.append(Target(Prompt(object_id, index, box=box), "", (max(first, 0), min(stop, len(labels)))))
    if not targets:
        raise DataError("The coarse mask is empty.")
    return targets


def _array_bounds(values: list[float], volume: Volume, space: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pixel edges (t, h, w) of the box that encloses a box of any space; pixel p covers [p, p + 1)."""
    if space == "array":
        x0, y0, z0, x1, y1, z1 = values
        return np.array([z0, y0, x0]), np.array([z1, y1, x1])
    if volume.affine is None or volume.original_affine is None:
        raise UserError(f"This image has no geometry in space, so a box cannot be given in {space}; use array space.")
    corners = np.array([*itertools.product(*zip(values[:3], values[3:], strict=True))], np.float64)
    if space == "ijk":
        if any(low >= high for low, high in zip(values[:3], values[3:], strict=True)):
            raise UserError(f"The box {values} in ijk space is empty: i0 j0 k0 must be less than i1 j1 k1.")
        corners = _transform(volume.original_affine, corners - 0.5)
    edges = _transform(np.linalg.inv(volume.affine).astype(np.float64), corners) + 0.5
    return edges.min(axis=0), edges.max(axis=0)


def _transform(affine: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    moved: NDArray[np.float64] = points @ affine[:3, :3].T + affine[:3, 3]
    return moved


def _target_from_row(row: Mapping[str, Any], volume: Volume, *, number: int, space: str, index: int | None) -> Target:
    object_id, name = int(row.get("object") or number), str(row.get("name") or "")
    chosen = index if row.get("slice") in (None, "") else int(row["slice"])
    points = row.get("points")
    if row.get("box") is not None:
        target = target_from_box(row["box"], volume, object_id=object_id, space=space, index=chosen, name=name)
    elif points:
        target = Target(Prompt(object_id, len(volume.array) // 2 if chosen is None else chosen), name)
    else:
        raise KeyError("box")
    if not points:
        return target
    labels = np.asarray(row.get("point_labels", [1] * len(points)), np.int64)
    clicks = np.asarray(points, np.float32).reshape(-1, 2)
    prompt = Prompt(object_id, target.prompt.slice, box=target.prompt.box, points=clicks, point_labels=labels)
    return Target(prompt, name, target.depth)


def _read_json(path: Path) -> list[Mapping[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}.") from None
    rows = content.get("prompts") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f'{path} must hold a list like [{{"box": [10, 20, 60, 80], "slice": 5, "name": "liver"}}].')
    return rows


def _read_csv(path: Path) -> list[Mapping[str, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [dict(row) for row in csv.DictReader(file)]
    six, four = ("x0", "y0", "z0", "x1", "y1", "z1"), ("x0", "y0", "x1", "y1")
    for row in rows:
        columns = six if row.get("z0") not in (None, "") else four
        if any(row.get(column) in (None, "") for column in columns):
            raise DataError(f"{path} needs the columns x0 y0 x1 y1, filled in every row; it has {', '.join(row)}.")
        row["box"] = [row[column] for column in columns]
    return list(rows)
