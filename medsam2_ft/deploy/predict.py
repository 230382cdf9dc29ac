"""One image, volume or video to a label map on its own grid, without any ground truth."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medsam2_ft.data.intensity import IntensityRecipe
from medsam2_ft.deploy import downloads
from medsam2_ft.deploy.dicom_seg import series_folder, write_dicom_seg
from medsam2_ft.deploy.engine import serving_recipe
from medsam2_ft.deploy.prompt_file import Target
from medsam2_ft.deploy.source import open_source
from medsam2_ft.errors import DataError, UserError
from medsam2_ft.io.volume import Volume
from medsam2_ft.io.write import write_mask

if TYPE_CHECKING:
    from medsam2_ft.inference.predictor import Predictor

GRID_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")
OUTPUTS = (*GRID_SUFFIXES, ".png", ".zip", ".mp4", ".dcm")


def check_output(path: Path, volume: Volume) -> None:
    """Refuse an output that this source cannot be written to, before any work is done.

    Raises:
        UserError: naming what would work.
    """
    name = path.name.lower()
    if not name.endswith(OUTPUTS):
        raise UserError(f"{path.name}: masks are written as {' '.join(OUTPUTS)}.")
    if name.endswith((*GRID_SUFFIXES, ".dcm")) and volume.original_affine is None:
        raise UserError(f"{Path(volume.source).name} has no geometry in space; write its mask to .png, .zip or .mp4.")
    if name.endswith(".dcm"):
        series_folder(volume)
    if name.endswith(".png") and len(volume.array) > 1:
        raise UserError(f"A .png holds one slice and this is {len(volume.array)}; write .zip for a PNG each.")


def read_coarse(path: Path, volume: Volume, *, plane: str) -> NDArray[Any]:
    """Read a coarse mask that lies on the grid of an image.

    Raises:
        DataError: it lies elsewhere in space.
    """
    mask = open_source(path, plane=plane)
    is_moved = (
        mask.affine is not None
        and volume.affine is not None
        and mask.array.shape[:3] == volume.array.shape[:3]
        and not np.allclose(mask.affine, volume.affine, atol=1e-2)
    )
    if is_moved:
        raise DataError(f"{path} lies elsewhere in space than {volume.source}: their affines differ.")
    return mask.array if mask.array.ndim == 3 else mask.array[..., 0]


def to_uint8(predictor: Predictor, volume: Volume, *, window: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """The volume as the checkpoint was trained to see it, or in the window that the user chose."""
    own = None if predictor.recipe is None else IntensityRecipe.from_dict(predictor.recipe)
    return serving_recipe(own, dtype=volume.array.dtype, window=window).apply(volume.array)


def segment_targets(
    predictor: Predictor,
    images: NDArray[np.uint8],
    targets: Sequence[Target],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.uint16]:
    """Label map of all targets, each within its own depth.

    Args:
        predictor: the model.
        images: uint8 (T, H, W) or (T, H, W, 3).
        targets: one or more prompts an object.
        progress: called with (slices done, slices in all).

    Returns:
        (T, H, W) uint16.

    Raises:
        UserError: a prompt that does not fit the image.
    """
    depths: dict[int, tuple[int, int]] = {}
    for target in targets:
        first, stop = target.depth or (0, len(images))
        low, high = depths.get(target.prompt.object_id, (first, stop))
        depths[target.prompt.object_id] = min(first, low), max(stop, high)
    z_range = (min(first for first, _ in depths.values()), max(stop for _, stop in depths.values()))
    prompts = [target.prompt for target in targets]
    return predictor.segment(images, prompts, z_range=z_range, depths=depths, progress=progress)


def write_output(
    path: Path, labels: NDArray[np.uint16], volume: Volume, *, images: NDArray[np.uint8], targets: Sequence[Target]
) -> list[Path]:
    """Write the label map in the form that the ending asks for, and `NAME.labels.json` where objects have names.

    Args:
        path: see `OUTPUTS`.
        labels: (T, H, W).
        volume: the source; NIfTI, NRRD, MetaImage and DICOM-SEG come out on its own grid.
        images: what the network saw, for the overlay video.
        targets: for the names.

    Returns:
        The files written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    names = {target.name or f"object {target.prompt.object_id}": target.prompt.object_id for target in targets}
    name = path.name.lower()
    if name.endswith(GRID_SUFFIXES):
        write_mask(path, labels, like=volume)
    elif name.endswith(".dcm"):
        write_dicom_seg(path, labels, volume, names=names)
    elif name.endswith(".png"):
        downloads.write_png(path, labels[0])
    elif name.endswith(".zip"):
        downloads.write_png_zip(path, labels, names=names)
    else:
        downloads.write_overlay_video(path, images, labels, fps=volume.fps)
    if not any(target.name for target in targets) or name.endswith((".zip", ".dcm")):
        return [path]
    names_file = path.with_name(f"{path.name.split('.')[0]}.labels.json")
    names_file.write_text(json.dumps(names, indent=2))
    return [path, names_file]


def without_collisions(targets: Sequence[Target], *, beside: Sequence[Target]) -> list[Target]:
    """The same targets, their object ids moved up where they would fall among those of other targets."""
    taken = max((target.prompt.object_id for target in beside), default=0)
    lowest = min((target.prompt.object_id for target in targets), default=1)
    shift = max(taken + 1 - lowest, 0)
    return [replace(t, prompt=replace(t.prompt, object_id=t.prompt.object_id + shift)) for t in targets]
