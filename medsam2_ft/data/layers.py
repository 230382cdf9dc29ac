"""Several masks of one image put together: flat where they do not touch, in layers where they overlap."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam2_ft.errors import DataError


def stack_masks(
    masks: Sequence[tuple[int, NDArray[np.bool_]]],
) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.uint8] | None]:
    """Combine binary masks into label ids.

    Args:
        masks: (id, bool mask) pairs on one grid; an id may come several times.

    Returns:
        gts: ids; where masks overlap, the smaller region is on top.
        layers: uint8 (K, ...) with every mask whole, or None if nothing overlaps.

    Raises:
        DataError: if masks overlap and an id is above 255, which layers cannot hold.
    """
    union: dict[int, NDArray[np.bool_]] = {}
    for label, mask in masks:
        union[label] = union[label] | mask if label in union else mask
    shape = masks[0][1].shape
    gts = np.zeros(shape, np.uint8 if max(union) < 256 else np.uint16)
    layers: list[NDArray[Any]] = []
    # Large ones first: small structures inside them stay visible in the flat view.
    for label, mask in sorted(union.items(), key=lambda entry: -int(entry[1].sum())):
        gts[mask] = label
        free = next((layer for layer in layers if not layer[mask].any()), None)
        if free is None:
            free = np.zeros_like(gts)
            layers.append(free)
        free[mask] = label
    if len(layers) <= 1:
        return gts, None
    if gts.dtype != np.uint8:
        raise DataError(
            f"Masks overlap, and their ids go up to {max(union)}; overlapping masks can have ids up to 255."
        )
    return gts, np.stack(layers)
