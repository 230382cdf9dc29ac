"""How a whole dataset's pixels are to be understood, decided once from a sample and said aloud."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam2_ft.data.encoding import detect_encoding, forced_encoding
from medsam2_ft.data.intensity import IntensityRecipe, default_recipe, parse_windows
from medsam2_ft.errors import DataError
from medsam2_ft.io.image import LOSSY_SUFFIXES

Probe = Callable[[], NDArray[Any]]
"""Reads one sampled picture; may raise DataError."""
_SAMPLE = 64
_DARK = 64
"""A dataset of 8-bit images whose bright pixels stay below this is stretched."""


def decide_encoding(choice: str, probes: Sequence[Probe], *, paths: Sequence[Path] = ()) -> dict[str, Any]:
    """Learn the encoding from a sample of the masks, say what was decided and why, and return it as settings.

    Args:
        choice: "auto", or what the user says.
        probes: readers of masks.
        paths: their files; JPEG endings mean that values scatter.
    """
    is_lossy = any(path.suffix.lower() in LOSSY_SUFFIXES for path in paths)
    sample = _readable(probes)
    encoding = (
        detect_encoding(sample, is_lossy=is_lossy)
        if choice == "auto"
        else forced_encoding(choice, sample, is_lossy=is_lossy)
    )
    print(f"mask encoding: {encoding.kind} ({encoding.evidence})")
    return encoding.to_dict()


def decide_recipe(args: argparse.Namespace, probes: Sequence[Probe], *, modality: str) -> IntensityRecipe:
    """8-bit images pass unchanged; deeper ones, and sets that are dark throughout, are stretched by percentiles."""
    windows = parse_windows(args.window)
    if windows:
        return default_recipe(modality, windows=windows, eight_bit=False)
    if args.intensity != "auto":
        return IntensityRecipe(method=args.intensity)
    arrays = list(_readable(probes))
    if any(array.dtype != np.uint8 for array in arrays):
        print("intensity: percentiles of the foreground (images are deeper than 8 bit)")
        return IntensityRecipe(method="percentile")
    bright = float(np.median([np.percentile(array, 99.5) for array in arrays])) if arrays else 255.0
    if bright < _DARK:
        print(f"intensity: percentiles of the foreground (dark: bright pixels reach {bright:.0f} of 255)")
        return IntensityRecipe(method="percentile")
    print("intensity: 8-bit values as they are")
    return IntensityRecipe(method="passthrough")


def _readable(probes: Sequence[Probe]) -> Iterator[NDArray[Any]]:
    """Unreadable ones are passed over here; their case is rejected by name later."""
    for probe in probes[:: max(1, len(probes) // _SAMPLE)]:
        try:
            yield probe()
        except DataError:
            continue
