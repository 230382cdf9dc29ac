"""How well a predicted mask agrees with the truth: DSC, NSD and HD95, for training, benchmark and `score` alike.

Masks are boolean numpy arrays of equal shape, (H, W) or (T, H, W); spacing is in the order of the array's axes, in mm.
Without a spacing every length is in pixels. An image is scored as (H, W): as (1, H, W) it would be a slab with a front
and a back surface.

Empty rules. Both empty: DSC = NSD = 1, HD95 = 0. One empty: DSC = NSD = 0, HD95 = inf. Nothing here ever returns NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchmetrics import Metric

Mask = npt.NDArray[np.bool_]

LEGACY_TOLERANCE = 2.0
_FIXED_POINT = 1 << 40
_SLAB_VOXELS = 1 << 20
"""Voxels whose surface is sought at once: MONAI takes 100 bytes for each."""


def dsc(pred: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Dice similarity coefficient, 2 |P and T| / (|P| + |T|).

    Args:
        pred: predicted mask of any shape; non-zero is foreground.
        truth: true mask of the same shape.

    Returns:
        A number in [0, 1]; 1 if both are empty.

    Raises:
        ValueError: if the shapes differ.
    """
    pred, truth = _as_masks(pred, truth)
    total = np.count_nonzero(pred) + np.count_nonzero(truth)
    return 2.0 * np.count_nonzero(pred & truth) / total if total else 1.0


def nsd(
    pred: npt.ArrayLike,
    truth: npt.ArrayLike,
    *,
    spacing_mm: Sequence[float] | None = None,
    tolerance_mm: float = 2.0,
) -> float:
    """Normalised surface Dice: the share of both surfaces, by area, that lies within a tolerance of the other.

    This is DeepMind's area-weighted definition (Nikolov et al. 2018, arXiv:1809.04430), in MONAI's implementation.

    Args:
        pred: predicted mask, (H, W) or (T, H, W).
        truth: true mask of the same shape.
        spacing_mm: voxel size in the order of the array's axes; None counts in pixels, `tolerance_mm` too.
        tolerance_mm: largest distance at which two surfaces count as agreeing.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: if the shapes differ, are neither 2D nor 3D, or do not fit the spacing.
    """
    pred, truth = _as_masks(pred, truth)
    if not pred.any() or not truth.any():
        return float(pred.any() == truth.any())
    sides = _surfaces(pred, truth, spacing_mm)
    agreeing = sum(areas[distances <= tolerance_mm].sum() for distances, areas in sides)
    return float(agreeing / sum(areas.sum() for _, areas in sides))


def nsd_legacy(pred: npt.ArrayLike, truth: npt.ArrayLike, *, spacing_mm: Sequence[float] | None = None) -> float:
    """NSD as the published code computes it, to compare with published tables only: wrong on anisotropic voxels.

    bowang-lab/MedSAM hands the file's (x, y, z) spacing to the surface distances of a (z, y, x) array, with 2 mm for
    every structure; 2D images had unit spacing. A mask one whole 5 mm slice off can so score 1.0.

    Args:
        pred: predicted mask, (H, W) or (T, H, W).
        truth: true mask of the same shape.
        spacing_mm: voxel size in the order of the array's axes, as for `nsd`; the swap happens here. Ignored in 2D.

    Returns:
        A number in [0, 1].
    """
    swapped = spacing_mm[::-1] if spacing_mm is not None and np.ndim(truth) == 3 else None
    return nsd(pred, truth, spacing_mm=swapped, tolerance_mm=LEGACY_TOLERANCE)


def hd95(pred: npt.ArrayLike, truth: npt.ArrayLike, *, spacing_mm: Sequence[float] | None = None) -> float:
    """The 95th percentile, by surface area, of the distance to the other surface; the larger of the two directions.

    Args:
        pred: predicted mask, (H, W) or (T, H, W).
        truth: true mask of the same shape.
        spacing_mm: voxel size in the order of the array's axes; None counts in pixels.

    Returns:
        A length in mm (or pixels): 0 if both masks are empty, inf if one is.

    Raises:
        ValueError: if the shapes differ, are neither 2D nor 3D, or do not fit the spacing.
    """
    pred, truth = _as_masks(pred, truth)
    if not pred.any() or not truth.any():
        return 0.0 if pred.any() == truth.any() else float("inf")
    return max(_percentile(distances, areas, 0.95) for distances, areas in _surfaces(pred, truth, spacing_mm))


class MeanDSC(Metric):
    """Mean DSC over objects, whole and per region, exact over any number of ranks.

    Sums are fixed-point integers, so that neither the order of cases nor the number of ranks can change the last digit.

    Args:
        regions: names of the regions that can occur, the same on every rank.
    """

    full_state_update = False
    sums: torch.Tensor
    counts: torch.Tensor

    def __init__(self, regions: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.regions = tuple(regions)
        for state in ("sums", "counts"):
            self.add_state(state, torch.zeros(len(self.regions), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, pred: npt.ArrayLike, truth: npt.ArrayLike, *, region: str) -> None:
        """Add one object: its two masks, of any equal shape, and its region's name."""
        index = self.regions.index(region)
        self.sums[index] += round(dsc(pred, truth) * _FIXED_POINT)
        self.counts[index] += 1

    def compute(self) -> dict[str, torch.Tensor]:
        """`"mean"` over all objects, and the mean of every region that had one."""
        sums, counts = self.sums.cpu().double() / _FIXED_POINT, self.counts.cpu()
        means = {"mean": (sums.sum() / counts.sum().clamp(min=1)).float()}
        means |= {name: (sums[i] / counts[i]).float() for i, name in enumerate(self.regions) if counts[i]}
        return means


def _as_masks(pred: npt.ArrayLike, truth: npt.ArrayLike) -> tuple[Mask, Mask]:
    pred, truth = np.asarray(pred).astype(bool, copy=False), np.asarray(truth).astype(bool, copy=False)
    if pred.shape != truth.shape:
        raise ValueError(f"the predicted mask has shape {pred.shape}, the true one {truth.shape}")
    return pred, truth


def _surfaces(
    pred: Mask, truth: Mask, spacing_mm: Sequence[float] | None
) -> tuple[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]], ...]:
    """(distances to the other surface, areas) of the surface elements of prediction and truth, neither empty."""
    # MONAI's metrics take seconds to import, and `import medsam2_ft.metrics` must stay cheap for the command line.
    from monai.metrics.utils import get_mask_edges
    from scipy.spatial import KDTree

    spacing = (1.0,) * truth.ndim if spacing_mm is None else tuple(float(size) for size in spacing_mm)
    if truth.ndim not in (2, 3) or len(spacing) != truth.ndim:
        raise ValueError(
            f"a mask of {truth.ndim} dimensions with a spacing of {len(spacing)} numbers: give 2 and 2, or 3 and 3"
        )
    window = _bounding_box(pred | truth)
    # One empty voxel all round closes surfaces at the border; cropping here is twenty times faster than MONAI's own.
    padded = [torch.from_numpy(np.pad(mask[window], 1)) for mask in (pred, truth)]
    step, last = max(1, _SLAB_VOXELS // padded[0][0].numel()), len(padded[0]) - 1
    points: tuple[list[npt.NDArray[np.float64]], ...] = [], []
    areas: tuple[list[npt.NDArray[np.float32]], ...] = [], []
    for start in range(0, last, step):  # slabs that share a slice, as a surface element lies between two
        slab = (mask[start : start + step + 1] for mask in padded)
        *found, area_pred, area_truth = map(np.asarray, get_mask_edges(*slab, spacing=spacing, crop=False))
        for side, (edge, area) in enumerate(zip(found, (area_pred, area_truth), strict=True)):
            points[side].append((np.argwhere(edge) + np.eye(edge.ndim)[0] * start) * spacing)
            areas[side].append(area[edge])
    points_pred, points_truth = map(np.concatenate, points)
    areas_pred, areas_truth = map(np.concatenate, areas)
    # A tree holds the surfaces alone, where distance transforms would hold every voxel of the window.
    return (
        (KDTree(points_truth).query(points_pred)[0].astype(np.float32), areas_pred),
        (KDTree(points_pred).query(points_truth)[0].astype(np.float32), areas_truth),
    )


def _bounding_box(mask: Mask) -> tuple[slice, ...]:
    window = []
    for axis in range(mask.ndim):
        occupied = np.flatnonzero(mask.any(axis=tuple(i for i in range(mask.ndim) if i != axis)))
        window.append(slice(occupied[0], occupied[-1] + 1))
    return tuple(window)


def _percentile(distances: npt.NDArray[np.float32], areas: npt.NDArray[np.float32], share: float) -> float:
    order = np.argsort(distances)
    reached = np.cumsum(areas[order], dtype=np.float64)
    return float(distances[order][min(int(np.searchsorted(reached, share * reached[-1])), len(order) - 1)])
