"""What a synthetic scene looks like: levels, textures and rims by label, then the optics and noise of a machine, its display."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from medsam2_ft.data.scenes import Float, Scene, smooth_noise


def render(rng: np.random.Generator, scene: Scene, optics: Optics) -> NDArray[np.uint8]:
    """What a scene looks like: levels, textures and rims by label, then optics, noise and display."""
    size = scene.ids.shape[1]
    num_channels = 3 if rng.random() < 0.4 else 1
    level, grain, rim = _looks(rng, scene, num_channels=num_channels)
    textures = [_texture(rng, size=size) for _ in range(4)]
    blur, edge_width = float(rng.choice([0, 0.6, 1.0, 1.6, 2.5])), int(rng.integers(1, 3)) * 2 + 1
    display = Display.draw(rng)
    frames = []
    for t, ids in enumerate(scene.ids):
        turn = np.float32(0.25 * t)
        fine = np.cos(turn) * textures[0] + np.sin(turn) * textures[1]
        coarse = np.cos(turn) * textures[2] + np.sin(turn) * textures[3]
        gradient = cv2.morphologyEx(ids, cv2.MORPH_GRADIENT, np.ones((edge_width, edge_width), np.uint8)) > 0
        values = level[ids] + (grain[0][ids] * fine + grain[1][ids] * coarse + rim[ids] * gradient)[..., None]
        values = values.reshape(size, size, num_channels)
        if blur:
            values = cv2.GaussianBlur(values, (0, 0), blur).reshape(size, size, num_channels)
        frames.append(optics.apply(values, rng))
    images = display.apply(np.stack(frames))
    return images if num_channels == 3 else images[..., 0]


def _looks(rng: np.random.Generator, scene: Scene, *, num_channels: int) -> tuple[Float, tuple[Float, Float], Float]:
    """Tables over labels: level (256, C), amplitudes of the fine and coarse texture (256,), and of the rim (256,)."""
    num_looks = max(scene.looks.values(), default=0) + 1
    base = rng.uniform(0.2, 0.7)
    contrast = np.exp(rng.uniform(np.log(0.1), np.log(0.5), num_looks)) * rng.choice([-1, 1], num_looks)
    if rng.random() < 0.5:
        contrast = np.abs(contrast) * rng.choice([-1, 1])
    contrast *= rng.choice([1, 0.5], p=[0.85, 0.15])  # weak edges all over
    contrast[0] = 0
    tint = 1 + rng.uniform(-0.5, 0.5, num_channels) * (num_channels == 3)
    chroma = rng.normal(0, rng.choice([0.02, 0.1]), (num_looks, num_channels)) * (num_channels == 3)
    levels = (base + contrast)[:, None] * tint + chroma
    grain = np.exp(rng.uniform(np.log(0.005), np.log(0.08), (2, num_looks)))
    rims = rng.normal(0, 0.12, num_looks) * (rng.random(num_looks) < 0.35)
    index = np.zeros(256, int)
    for label, look in scene.looks.items():
        index[label] = look
    own = rng.normal(0, 0.015, (256, 1))  # alike, but not the same
    level = (levels[index] + own).astype(np.float32)
    fine, coarse = grain[:, index].astype(np.float32)
    return level, (fine, coarse), rims[index].astype(np.float32)


def _texture(rng: np.random.Generator, *, size: int) -> Float:
    """A stationary pattern of unit deviation: cloudy, streaky or striped."""
    kind = rng.random()
    cells = int(np.exp(rng.uniform(np.log(4), np.log(size / 3))))
    if kind < 0.6:
        return smooth_noise(rng, size=size, cells=cells)
    if kind < 0.85:  # fibres: noise stretched along one direction
        coarse = rng.standard_normal((cells + 3, max(3, cells // 6)), dtype=np.float32)
        streaks = np.asarray(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), np.float32)
        turn = cv2.getRotationMatrix2D((size / 2, size / 2), rng.uniform(0, 180), 1.5)
        return np.asarray(cv2.warpAffine(streaks, turn, (size, size), borderMode=cv2.BORDER_REFLECT), np.float32)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    angle, waves = rng.uniform(0, np.pi), rng.uniform(3, 30)
    phase = 0.5 * smooth_noise(rng, size=size, cells=4)
    return np.asarray(
        np.sin(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)) / size + 3 * phase), np.float32
    )


@dataclass(frozen=True)
class Optics:
    """What the machine adds: shading, shadows, noise, hairs, a field of view. Fixed over a clip, but for the noise."""

    shading_HW: Float
    noise: float
    speckle: float
    noise_blur: float
    hairs: tuple[tuple[Float, int, float], ...]
    view_HW: NDArray[np.bool_] | None

    @classmethod
    def draw(cls, rng: np.random.Generator, *, size: int) -> Optics:
        """A random machine."""
        shading = 1 + rng.choice([0.05, 0.15, 0.3]) * smooth_noise(rng, size=size, cells=2)
        if rng.random() < 0.1:  # shadows below echoing structures
            stripes = smooth_noise(rng, size=size, cells=int(rng.integers(5, 20)))[:1]
            shading = shading * np.clip(1 - 0.5 * np.maximum(stripes - 0.7, 0), 0.2, 1)
        hairs = []
        if rng.random() < 0.1:
            for _ in range(rng.integers(1, 8)):
                start, angle = rng.uniform(0, size, 2), rng.uniform(0, 2 * np.pi)
                bend = angle + np.cumsum(rng.normal(0, 0.08, (20, 1)), axis=0)
                steps = np.concatenate([np.cos(bend), np.sin(bend)], axis=1) * size / 25
                hairs.append(
                    ((start + np.cumsum(steps, axis=0)).astype(np.float32), int(rng.integers(1, 3)), rng.uniform(0, 1))
                )
        view = None
        if rng.random() < 0.12:
            y, x = np.mgrid[:size, :size] / size - rng.uniform(0.45, 0.55, (2, 1, 1))
            view = x**2 + y**2 < rng.uniform(0.42, 0.6) ** 2
        return cls(
            shading_HW=np.asarray(np.clip(shading, 0.2, 2), np.float32),
            noise=float(np.exp(rng.uniform(np.log(0.004), np.log(0.07)))),
            speckle=float(rng.uniform(0.1, 0.45)) if rng.random() < 0.25 else 0.0,
            noise_blur=float(rng.choice([0, 0, 0.6, 1.0])),
            hairs=tuple(hairs),
            view_HW=view,
        )

    def apply(self, values_HWC: Float, rng: np.random.Generator) -> Float:
        """One frame through the machine."""
        values = np.ascontiguousarray(values_HWC * self.shading_HW[..., None])
        for points, width, level in self.hairs:
            cv2.polylines(
                values, [points.round().astype(np.int32)], False, (level,) * 3, thickness=width, lineType=cv2.LINE_AA
            )
        noise = rng.standard_normal(values.shape, dtype=np.float32)
        if self.noise_blur:
            noise = cv2.GaussianBlur(noise, (0, 0), self.noise_blur).reshape(values.shape) * np.float32(
                1 + 2 * self.noise_blur
            )
        values = values * (1 + np.float32(self.speckle) * noise) + np.float32(self.noise) * noise
        if self.view_HW is not None:
            values = values * self.view_HW[..., None]
        return np.asarray(values, np.float32)


@dataclass(frozen=True)
class Display:
    """How values become uint8: a window between two percentiles, gamma, inversion; fixed over a clip."""

    low: float
    high: float
    gamma: float
    is_inverted: bool

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Display:
        """A random display."""
        return cls(
            low=rng.uniform(0, 4),
            high=rng.uniform(96, 100),
            gamma=float(np.exp(rng.uniform(-0.4, 0.4))),
            is_inverted=rng.random() < 0.15,
        )

    def apply(self, values_THWC: Float) -> NDArray[np.uint8]:
        """All frames of a clip to uint8, by the same window."""
        low, high = np.percentile(values_THWC[:, ::4, ::4], (self.low, self.high)).astype(np.float32)
        shown = np.clip((values_THWC - low) / max(high - low, 1e-3), 0, 1) ** np.float32(self.gamma)
        return np.asarray((1 - shown if self.is_inverted else shown) * 255, np.uint8)
