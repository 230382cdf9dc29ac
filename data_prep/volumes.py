"""`python -m data_prep volumes`: NIfTI, NRRD, MetaImage and DICOM volumes with their masks into npz cases."""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_prep import pipeline
from data_prep.pairing import Source, find_pairs
from medsam2_ft.data.case import Case
from medsam2_ft.data.intensity import IntensityRecipe, default_recipe, parse_windows
from medsam2_ft.data.labels import LabelMap, as_ids, default_labels, ids_in, names_beside
from medsam2_ft.errors import DataError
from medsam2_ft.io.volume import PLANES, Volume, is_volume_file, read_volume

_GRID_TOLERANCE = 0.1
"""How far a mask's corners may lie from the image's, in voxels: headers are rounded, patients are not."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    pipeline.add_options(parser)
    parser.add_argument("--window", nargs="+", default=[], help="CT: level width, or a name (lung, brain, bone, ...)")
    parser.add_argument("--plane", default="acquisition", choices=("acquisition", *PLANES), help="which axis is T")
    parser.add_argument("--keep", default="all", choices=("all", "labelled"), help="labelled drops empty slices")


def run(args: argparse.Namespace) -> int:
    """Find the pairs and prepare them."""
    recipe = default_recipe(
        pipeline.base_settings(args)["modality"], windows=parse_windows(args.window), eight_bit=False
    )
    settings = {
        **pipeline.base_settings(args),
        "recipe": recipe.to_dict(),
        "plane": args.plane,
        "keep": args.keep,
        "names": names_beside(args.masks),
    }
    if args.labels:
        LabelMap.read(args.labels)
    pairs = find_pairs(
        args.images,
        masks=args.masks,
        is_input=is_volume_file,
        image_suffix=args.image_suffix,
        mask_suffix=args.mask_suffix,
    )
    settings["labels_file"] = str(args.labels) if args.labels else None
    return pipeline.run(args, pairs, prepare, settings)


def prepare(source: Source, settings: pipeline.Settings) -> Case:
    """Make one case.

    Raises:
        DataError: whatever is wrong with this image or its mask, in one sentence.
    """
    image = read_volume(source.image, plane=settings["plane"])
    check_values(image)
    path, _ = source.masks[0]
    mask = read_volume(path, plane=settings["plane"])
    check_grid(image, mask)
    gts = as_ids(mask.array, source=str(path))
    labels = default_labels(ids_in(gts), {int(i): name for i, name in settings["names"].items()})
    if settings["labels_file"]:
        gts, labels = LabelMap.read(Path(settings["labels_file"])).apply(gts, labels)
    recipe = IntensityRecipe.from_dict(settings["recipe"])
    case = Case(
        name=source.name,
        imgs=recipe.apply(image.array),
        gts=gts,
        spacing_mm=image.spacing_mm,
        labels=labels,
        affine=image.affine,
        original_affine=image.original_affine,
        original_shape=image.original_shape,
        recipe=recipe.to_dict(),
    )
    return keep_labelled(case) if settings["keep"] == "labelled" else case


def check_values(image: Volume) -> None:
    """Refuse volumes that no recipe can make sense of.

    Raises:
        DataError: for NaN or infinite values, and for constant images.
    """
    broken = int(image.array.size - np.count_nonzero(np.isfinite(image.array)))
    if broken:
        raise DataError(f"{image.source} holds {broken} NaN or infinite values.")
    if image.array.min() == image.array.max():
        raise DataError(f"{image.source} is constant: every voxel is {image.array.flat[0]:g}.")


def check_grid(image: Volume, mask: Volume) -> None:
    """Refuse a mask that lies on another grid than its image.

    Raises:
        DataError: saying how the grids differ.
    """
    if mask.original_shape != image.original_shape:
        raise DataError(
            f"{mask.source} is {_times(mask.original_shape)} voxels, its image {_times(image.original_shape)}; "
            "is it the mask of another case? If both show the same patient, use --resample-masks."
        )
    assert image.original_affine is not None and mask.original_affine is not None and image.original_shape is not None
    corners = np.array([[i, j, k, 1.0] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    corners[:, :3] *= np.subtract(image.original_shape, 1)
    apart = np.linalg.norm(((mask.original_affine - image.original_affine) @ corners.T)[:3], axis=0).max()
    if apart > _GRID_TOLERANCE * min(image.spacing_mm or (1.0,)):
        raise DataError(
            f"{mask.source} lies on another grid than its image (corners up to {apart:.3g} mm apart); "
            "is it the mask of another case? If both show the same patient, use --resample-masks."
        )


def keep_labelled(case: Case) -> Case:
    """Only the slices with any label, remembering which they were.

    Raises:
        DataError: if there are none.
    """
    assert case.gts is not None
    kept = np.flatnonzero(case.gts.any(axis=(1, 2)))
    if kept.size == 0:
        raise DataError(f"{case.name} has no labelled slice to keep.")
    return replace(case, imgs=case.imgs[kept], gts=case.gts[kept], kept_slices=kept)


def _times(shape: tuple[int, ...] | None) -> str:
    return "x".join(map(str, shape or ()))
