"""`python -m data_prep volumes`: NIfTI, NRRD, MetaImage and DICOM volumes with their masks into npz cases.

Folders of slices stored as pictures go the way of `videos`, with T as space.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep import annotation, pipeline, videos
from data_prep.pairing import Pairs, Source, find_pairs
from medsam2_ft.data.case import Case
from medsam2_ft.data.intensity import IntensityRecipe, default_recipe, parse_windows
from medsam2_ft.data.labels import as_ids, default_labels, names_beside
from medsam2_ft.errors import DataError
from medsam2_ft.io.dicom_kind import is_dicom_mask, structure_names
from medsam2_ft.io.dicom_masks import read_dicom_masks
from medsam2_ft.io.resample import on_grid
from medsam2_ft.io.sequence import is_picture_folder
from medsam2_ft.io.volume import PLANES, Volume, is_volume, plane_of, read_volume


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    pipeline.add_options(parser)
    annotation.add_options(parser)
    parser.add_argument("--window", nargs="+", default=[], help="CT: level width, or up to three names (lung bone ...)")
    parser.add_argument("--plane", default="acquisition", choices=("acquisition", *PLANES), help="which axis is T")
    parser.add_argument("--channel", type=int, help="which channel of 4D files")
    parser.add_argument("--resample-masks", action="store_true", help="move masks on another grid by nearest neighbour")
    videos.add_picture_options(parser)


def run(args: argparse.Namespace) -> int:
    """Find the pairs and prepare them."""
    pairs = find_pairs(
        args.images,
        masks=args.masks,
        is_input=lambda path: is_volume(path) or is_picture_folder(path) or is_dicom_mask(path),
        image_suffix=args.image_suffix,
        mask_suffix=args.mask_suffix,
    )
    if all(is_picture_folder(source.image) for source in pairs.sources):
        return videos.run_sequences(args, pairs, kind="volume")
    settings = pipeline.base_settings(args)
    recipe = default_recipe(settings["modality"], windows=parse_windows(args.window), eight_bit=False)
    settings |= annotation.settings_of(args, pairs, more_names=_names_inside(pairs))
    settings |= {
        "recipe": recipe.to_dict(),
        "plane": args.plane,
        "channel": args.channel,
        "resample": args.resample_masks,
        "names": names_beside(args.masks),
    }
    return pipeline.run(args, pairs, prepare, settings)


def prepare(source: Source, settings: pipeline.Settings) -> Case:
    """Make one case.

    Raises:
        DataError: whatever is wrong with this image or its masks, in one sentence.
    """
    image = read_volume(source.image, plane=settings["plane"], channel=settings["channel"])
    check_values(image)
    parts = [part for path, region in source.masks for part in _read_mask(path, region, image, settings)]
    names = {int(i): name for i, name in settings["names"].items()}
    found = annotation.combine(parts, settings, name_ids=lambda ids: _named(ids, names, settings["label"]))
    found = annotation.refine(found, settings, in_3d=True)
    recipe = IntensityRecipe.from_dict(settings["recipe"])
    case = Case(
        name=source.name,
        imgs=recipe.apply(image.array),
        gts=found.gts,
        gts_layers=found.layers,
        labels=found.labels,
        instances=found.instances,
        spacing_mm=image.spacing_mm,
        affine=image.affine,
        original_affine=image.original_affine,
        original_shape=image.original_shape,
        recipe=recipe.to_dict(),
    )
    return annotation.keep_labelled(case) if settings["keep"] == "labelled" else case


def check_values(image: Volume) -> None:
    """Refuse images that no recipe can make sense of.

    Raises:
        DataError: for NaN or infinite values, and for constant images.
    """
    broken = int(image.array.size - np.count_nonzero(np.isfinite(image.array)))
    if broken:
        raise DataError(f"{image.source} holds {broken} NaN or infinite values.")
    if image.array.min() == image.array.max():
        raise DataError(f"{image.source} is constant: every value is {image.array.flat[0]:g}.")


def _read_mask(path: Path, region: str, image: Volume, settings: pipeline.Settings) -> list[tuple[str, NDArray[Any]]]:
    if is_dicom_mask(path):
        return list(read_dicom_masks(path, like=image).items())
    mask = on_grid(read_volume(path, plane=plane_of(image)), like=image, resample=settings["resample"])
    return [(region, as_ids(mask.array, source=str(path)))]


def _named(ids: list[int], names: dict[int, str], label: str | None) -> dict[str, list[int]]:
    return {label: ids} if label else default_labels(ids, names)


def _names_inside(pairs: Pairs) -> set[str]:
    """Structures that DICOM masks name themselves."""
    names: set[str] = set()
    for path in (path for source in pairs.sources for path, _ in source.masks if is_dicom_mask(path)):
        try:
            names.update(structure_names(path))
        except DataError:
            # Its case is rejected by name when its turn comes.
            continue
    return names
