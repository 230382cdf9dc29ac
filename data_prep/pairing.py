"""Which masks belong to which image, told by file names."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medsam2_ft.errors import DataError
from medsam2_ft.io.sequence import natural_key

_ENDINGS = (".nii.gz",)


@dataclass(frozen=True)
class Source:
    """One case to be made.

    Attributes:
        name: the case's name.
        image: file or folder.
        masks: (path, region name) pairs; the name is "" when one mask holds all labels.
        patient: filled in by the pipeline.
    """

    name: str
    image: Path
    masks: tuple[tuple[Path, str], ...]
    patient: str = ""


@dataclass
class Pairs:
    """What was found, and what was left aside and why (reason -> names)."""

    sources: list[Source] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, reason: str, name: str) -> None:
        """Note that `name` takes no part."""
        self.skipped.setdefault(reason, []).append(name)


def find_pairs(
    images: Path,
    *,
    masks: Path,
    is_input: Callable[[Path], bool],
    image_suffix: str | None = None,
    mask_suffix: str | None = None,
) -> Pairs:
    """Match images with masks.

    An image's stem is its name (relative to the folder) without `image_suffix`, or without its extension and nnU-Net's
    `_0000`. Its masks are, in this order: the file or folder of the same stem (minus `mask_suffix`); all files in a
    folder of that name, one a region; all files called `stem__region` or `stem_region`, one a region.

    Args:
        images: folder of images.
        masks: folder of masks; may be the same folder if suffixes tell them apart.
        is_input: whether a path is something to read (a file of a known format, or a folder that is one input).
        image_suffix: ending of image names, extension included.
        mask_suffix: ending of mask names, extension included.

    Raises:
        DataError: if a folder is missing or nothing matches; the sentence says what was looked for.
    """
    image_paths = _inputs(images, is_input=is_input, suffix=image_suffix, role="--images")
    mask_paths = _inputs(masks, is_input=is_input, suffix=mask_suffix, role="--masks")
    stems = {_stem(path, images, image_suffix): path for path in image_paths}
    if len(stems) < len(image_paths):
        twice = next(path for path in image_paths if stems[_stem(path, images, image_suffix)] != path)
        raise DataError(
            f"{twice} and {stems[_stem(twice, images, image_suffix)]} have the same name without their endings; "
            "choose one kind with --image-suffix."
        )
    by_image: dict[str, list[tuple[Path, str]]] = {}
    pairs = Pairs()
    for path in mask_paths:
        stem = _stem(path, masks, mask_suffix)
        owner, region = _owner(stem, stems)
        if owner is None:
            pairs.skip("mask without image", path.name)
        else:
            by_image.setdefault(owner, []).append((path, region))
    for stem, path in stems.items():
        found = by_image.get(stem, [])
        # A whole mask wins over parts: `case.png` beside `case_old.png` is the mask.
        whole = [entry for entry in found if not entry[1]]
        if whole or found:
            name = stem.replace("/", "__")
            pairs.sources.append(
                Source(name=name, image=path, masks=tuple(whole[:1] or sorted(found, key=_natural_key)))
            )
        else:
            pairs.skip("image without mask", path.name)
    if not pairs.sources:
        raise DataError(_nothing_matches(images, masks, image_paths, mask_paths, image_suffix, mask_suffix))
    pairs.sources.sort(key=lambda source: natural_key(source.name))
    return pairs


def _natural_key(entry: tuple[Path, str]) -> list[tuple[int, int | str]]:
    return natural_key(entry[0].name)


def _inputs(folder: Path, *, is_input: Callable[[Path], bool], suffix: str | None, role: str) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder} ({role}).")
    found: list[Path] = []
    pending = [folder]
    while pending:
        for path in sorted(pending.pop().iterdir()):
            if path.name.startswith("."):
                continue
            if is_input(path) and (suffix is None or path.name.endswith(suffix)):
                found.append(path)
            elif path.is_dir():
                pending.append(path)
    if not found:
        ending = f"files ending in '{suffix}'" if suffix else "files of a known format"
        raise DataError(f"Found no {ending} in {folder} ({role}).")
    return found


def _stem(path: Path, root: Path, suffix: str | None) -> str:
    name = path.relative_to(root).as_posix()
    if suffix is not None:
        return name.removesuffix(suffix)
    for ending in _ENDINGS:
        if name.lower().endswith(ending):
            return re.sub(r"_0000$", "", name[: -len(ending)])
    return re.sub(r"_0000$", "", name if path.is_dir() else name.removesuffix(path.suffix))


def _owner(stem: str, stems: dict[str, Path]) -> tuple[str | None, str]:
    """The image a mask belongs to and the region it shows ("" for a mask of everything)."""
    if stem in stems:
        return stem, ""
    folder, _, inner = stem.rpartition("/")
    if folder in stems:
        return folder, _region(inner)
    for cut in range(len(stem) - 1, 0, -1):
        if stem[cut] in "_-." and stem[:cut] in stems:
            return stem[:cut], _region(stem[cut:])
    return None, ""


def _region(rest: str) -> str:
    """`__Left-Lung_3` and `_left_lung_000` show a left lung: a trailing number counts files, not kinds."""
    name = re.sub(r"[_\-. ]\d+$", "", rest.strip("_-. "))
    return re.sub(r"[\s\-]+", "_", name).lower() or "label"


def _nothing_matches(
    images: Path, masks: Path, image_paths: Sequence[Path], mask_paths: Sequence[Path], *suffixes: str | None
) -> str:
    image, mask = image_paths[0], mask_paths[0]
    return (
        f"None of {len(image_paths)} images in {images} has a mask among {len(mask_paths)} in {masks}: for "
        f"'{image.name}' a mask named '{_stem(image, images, suffixes[0])}' was looked for, but masks are named like "
        f"'{_stem(mask, masks, suffixes[1])}'; say what follows the common part with --image-suffix and --mask-suffix."
    )
