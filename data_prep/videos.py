"""`python -m data_prep videos`: video files or frame folders with their masks into npz cases.

Masks may cover every frame or only some: frames without a mask file are unlabelled, which is not the same as empty.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep import annotation, pipeline
from data_prep.pairing import Pairs, Source, find_pairs
from data_prep.pixels import decide_encoding, decide_recipe
from medsam2_ft.data.case import Case
from medsam2_ft.data.encoding import KINDS, Encoding
from medsam2_ft.data.intensity import IntensityRecipe
from medsam2_ft.errors import DataError
from medsam2_ft.io.image import read_image, read_mask_image
from medsam2_ft.io.sequence import is_sequence, is_video_file, natural_key, picture_files, read_pictures, read_video
from medsam2_ft.io.volume import Volume

_PROBED_FRAMES = 16


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    pipeline.add_options(parser)
    annotation.add_options(parser)
    add_picture_options(parser)
    parser.add_argument("--every", type=int, default=1, help="keep each n-th frame")
    parser.add_argument("--fps", type=float, help="frames a second of frame folders")
    parser.set_defaults(window=[])


def add_picture_options(parser: argparse.ArgumentParser) -> None:
    """Options about the pixels of pictures, shared with `volumes`."""
    parser.add_argument("--mask-encoding", default="auto", choices=("auto", *KINDS), help="what mask pixels mean")
    parser.add_argument(
        "--intensity", default="auto", choices=("auto", "passthrough", "percentile"), help="how pixels become 8-bit"
    )
    parser.add_argument("--spacing", nargs=3, type=float, metavar=("T", "H", "W"), help="mm, where files do not tell")


def run(args: argparse.Namespace) -> int:
    """Find the pairs and prepare them."""
    pairs = find_pairs(
        args.images,
        masks=args.masks,
        is_input=is_sequence,
        image_suffix=args.image_suffix,
        mask_suffix=args.mask_suffix,
    )
    return run_sequences(args, pairs, kind="video")


def run_sequences(args: argparse.Namespace, pairs: Pairs, *, kind: str) -> int:
    """Prepare frame folders, slice folders and video files.

    Args:
        args: the command's options.
        pairs: what was found.
        kind: "video" or "volume": what T means.
    """
    every = getattr(args, "every", 1)
    if every < 1:
        raise DataError(f"--every must be at least 1, not {every}.")
    settings = pipeline.base_settings(args)
    masks = [probe for source in pairs.sources for path, _ in source.masks for probe in _probes(path, read_mask_image)]
    images = [probe for source in pairs.sources for probe in _probes(source.image, _read_frame)]
    settings |= annotation.settings_of(args, pairs)
    settings |= {
        "kind": kind,
        "encoding": decide_encoding(args.mask_encoding, masks),
        "recipe": decide_recipe(args, images, modality=settings["modality"]).to_dict(),
        "spacing": args.spacing,
        "every": every,
        "fps": getattr(args, "fps", None),
    }
    return pipeline.run(args, pairs, prepare, settings)


def prepare(source: Source, settings: pipeline.Settings) -> Case:
    """Make one case.

    Raises:
        DataError: whatever is wrong with this sequence or its masks, in one sentence.
    """
    image, names = _read(source.image, settings)
    encoding = Encoding.from_dict(settings["encoding"])
    labelled = np.zeros(image.array.shape[0], bool)
    parts = []
    for path, region in source.masks:
        ids, has_mask = _read_masks(path, names, image.array.shape[:3], settings, encoding)
        labelled |= has_mask
        parts.append((region, ids))
    found = annotation.combine(parts, settings, name_ids=lambda ids: encoding.labels(ids, name=settings["label"]))
    found = annotation.refine(
        replace(found, instances=encoding.kind == "instances"), settings, in_3d=settings["kind"] == "volume"
    )
    recipe = IntensityRecipe.from_dict(settings["recipe"])
    case = Case(
        name=source.name,
        imgs=recipe.apply(image.array),
        gts=found.gts,
        gts_layers=found.layers,
        labels=found.labels,
        instances=found.instances,
        kind=settings["kind"],
        spacing_mm=tuple(settings["spacing"]) if settings["spacing"] else None,
        labelled=None if labelled.all() else labelled,
        recipe=recipe.to_dict(),
        fps=image.fps or settings["fps"],
    )
    return annotation.keep_labelled(case) if settings["keep"] == "labelled" else case


def _read(path: Path, settings: pipeline.Settings) -> tuple[Volume, list[str]]:
    """The kept frames and what each was called (its number, in a video file)."""
    every = settings["every"]
    if is_video_file(path):
        video = read_video(path, every=every)
        return video, [str(index * every) for index in range(video.array.shape[0])]
    pictures = read_pictures(path, kind=settings["kind"])
    names = [file.stem for file in picture_files(path)]
    return replace(pictures, array=pictures.array[::every]), names[::every]


def _read_masks(
    path: Path, names: Sequence[str], shape: tuple[int, ...], settings: pipeline.Settings, encoding: Encoding
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """ids (T, H, W), and which frames had a mask at all."""
    if is_video_file(path):
        frames = read_video(path, every=settings["every"]).array
        if frames.shape[0] != shape[0]:
            raise DataError(f"{path} has {frames.shape[0]} frames, its images {shape[0]}.")
        decoded = {t: encoding.decode(frame, source=f"{path}, frame {t}") for t, frame in enumerate(frames)}
    else:
        files = _files_by_frame(path, names, every=settings["every"])
        decoded = {t: encoding.decode(read_mask_image(file), source=str(file)) for t, file in files.items()}
    wide = np.result_type(np.uint8, *(mask.dtype for mask in decoded.values()))
    ids = np.zeros(shape, wide)
    for t, mask in decoded.items():
        if mask.shape != shape[1:]:
            raise DataError(f"{path}: the mask of frame {names[t]} is {mask.shape}, its image {shape[1:]}.")
        ids[t] = mask
    return ids, np.isin(np.arange(shape[0]), list(decoded))


def _files_by_frame(folder: Path, names: Sequence[str], *, every: int) -> dict[int, Path]:
    """Frame index -> mask file: by equal names, else by equal last numbers, else one by one."""
    files = picture_files(folder)
    place = {name: t for t, name in enumerate(names)}
    by_name = {place[file.stem]: file for file in files if file.stem in place}
    if by_name:
        return by_name
    numbers = {_last_number(name): t for t, name in enumerate(names)}
    by_number = {numbers[n]: file for file in files if (n := _last_number(file.stem)) is not None and n in numbers}
    if by_number and (len(by_number) == len(files) or every > 1):
        return by_number
    if len(files) == len(names):
        return dict(enumerate(files))
    raise DataError(
        f"{folder}: {len(files)} masks cannot be matched with {len(names)} frames: '{files[0].stem}' is no name or "
        f"number of a frame such as '{names[0]}'."
    )


def _last_number(name: str) -> int | None:
    numbers = [part for _, part in natural_key(name) if isinstance(part, int)]
    return numbers[-1] if numbers else None


def _probes(path: Path, read_file: Callable[[Path], NDArray[Any]]) -> list[Callable[[], NDArray[Any]]]:
    """Readers of some frames, for deciding how pixels are to be understood."""
    if is_video_file(path):
        return [lambda: read_video(path, every=30).array[0]]
    files = picture_files(path)
    step = max(1, len(files) // _PROBED_FRAMES)
    return [lambda file=file: read_file(file) for file in files[::step]]  # type: ignore[misc]


def _read_frame(file: Path) -> NDArray[Any]:
    return read_image(file).array
