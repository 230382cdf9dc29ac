"""Masks of one object over a volume, held small, and the npz file that keeps all predicted masks of a case.

The file holds one boolean array a row of rows.csv, (H, W) for a slice and (T, H, W) for a volume, under the key
`LABEL|INSTANCE|PROMPT_SLICE|SEED` (with `|KNOB=VALUE` in sweeps). `evidence.py` finds a row's.
"""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from medsam2_ft.prompts.sampling import tight_box

Window = tuple[slice, ...]


class SparseMask:
    """A boolean (T, H, W) mask stored slice by slice as packed bits of its bounding box.

    Twelve organs over 600 slices of 1024 x 1024 so take megabytes, not gigabytes.

    Args:
        shape: (T, H, W).
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self._slices: dict[int, tuple[int, int, tuple[int, int], NDArray[np.uint8], int]] = {}

    @classmethod
    def from_dense(cls, mask: NDArray[np.bool_]) -> "SparseMask":
        """From a (T, H, W) array."""
        found = cls((mask.shape[0], mask.shape[1], mask.shape[2]))
        for t in np.flatnonzero(mask.any(axis=(1, 2))):
            found[int(t)] = mask[t]
        return found

    def __setitem__(self, t: int, mask_HW: NDArray[np.bool_]) -> None:
        box = tight_box(mask_HW)
        self._slices.pop(t, None)
        if box is not None:
            x0, y0, x1, y1 = (int(side) for side in box)
            crop = mask_HW[y0:y1, x0:x1]
            self._slices[t] = (y0, x0, (y1 - y0, x1 - x0), np.packbits(crop), int(np.count_nonzero(crop)))

    def __getitem__(self, t: int) -> NDArray[np.bool_]:
        plane: NDArray[np.bool_] = self.dense((slice(t, t + 1), slice(0, self.shape[1]), slice(0, self.shape[2])))[0]
        return plane

    @property
    def slices(self) -> list[int]:
        """Slices on which the mask is not empty, in order."""
        return sorted(self._slices)

    def box(self, t: int) -> tuple[float, float, float, float] | None:
        """Tight half-open box (x0, y0, x1, y1) on slice t, or None."""
        if t not in self._slices:
            return None
        y0, x0, (height, width), _, _ = self._slices[t]
        return float(x0), float(y0), float(x0 + width), float(y0 + height)

    def count(self, t: int | None = None) -> int:
        """Voxels, on one slice or in all."""
        wanted = self._slices.values() if t is None else [self._slices[t]] if t in self._slices else []
        return sum(voxels for *_, voxels in wanted)

    def window(self) -> Window | None:
        """The bounding box as three slices, or None where the mask is empty."""
        if not self._slices:
            return None
        boxes = np.array([self.box(t) for t in self._slices], int)
        (x0, y0), (x1, y1) = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
        return slice(min(self._slices), max(self._slices) + 1), slice(int(y0), int(y1)), slice(int(x0), int(x1))

    def dense(self, window: Window | None = None) -> NDArray[np.bool_]:
        """The mask as an array, whole or inside a window that holds all of its foreground on the window's slices."""
        rows, lines, columns = window or tuple(slice(0, size) for size in self.shape)
        array = np.zeros((rows.stop - rows.start, lines.stop - lines.start, columns.stop - columns.start), bool)
        for t in range(rows.start, rows.stop):
            if t in self._slices:
                y0, x0, (height, width), bits, _ = self._slices[t]
                crop = np.unpackbits(bits, count=height * width).reshape(height, width).astype(bool)
                array[t - rows.start, y0 - lines.start :, x0 - columns.start :][:height, :width] = crop
        return array


def union_window(one: SparseMask, other: SparseMask) -> Window | None:
    """The bounding box of two masks together, or None where both are empty."""
    windows = [window for window in (one.window(), other.window()) if window is not None]
    if not windows:
        return None
    return tuple(slice(min(w[axis].start for w in windows), max(w[axis].stop for w in windows)) for axis in range(3))


def masks_path(folder: Path, *, model: str, dataset: str, case: str) -> Path:
    """Where a run keeps a model's masks of a case."""
    return folder / "masks" / model / dataset / f"{case}.npz"


def mask_key(row: Any) -> str:
    """The name of a row's mask in that file; a row is a `Row`, or one of `read_rows(...).itertuples()`."""
    key = f"{row.label}|{int(row.instance)}|{int(row.prompt_slice)}|{int(row.seed)}"
    variant = row.protocol.partition("/")[2]
    return f"{key}|{variant}" if variant else key


def save_masks(path: Path, masks: Mapping[str, SparseMask | NDArray[np.bool_]]) -> None:
    """Write an npz in one step, one array in memory at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, mask in masks.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as stream:
                npy.write_array(stream, mask.dense() if isinstance(mask, SparseMask) else mask, allow_pickle=False)
    draft.replace(path)
