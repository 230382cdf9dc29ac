"""How raw numbers become the uint8 a network sees: one recipe for preparation, benchmark and serving.

A recipe is plain data: it travels in every npz case (key `window`) and in every exported checkpoint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam2_ft.errors import DataError, nearest

WINDOWS: dict[str, tuple[float, float]] = {
    "soft tissue": (40.0, 400.0),
    "abdomen": (40.0, 400.0),
    "lung": (-600.0, 1500.0),
    "mediastinum": (50.0, 350.0),
    "brain": (40.0, 80.0),
    "bone": (400.0, 1800.0),
}
"""CT windows by name: (level, width) in HU."""

METHODS = ("window", "percentile", "passthrough")


@dataclass(frozen=True)
class IntensityRecipe:
    """A normalisation to uint8 that depends on nothing but its own fields and the array.

    Attributes:
        method: "window" (fixed bounds, CT), "percentile" (bounds from the array's foreground) or "passthrough" (8-bit
            data stays as it is).
        windows: (level, width) pairs for "window"; three pairs become three channels.
        percentiles: lower and upper percentile of the nonzero voxels for "percentile".
    """

    method: str
    windows: tuple[tuple[float, float], ...] = ()
    percentiles: tuple[float, float] = (0.5, 99.5)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise DataError(f"There is no intensity method '{self.method}'{nearest(self.method, METHODS)}.")
        if self.method == "window" and len(self.windows) not in (1, 3):
            raise DataError(f"An image takes one window, or three as channels; {len(self.windows)} were given.")
        if any(width <= 0 for _, width in self.windows):
            raise DataError(f"A window's width must be positive; got level/width {self.windows}.")
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise DataError(f"Percentiles must rise within 0..100; got {low} and {high}.")

    def apply(self, array: NDArray[Any]) -> NDArray[np.uint8]:
        """Normalise a whole image, volume or video.

        Args:
            array: (T, H, W) or (T, H, W, 3) raw numbers; always the whole of it, because percentiles look at all
                voxels.

        Returns:
            uint8 of the same shape, or (T, H, W, 3) when three windows are stacked as channels.

        Raises:
            DataError: if "passthrough" meets data that is not 8-bit, or several windows meet colour.
        """
        if self.method == "passthrough":
            return _as_uint8(array)
        if self.method == "percentile":
            return _scale(array, *self._foreground_bounds(array))
        if len(self.windows) > 1 and array.ndim == 4:
            raise DataError("Several windows become colour channels, so they need a grey image; this one has colour.")
        layers = [_scale(array, level - width / 2, level + width / 2) for level, width in self.windows]
        return layers[0] if len(layers) == 1 else np.stack(layers, axis=-1)

    def _foreground_bounds(self, array: NDArray[Any]) -> tuple[float, float]:
        foreground = array[array != 0]
        if foreground.size == 0:
            return 0.0, 1.0
        low, high = np.percentile(foreground, self.percentiles)
        return float(low), float(high)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for json and `weights_only` checkpoints."""
        plain = asdict(self)
        return {**plain, "windows": [list(pair) for pair in self.windows], "percentiles": list(self.percentiles)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "IntensityRecipe":
        """The inverse of `to_dict`."""
        return cls(
            method=str(values["method"]),
            windows=tuple((float(level), float(width)) for level, width in values.get("windows", ())),
            percentiles=(float(values["percentiles"][0]), float(values["percentiles"][1])),
        )


def parse_windows(words: Sequence[str]) -> tuple[tuple[float, float], ...]:
    """Read windows as a user types them: `40 400`, `lung`, `lung bone "soft tissue"`, or six numbers.

    Raises:
        DataError: for an unknown name or an odd count of numbers.
    """
    pairs: list[tuple[float, float]] = []
    numbers: list[float] = []
    for word in words:
        try:
            numbers.append(float(word))
        except ValueError:
            name = word.lower().replace("_", " ").replace("-", " ")
            if name not in WINDOWS:
                raise DataError(f"There is no CT window '{word}'{nearest(name, tuple(WINDOWS))}.") from None
            pairs.append(WINDOWS[name])
        if len(numbers) == 2:
            pairs.append((numbers[0], numbers[1]))
            numbers = []
    if numbers:
        raise DataError(f"A window is a level and a width; '{' '.join(words)}' leaves {numbers[0]:g} without a width.")
    return tuple(pairs)


def default_recipe(modality: str, *, windows: Sequence[tuple[float, float]] = (), eight_bit: bool) -> IntensityRecipe:
    """The recipe of a modality when the user chose none.

    Args:
        modality: canonical name, see `manifest.MODALITIES`.
        windows: (level, width) pairs the user asked for.
        eight_bit: whether the raw data is uint8 already (photographs, screenshots); it then passes unchanged.
    """
    if windows:
        return IntensityRecipe(method="window", windows=tuple(windows))
    if eight_bit:
        return IntensityRecipe(method="passthrough")
    if modality == "CT":
        return IntensityRecipe(method="window", windows=(WINDOWS["soft tissue"],))
    return IntensityRecipe(method="percentile")


def _scale(array: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Map [low, high] to 0..255, slice by slice so that a volume needs no float copy of itself."""
    out = np.empty(array.shape, np.uint8)
    width = high - low if high > low else 1.0
    for index in range(array.shape[0]):
        part = (array[index].astype(np.float32) - low) / width
        out[index] = np.rint(np.clip(part, 0, 1) * 255).astype(np.uint8)
    return out


def _as_uint8(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.size and (array.min() < 0 or array.max() > 255 or np.any(array != np.rint(array))):
        raise DataError(
            f"The intensity recipe is 8-bit passthrough, but the image holds {array.dtype} values "
            f"from {array.min():g} to {array.max():g}; give it a window or percentiles."
        )
    return array.astype(np.uint8)
