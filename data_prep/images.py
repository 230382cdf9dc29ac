"""`python -m data_prep images`: 2D images with their masks, in any common format and encoding, into npz cases."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep import annotation, pipeline
from data_prep.pairing import Source, find_pairs
from data_prep.pixels import decide_encoding, decide_recipe
from medsam2_ft.data.case import Case
from medsam2_ft.data.encoding import KINDS, Encoding
from medsam2_ft.data.intensity import IntensityRecipe
from medsam2_ft.data.labels import names_beside
from medsam2_ft.errors import DataError
from medsam2_ft.io.image import is_image_file, read_image, read_mask_image


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    pipeline.add_options(parser)
    annotation.add_options(parser)
    parser.add_argument("--mask-encoding", default="auto", choices=("auto", *KINDS), help="what mask pixels mean")
    parser.add_argument(
        "--intensity", default="auto", choices=("auto", "passthrough", "percentile"), help="how pixels become 8-bit"
    )
    parser.add_argument("--window", nargs="+", default=[], help="CT stored in HU: level width, or a name")


def run(args: argparse.Namespace) -> int:
    """Find the pairs, decide the encoding, and prepare them."""
    pairs = find_pairs(
        args.images,
        masks=args.masks,
        is_input=is_image_file,
        image_suffix=args.image_suffix,
        mask_suffix=args.mask_suffix,
    )
    masks = [path for source in pairs.sources for path, _ in source.masks]
    images = [partial(_pixels, source.image) for source in pairs.sources]
    settings = pipeline.base_settings(args)
    settings |= annotation.settings_of(args, pairs)
    settings |= {
        "encoding": decide_encoding(
            args.mask_encoding, [partial(read_mask_image, path) for path in masks], paths=masks
        ),
        "recipe": decide_recipe(args, images, modality=settings["modality"]).to_dict(),
        "names": names_beside(args.masks),
    }
    return pipeline.run(args, pairs, prepare, settings)


def prepare(source: Source, settings: pipeline.Settings) -> Case:
    """Make one case.

    Raises:
        DataError: whatever is wrong with this image or its masks, in one sentence.
    """
    image = read_image(source.image)
    if not np.all(np.isfinite(image.array)) or image.array.min() == image.array.max():
        raise DataError(f"{source.image} is constant or holds NaN: there is nothing to see in it.")
    encoding = Encoding.from_dict(settings["encoding"])
    parts = [(region, _decoded(path, image.array.shape[1:3], encoding)) for path, region in source.masks]
    found = annotation.combine(parts, settings, name_ids=lambda ids: _named(ids, encoding, settings))
    if encoding.kind == "instances":
        found = annotation.Annotation(gts=found.gts, labels=found.labels, layers=found.layers, instances=True)
    found = annotation.refine(found, settings, in_3d=False)
    recipe = IntensityRecipe.from_dict(settings["recipe"])
    return Case(
        name=source.name,
        imgs=recipe.apply(image.array),
        gts=found.gts,
        gts_layers=found.layers,
        kind="image",
        labels=found.labels,
        instances=found.instances,
        spacing_mm=image.spacing_mm,
        recipe=recipe.to_dict(),
    )


def _decoded(path: Path, shape: tuple[int, ...], encoding: Encoding) -> NDArray[Any]:
    mask = encoding.decode(read_mask_image(path), source=str(path))
    if mask.shape != shape:
        raise DataError(
            f"{path} is {mask.shape[1]}x{mask.shape[0]} pixels, its image {shape[1]}x{shape[0]}; "
            "is it the mask of another image?"
        )
    return mask[None]


def _named(ids: list[int], encoding: Encoding, settings: pipeline.Settings) -> dict[str, list[int]]:
    labels = encoding.labels(ids, name=settings["label"])
    names = {int(i): name for i, name in settings["names"].items()}
    if encoding.kind != "index":
        return labels
    return {names.get(members[0], label): members for label, members in labels.items()}


def _pixels(path: Path) -> NDArray[Any]:
    return read_image(path).array
