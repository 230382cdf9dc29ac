"""From the masks found for a case to its final labels: put together, renamed, cleaned, split."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.pairing import Pairs
from data_prep.pipeline import Settings
from medsam2_ft.data.case import Case
from medsam2_ft.data.components import parse_sizes, remove_small, split_instances
from medsam2_ft.data.encoding import PLAIN_COLOURS
from medsam2_ft.data.labels import LabelMap, Labels, ids_in
from medsam2_ft.data.layers import stack_masks
from medsam2_ft.errors import DataError


@dataclass(frozen=True)
class Annotation:
    """Masks of one case: (T, H, W) ids, layers (K, T, H, W) where they overlap, and what the ids mean."""

    gts: NDArray[Any]
    labels: Labels
    layers: NDArray[np.uint8] | None = None
    instances: bool = False


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options about labels that all kinds of input share."""
    parser.add_argument("--labels", type=Path, help="yaml that names, merges, drops or selects labels")
    parser.add_argument("--label", help="name of the foreground where masks have only one kind")
    parser.add_argument(
        "--remove-small", nargs="+", default=["none"], help="none, reference, or smallest voxels in 3D and pixels in 2D"
    )
    parser.add_argument(
        "--split-instances", nargs="+", default=[], metavar="REGION", help="regions to split into objects"
    )
    parser.add_argument("--keep", default="all", choices=("all", "labelled"), help="labelled drops empty slices")


def settings_of(args: argparse.Namespace, pairs: Pairs, *, more_names: Iterable[str] = ()) -> Settings:
    """The options that change masks, checked, and the ids of regions that come one by one.

    Args:
        args: the command's options.
        pairs: what was found; regions in files of their own are named by the files.
        more_names: regions named inside files.
    """
    if args.labels:
        LabelMap.read(args.labels)
    names = {region for source in pairs.sources for _, region in source.masks if region}
    return {
        "labels_text": args.labels.read_text(encoding="utf-8") if args.labels else None,
        "label": args.label,
        "remove_small": parse_sizes(args.remove_small),
        "split_instances": sorted(args.split_instances),
        "keep": args.keep,
        # Alphabetical over the whole dataset, so that an id means the same in every case.
        "regions": {name: number for number, name in enumerate(sorted(names | set(more_names)), start=1)},
    }


def combine(
    parts: Sequence[tuple[str, NDArray[Any]]], settings: Settings, *, name_ids: Callable[[list[int]], Labels]
) -> Annotation:
    """One mask of everything, or several of one region each.

    Args:
        parts: (region, ids or bool (T, H, W)); the region is "" for a mask of everything.
        settings: as `settings_of` gives them.
        name_ids: names the ids of a mask of everything.
    """
    if len(parts) == 1 and not parts[0][0]:
        gts = parts[0][1]
        return Annotation(gts=gts, labels=name_ids(ids_in(gts)))
    known = settings["regions"]
    gts, layers = stack_masks([(known[region], mask > 0) for region, mask in parts])
    return Annotation(gts=gts, layers=layers, labels={region: [number] for region, number in known.items()})


def refine(annotation: Annotation, settings: Settings, *, in_3d: bool) -> Annotation:
    """Apply the label file, remove specks, split instances, in this order."""
    gts, layers, labels = annotation.gts, annotation.layers, annotation.labels
    if settings["labels_text"]:
        label_map = LabelMap.parse(settings["labels_text"])
        if settings.get("encoding", {}).get("kind") == "colour":
            # A label file may name a colour that this part of a dataset happens not to show.
            labels = {name: [] for name in PLAIN_COLOURS} | labels
        layers = None if layers is None else label_map.apply(layers, labels)[0]
        gts, labels = label_map.apply(gts, labels)
    voxels, pixels = settings["remove_small"]
    if voxels or pixels:
        gts = remove_small(gts, min_voxels=voxels, min_pixels=pixels, in_3d=in_3d)
        if layers is not None:
            layers = np.stack(
                [remove_small(layer, min_voxels=voxels, min_pixels=pixels, in_3d=in_3d) for layer in layers]
            )
    if settings["split_instances"]:
        if layers is not None:
            raise DataError("Masks that overlap cannot be split into instances as well.")
        gts, labels = split_instances(gts, labels, names=settings["split_instances"])
        return Annotation(gts=gts, labels=labels, instances=True)
    return Annotation(gts=gts, labels=labels, layers=layers, instances=annotation.instances)


def keep_labelled(case: Case) -> Case:
    """Only the slices with any label, remembering which they were.

    Raises:
        DataError: if there are none.
    """
    assert case.gts is not None
    kept = np.flatnonzero(case.gts.any(axis=(1, 2)))
    if kept.size == 0:
        raise DataError(f"{case.name} has no labelled slice to keep.")
    return replace(
        case,
        imgs=case.imgs[kept],
        gts=case.gts[kept],
        gts_layers=None if case.gts_layers is None else case.gts_layers[:, kept],
        labelled=None if case.labelled is None else case.labelled[kept],
        kept_slices=kept,
    )
