"""Where things are in a synthetic clip: label maps painted back to front, pure in their numpy generator.

Four layouts: unlike objects scattered about, many alike packed together, regions within regions, and tissues that tile the plane.
Over frames, objects drift, turn, swell and shrink as if cut by parallel planes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from medsam2_ft.data.shapes import Pose, Shape, blob, random_shape, rasterise

MIN_VISIBLE_SHARE = 0.5
MIN_VISIBLE_PX = 16
Float = NDArray[np.float32]


@dataclass(frozen=True)
class Scene:
    """Where things are in a clip.

    Attributes:
        ids: uint8 (T, H, W), 0 is background; what is painted later covers what was painted earlier.
        drawn_px: pixels of each label before anything covered it, over all frames.
        parents: label -> the label that it lies in and belongs to.
        looks: for each label, which look it shares; look 0 is the background's.
    """

    ids: NDArray[np.uint8]
    drawn_px: dict[int, int]
    parents: dict[int, int] = field(default_factory=dict)
    looks: dict[int, int] = field(default_factory=dict)

    def mask(self, label: int) -> NDArray[np.bool_]:
        """Bool (T, H, W): a label with all that belongs to it."""
        family = {label}
        while grown := {child for child, parent in self.parents.items() if parent in family} - family:
            family |= grown
        return np.asarray(np.any([self.ids == member for member in family], axis=0))

    def objects(self, *, view_HW: NDArray[np.bool_] | None = None) -> list[NDArray[np.bool_]]:
        """Masks of the labels that are mostly visible, cut to the field of view."""
        masks = [self.mask(label) for label in sorted(self.drawn_px)]
        if view_HW is not None:
            masks = [mask & view_HW for mask in masks]
        enough = [max(MIN_VISIBLE_PX, MIN_VISIBLE_SHARE * self.drawn_px[label]) for label in sorted(self.drawn_px)]
        return [mask for mask, least in zip(masks, enough, strict=True) if mask.sum() >= least]


def random_scene(rng: np.random.Generator, *, num_frames: int, size: int) -> Scene:
    """A scene of a random layout."""
    layout = (_scattered, _packed, _nested, _tiled)[rng.choice(4, p=[0.5, 0.2, 0.15, 0.15])]
    return layout(rng, num_frames=num_frames, size=size)


def _motion(rng: np.random.Generator, start: Pose, *, num_frames: int) -> list[Pose]:
    """Poses over frames: drift, turn, and swell and shrink as an ellipsoid cut by parallel planes."""
    if num_frames == 1:
        return [start]
    t = np.arange(num_frames)
    peak, reach = rng.uniform(0, num_frames), num_frames * rng.uniform(0.4, 1.5)
    scale = np.sqrt(np.clip(1 - ((t - peak) / reach) ** 2, 0, None))
    drift = rng.normal(0, 0.05 * start.radius, 2)
    turn = rng.normal(0, 0.04)
    return [
        Pose(start.x + drift[0] * k, start.y + drift[1] * k, start.radius * scale[k], start.angle + turn * k) for k in t
    ]


def _paint(ids: NDArray[np.uint8], label: int, shape: Shape, poses: list[Pose]) -> int:
    """Paint a label into all frames; returns its number of pixels."""
    count = 0
    for frame, pose in zip(ids, poses, strict=True):
        if pose.radius >= 1:
            drawn = rasterise(shape, pose, size=len(frame))
            frame[drawn] = label
            count += int(drawn.sum())
    return count


def _random_pose(rng: np.random.Generator, *, size: int, smallest: float = 0.025, largest: float = 0.45) -> Pose:
    radius = size * np.exp(rng.uniform(np.log(smallest), np.log(largest)))
    x, y = rng.uniform(0.05, 0.95, 2) * size
    return Pose(x, y, radius, rng.uniform(0, 2 * np.pi))


def _scattered(rng: np.random.Generator, *, num_frames: int, size: int) -> Scene:
    """Unlike objects anywhere, the large ones behind; some share a look."""
    ids = np.zeros((num_frames, size, size), np.uint8)
    count = int(rng.integers(2, 10))
    poses = sorted((_random_pose(rng, size=size) for _ in range(count)), key=lambda pose: -pose.radius)
    drawn = {
        i + 1: _paint(ids, i + 1, random_shape(rng), _motion(rng, pose, num_frames=num_frames))
        for i, pose in enumerate(poses)
    }
    looks = {label: int(rng.integers(1, count + 1)) for label in drawn}
    return Scene(ids, drawn, looks=looks)


def _packed(rng: np.random.Generator, *, num_frames: int, size: int) -> Scene:
    """Many alike on a jittered grid, touching or overlapping, as cells and nuclei."""
    ids = np.zeros((num_frames, size, size), np.uint8)
    rows = int(rng.integers(3, 13))
    pitch, spread, irregularity = size / rows, rng.uniform(0.05, 0.35), rng.uniform(0, 0.2)
    radius = pitch * rng.uniform(0.3, 0.65)
    drawn = {}
    for label, cell in enumerate(rng.permutation(rows * rows)[: int(rows * rows * rng.uniform(0.4, 1.0))], start=1):
        x, y = (np.array([cell % rows, cell // rows]) + 0.5 + rng.normal(0, spread, 2)) * pitch
        pose = Pose(x, y, radius * rng.uniform(0.7, 1.2), rng.uniform(0, 2 * np.pi))
        shape = blob(rng, irregularity=irregularity)
        drawn[label] = _paint(ids, label, shape, _motion(rng, pose, num_frames=num_frames))
    return Scene(ids, drawn, looks=dict.fromkeys(drawn, 1))


def _nested(rng: np.random.Generator, *, num_frames: int, size: int) -> Scene:
    """Objects within objects, two or three deep, and bystanders behind them."""
    scene = _scattered(rng, num_frames=num_frames, size=size)
    ids, drawn, looks, parents = scene.ids, scene.drawn_px, scene.looks, scene.parents
    for _ in range(rng.integers(1, 4)):
        pose, parent = _random_pose(rng, size=size, smallest=0.15, largest=0.4), None
        for _ in range(rng.integers(2, 4)):
            label = max(drawn) + 1
            irregularity = rng.uniform(0, 0.12)
            drawn[label] = _paint(
                ids, label, blob(rng, irregularity=irregularity), _motion(rng, pose, num_frames=num_frames)
            )
            looks[label] = label
            if parent is not None:
                parents[label] = parent
            shift = rng.uniform(-0.2, 0.2, 2) * pose.radius
            pose, parent = (
                Pose(pose.x + shift[0], pose.y + shift[1], pose.radius * rng.uniform(0.35, 0.65), pose.angle),
                label,
            )
    return scene


def _tiled(rng: np.random.Generator, *, num_frames: int, size: int) -> Scene:
    """A plane parted by wavy borders, each part another tissue; a few small objects on top."""
    count = int(rng.integers(4, 14))
    seeds, drift = rng.uniform(0, size, (count, 2)), rng.normal(0, 0.01 * size, (count, 2))
    wave = [
        rng.uniform(0.02, 0.12) * size * smooth_noise(rng, size=size, cells=int(rng.integers(3, 9))) for _ in range(2)
    ]
    y, x = np.mgrid[:size, :size].astype(np.float32)
    x, y = x + wave[0], y + wave[1]
    ids = np.empty((num_frames, size, size), np.uint8)
    for t in range(num_frames):
        at = (seeds + drift * t).astype(np.float32)
        ids[t] = np.argmin((x - at[:, 0, None, None]) ** 2 + (y - at[:, 1, None, None]) ** 2, axis=0)
    # Part 0 is the background: it belongs to no object.
    drawn = {label: int(n) for label, n in enumerate(np.bincount(ids.ravel(), minlength=count)) if label and n}
    for label in range(count, count + int(rng.integers(0, 5))):
        pose = _random_pose(rng, size=size, largest=0.12)
        drawn[label] = _paint(ids, label, random_shape(rng), _motion(rng, pose, num_frames=num_frames))
    return Scene(ids, drawn, looks={label: label for label in drawn})


def smooth_noise(rng: np.random.Generator, *, size: int, cells: int) -> Float:
    """Noise (size, size) of unit deviation whose grains are size / cells wide."""
    coarse = rng.standard_normal((cells + 3, cells + 3), dtype=np.float32)
    return np.asarray(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), np.float32)
