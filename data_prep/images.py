"""`python -m data_prep images`: 2D images with their masks, in any common format and encoding, into npz cases."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep import pipeline
from data_prep.pairing import Pairs, Source, find_pairs
from medsam2_ft.data.case import Case
from medsam2_ft.data.encoding import KINDS, Encoding, detect_encoding, forced_encoding
from medsam2_ft.data.intensity import IntensityRecipe, default_recipe, parse_windows
from medsam2_ft.data.labels import LabelMap
from medsam2_ft.data.layers import stack_masks
from medsam2_ft.errors import DataError
from medsam2_ft.io.image import LOSSY_SUFFIXES, is_image_file, read_image, read_mask_image

_SAMPLE = 64
_DARK = 64
"""A dataset of 8-bit images whose bright pixels stay below this is stretched."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    pipeline.add_options(parser)
    add_encoding_options(parser)
    parser.add_argument("--window", nargs="+", default=[], help="CT stored in HU: level width, or a name")


def add_encoding_options(parser: argparse.ArgumentParser) -> None:
    """Options about mask pixels and image intensities, shared with `videos`."""
    parser.add_argument("--mask-encoding", default="auto", choices=("auto", *KINDS), help="what mask pixels mean")
    parser.add_argument("--label", help="name of the foreground of binary and instance masks")
    parser.add_argument(
        "--intensity", default="auto", choices=("auto", "passthrough", "percentile"), help="how pixels become 8-bit"
    )


def run(args: argparse.Namespace) -> int:
    """Find the pairs, decide the encoding, and prepare them."""
    if args.labels:
        LabelMap.read(args.labels)
    pairs = find_pairs(
        args.images,
        masks=args.masks,
        is_input=is_image_file,
        image_suffix=args.image_suffix,
        mask_suffix=args.mask_suffix,
    )
    settings = pipeline.base_settings(args)
    settings |= {
        "encoding": decide_encoding(args.mask_encoding, [path for source in pairs.sources for path, _ in source.masks]),
        "recipe": decide_recipe(args, pairs, settings["modality"]).to_dict(),
        "label": args.label,
        "labels_file": str(args.labels) if args.labels else None,
        "regions": region_ids(pairs),
    }
    return pipeline.run(args, pairs, prepare, settings)


def prepare(source: Source, settings: pipeline.Settings) -> Case:
    """Make one case.

    Raises:
        DataError: whatever is wrong with this image or its masks, in one sentence.
    """
    image = read_image(source.image)
    if image.array.min() == image.array.max():
        raise DataError(f"{source.image} is constant: every pixel is {image.array.flat[0]}.")
    encoding = Encoding.from_dict(settings["encoding"])
    parts = [(path, region, encoding.decode(read_mask_image(path), source=str(path))) for path, region in source.masks]
    for path, _, mask in parts:
        if mask.shape != image.array.shape[1:3]:
            raise DataError(
                f"{path} is {mask.shape[1]}x{mask.shape[0]} pixels, its image {image.array.shape[2]}x"
                f"{image.array.shape[1]}; is it the mask of another image?"
            )
    layers = None
    if len(parts) == 1 and not parts[0][1]:
        gts = parts[0][2][None]
        labels = encoding.labels(gts, name=settings["label"])
    else:
        labels = {region: [number] for region, number in settings["regions"].items()}
        gts, layers = stack_masks([(settings["regions"][region], (mask > 0)[None]) for _, region, mask in parts])
    if settings["labels_file"]:
        label_map = LabelMap.read(Path(settings["labels_file"]))
        layers = None if layers is None else label_map.apply(layers, labels)[0]
        gts, labels = label_map.apply(gts, labels)
    recipe = IntensityRecipe.from_dict(settings["recipe"])
    return Case(
        name=source.name,
        imgs=recipe.apply(image.array),
        gts=gts,
        gts_layers=layers,
        kind="image",
        labels=labels,
        instances=encoding.kind == "instances" and not settings["labels_file"],
        spacing_mm=image.spacing_mm,
        recipe=recipe.to_dict(),
    )


def decide_encoding(choice: str, paths: Sequence[Path]) -> dict[str, Any]:
    """Learn the encoding from a sample of the masks, say what was decided and why, and return it as settings."""
    is_lossy = any(path.suffix.lower() in LOSSY_SUFFIXES for path in paths)
    sample = _readable_masks(paths)
    encoding = (
        detect_encoding(sample, is_lossy=is_lossy)
        if choice == "auto"
        else forced_encoding(choice, sample, is_lossy=is_lossy)
    )
    print(f"mask encoding: {encoding.kind} ({encoding.evidence})")
    return encoding.to_dict()


def decide_recipe(args: argparse.Namespace, pairs: Pairs, modality: str) -> IntensityRecipe:
    """8-bit images pass unchanged; deeper ones, and sets that are dark throughout, are stretched by percentiles."""
    windows = parse_windows(args.window)
    if windows:
        return default_recipe(modality, windows=windows, eight_bit=False)
    if args.intensity != "auto":
        return IntensityRecipe(method=args.intensity)
    arrays = list(_readable_images([source.image for source in pairs.sources]))
    if any(array.dtype != np.uint8 for array in arrays):
        print("intensity: percentiles of the foreground (images are deeper than 8 bit)")
        return IntensityRecipe(method="percentile")
    bright = float(np.median([np.percentile(array, 99.5) for array in arrays])) if arrays else 255.0
    if bright < _DARK:
        print(f"intensity: percentiles of the foreground (dark: bright pixels reach {bright:.0f} of 255)")
        return IntensityRecipe(method="percentile")
    print("intensity: 8-bit values as they are")
    return IntensityRecipe(method="passthrough")


def region_ids(pairs: Pairs) -> dict[str, int]:
    """Ids of regions that come in files of their own: alphabetical over the whole dataset, so equal in every case."""
    names = sorted({region for source in pairs.sources for _, region in source.masks if region})
    return {name: number for number, name in enumerate(names, start=1)}


def _sampled(paths: Sequence[Path]) -> list[Path]:
    step = max(1, len(paths) // _SAMPLE)
    return list(paths[::step])


def _readable_masks(paths: Sequence[Path]) -> Iterator[NDArray[Any]]:
    """Unreadable ones are passed over here; their case is rejected by name later."""
    for path in _sampled(paths):
        try:
            yield read_mask_image(path)
        except DataError:
            continue


def _readable_images(paths: Sequence[Path]) -> Iterator[NDArray[Any]]:
    for path in _sampled(paths):
        try:
            yield read_image(path).array
        except DataError:
            continue
