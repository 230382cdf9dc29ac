"""Random outlines for synthetic images: blobs, lobes, polygons, rings, crescents, tubes and trees.

Convention: points are (x, y) in a unit disc round the origin; `Pose` carries them to pixels. Every function is pure in its numpy
generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]

NUM_POINTS = 72
SUBPIXEL_BITS = 4
"""Fractional bits of the coordinates handed to OpenCV."""


@dataclass(frozen=True)
class Part:
    """One outline: filled, or drawn as a line of a width.

    Attributes:
        points: (P, 2).
        width: of the line in units of the disc, or None for a filled outline.
        is_hole: whether it is taken away from what was drawn before.
    """

    points: Points
    width: float | None = None
    is_hole: bool = False


Shape = tuple[Part, ...]


@dataclass(frozen=True)
class Pose:
    """Where a shape lies: centre and radius in pixels, angle in radians."""

    x: float
    y: float
    radius: float
    angle: float = 0.0

    def apply(self, points: Points) -> Points:
        """Points of the unit disc in pixels."""
        cos, sin = np.cos(self.angle) * self.radius, np.sin(self.angle) * self.radius
        turned = points @ np.array([[cos, sin], [-sin, cos]], np.float32)
        return np.asarray(turned + np.array([self.x, self.y]), np.float32)


def rasterise(shape: Shape, pose: Pose, *, size: int) -> NDArray[np.bool_]:
    """The pixels (size, size) of a posed shape."""
    canvas = np.zeros((size, size), np.uint8)
    for part in shape:
        pixels = np.round(pose.apply(part.points) * 2**SUBPIXEL_BITS).astype(np.int32)
        value = 0 if part.is_hole else 1
        if part.width is None:
            cv2.fillPoly(canvas, [pixels], value, shift=SUBPIXEL_BITS)
        else:
            width = max(1, round(part.width * pose.radius))
            cv2.polylines(canvas, [pixels], False, value, thickness=width, shift=SUBPIXEL_BITS)
    return canvas.view(np.bool_)


def blob(rng: np.random.Generator, *, irregularity: float | None = None) -> Shape:
    """A closed curve of random harmonics, round to ragged, up to three times longer than wide."""
    return (Part(_outline(rng, irregularity=rng.uniform(0, 0.4) if irregularity is None else irregularity)),)


def polygon(rng: np.random.Generator) -> Shape:
    """Three to seven straight sides."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
    radius = rng.uniform(0.6, 1.0, len(angles))
    return (Part(_polar(angles, radius)),)


def lobes(rng: np.random.Generator) -> Shape:
    """Several blobs grown together, as a cluster of nodules."""
    parts = []
    for _ in range(rng.integers(2, 6)):
        offset, scale = rng.uniform(-0.5, 0.5, 2), rng.uniform(0.25, 0.55)
        parts.append(Part((_outline(rng, irregularity=0.15) * scale + offset).astype(np.float32)))
    return tuple(parts)


def ring(rng: np.random.Generator) -> Shape:
    """A blob with a hole, as a vessel or bowel wall."""
    outer = _outline(rng, irregularity=rng.uniform(0, 0.15))
    return (Part(outer), Part((outer * rng.uniform(0.4, 0.85)).astype(np.float32), is_hole=True))


def crescent(rng: np.random.Generator) -> Shape:
    """A blob bitten by another, as a ventricle or an effusion."""
    outer = _outline(rng, irregularity=rng.uniform(0, 0.15))
    shift = np.array([rng.uniform(0.35, 0.8), rng.uniform(-0.3, 0.3)], np.float32)
    return (Part(outer), Part((outer * rng.uniform(0.6, 1.0) + shift).astype(np.float32), is_hole=True))


def tube(rng: np.random.Generator) -> Shape:
    """A winding line, thin to thick."""
    return (Part(_walk(rng, start=np.array([-0.9, 0.0]), heading=0.0, length=1.8), width=rng.uniform(0.06, 0.35)),)


def tree(rng: np.random.Generator) -> Shape:
    """A branching line, thinner with every branching."""
    parts: list[Part] = []
    tips = [(np.array([-0.9, 0.0]), rng.uniform(-0.3, 0.3), rng.uniform(0.08, 0.2))]
    for length in (0.7, 0.55, 0.4):
        grown = []
        for start, heading, width in tips:
            points = _walk(rng, start=start, heading=heading, length=length)
            parts.append(Part(points, width=width))
            spread = rng.uniform(0.3, 0.9)
            grown += [(points[-1], heading + side * spread, 0.7 * width) for side in (-1, 1) if rng.random() < 0.85]
        tips = grown
    return tuple(parts)


KINDS: dict[Callable[[np.random.Generator], Shape], float] = {
    blob: 0.45, lobes: 0.1, polygon: 0.07, ring: 0.07, crescent: 0.09, tube: 0.12, tree: 0.1,
}  # fmt: skip
"""Every kind of outline and how often it is drawn."""


def random_shape(rng: np.random.Generator) -> Shape:
    """A shape of a random kind."""
    kinds = list(KINDS)
    return kinds[rng.choice(len(kinds), p=list(KINDS.values()))](rng)


def _outline(rng: np.random.Generator, *, irregularity: float) -> Points:
    angles = np.linspace(0, 2 * np.pi, NUM_POINTS, endpoint=False)
    order = np.arange(2, 9)
    amplitude = irregularity * rng.normal(size=order.size) / order**0.8
    wave = amplitude @ np.cos(order[:, None] * angles + rng.uniform(0, 2 * np.pi, (order.size, 1)))
    points = _polar(angles, np.exp(wave))
    stretch = np.exp(rng.uniform(-0.55, 0.55))
    points *= np.array([stretch, 1 / stretch], np.float32)
    return np.asarray(points / np.linalg.norm(points, axis=1).max(), np.float32)


def _polar(angles: NDArray[np.float64], radius: NDArray[np.float64]) -> Points:
    return np.asarray(np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1), np.float32)


def _walk(rng: np.random.Generator, *, start: NDArray[np.floating], heading: float, length: float) -> Points:
    """A smooth random path of 16 steps."""
    turns = heading + np.cumsum(rng.normal(0, rng.uniform(0.02, 0.25), 16))
    steps = np.stack([np.cos(turns), np.sin(turns)], axis=1) * (length / 16)
    return np.asarray(start + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)]), np.float32)
