"""Connected components of masks: specks removed, and one label split into its separate objects."""

from collections.abc import Collection, Sequence
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from medsam2_ft.data.labels import Labels, ids_in
from medsam2_ft.errors import DataError

PRESETS = {"none": (0, 0), "reference": (1000, 100)}
"""Smallest component kept: voxels in 3D (26-connected), then pixels in each slice (8-connected).

`reference` is what the MedSAM2 authors' preparation does."""


def parse_sizes(words: Sequence[str]) -> tuple[int, int]:
    """`none`, `reference`, or two numbers.

    Raises:
        DataError: for anything else.
    """
    if len(words) == 1 and words[0] in PRESETS:
        return PRESETS[words[0]]
    if len(words) == 2 and all(word.isdigit() for word in words):
        return int(words[0]), int(words[1])
    raise DataError(f"--remove-small takes {', '.join(PRESETS)}, or voxels and pixels; got '{' '.join(words)}'.")


def remove_small(gts: NDArray[Any], *, min_voxels: int, min_pixels: int, in_3d: bool) -> NDArray[Any]:
    """Drop components below a size, label by label.

    Args:
        gts: ids (T, H, W).
        min_voxels: threshold over the volume; used if `in_3d`.
        min_pixels: threshold within each slice.
        in_3d: whether T is space, so that components may span slices.
    """
    if in_3d and min_voxels:
        gts = cc3d.dust(gts, threshold=min_voxels, connectivity=26, in_place=False)
    if min_pixels:
        gts = np.stack([cc3d.dust(part, threshold=min_pixels, connectivity=8, in_place=False) for part in gts])
    return gts


def split_instances(gts: NDArray[Any], labels: Labels, *, names: Collection[str]) -> tuple[NDArray[Any], Labels]:
    """Give every connected component of some regions an id of its own.

    Args:
        gts: ids (T, H, W).
        labels: regions and ids.
        names: which regions to split; their components get ids above all that exist.

    Returns:
        masks, widened to uint16 when 255 ids do not suffice, and labels with the new ids.

    Raises:
        DataError: if a region does not exist or ids run out.
    """
    out = gts.astype(np.uint32)
    result = dict(labels)
    following = max([*ids_in(gts), *(i for ids in labels.values() for i in ids)], default=0) + 1
    for name in names:
        if name not in labels:
            raise DataError(f"There is no region '{name}' to split into instances; there are {', '.join(labels)}.")
        region = np.isin(gts, labels[name])
        parts, number = cc3d.connected_components(region, connectivity=26, return_N=True)
        out[region] = parts[region] + (following - 1)
        result[name] = list(range(following, following + number))
        following += number
    if following - 1 > 65535:
        raise DataError(f"Splitting gives {following - 1} objects; a mask holds up to 65535.")
    return out.astype(np.uint8 if following <= 256 else np.uint16), result
