"""A dataset folder's table of contents: `manifest.csv`, one row an image, volume or video.

Shapes and spacings in it are in (T, H, W) order, spacings in mm.
"""

import csv
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path

from medsam2_ft.data.npz import grid_of
from medsam2_ft.data.splits import assign_splits
from medsam2_ft.errors import DataError, nearest

MANIFEST = "manifest.csv"
SPLITS = ("train", "val", "test")
MODALITIES = (
    "CT", "MR", "PET", "Ultrasound", "X-ray", "Dermoscopy", "Endoscopy", "Fundus", "OCT", "Mammography", "Microscopy",
)  # fmt: skip
_ALIASES = {
    "mri": "MR", "magnetic resonance": "MR", "mr-t1": "MR", "mr-t2": "MR", "mr-flair": "MR", "nm": "PET", "pt": "PET",
    "pet-ct": "PET", "us": "Ultrasound", "ultrasonography": "Ultrasound", "echo": "Ultrasound", "xray": "X-ray",
    "x ray": "X-ray", "cr": "X-ray", "dx": "X-ray", "cxr": "X-ray", "dermatoscopy": "Dermoscopy",
    "dermatology": "Dermoscopy", "endoscope": "Endoscopy", "colonoscopy": "Endoscopy", "fundus photography": "Fundus",
    "octa": "OCT", "mg": "Mammography", "mammo": "Mammography", "mammogram": "Mammography",
    "light microscopy": "Microscopy", "microscope": "Microscopy", "micro": "Microscopy", "histopathology": "Microscopy",
    "pathology": "Microscopy",
}  # fmt: skip


@dataclass(frozen=True)
class Record:
    """One row of `manifest.csv`.

    Attributes:
        case: unique name; also the stem of its npz.
        file: npz path relative to the dataset folder.
        modality: one of `MODALITIES`, or "" when a foreign file does not tell.
        split: "train", "val" or "test".
        patient: what must not be torn apart by a split.
        labels: region name -> label ids; empty for foreign files, whose masks are not opened for the listing.
        shape: (T, H, W) in pixels.
        spacing: (T, H, W) in mm, or None when unknown.
        source: the image path as the user gave it.
        sha256: hash of the source image, "" for foreign files.
    """

    case: str
    file: str
    modality: str
    split: str
    patient: str
    labels: dict[str, list[int]] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    spacing: tuple[float, float, float] | None = None
    source: str = ""
    sha256: str = ""


def normalise_modality(name: str) -> str:
    """The canonical modality for what a user or another tool wrote (`MRI`, `us`, `Light microscopy`).

    Raises:
        DataError: for a name that is neither a modality nor an alias.
    """
    known = {modality.lower(): modality for modality in MODALITIES} | _ALIASES
    key = re.sub(r"[_\s]+", " ", name.strip().lower())
    for candidate in (key, key.replace(" ", "-"), key.replace("-", " ")):
        if candidate in known:
            return known[candidate]
    raise DataError(f"There is no modality '{name}'{nearest(name, MODALITIES)}.")


def read_manifest(root: Path | str) -> list[Record]:
    """All records of a dataset folder, in the order of its `manifest.csv`.

    A folder without a manifest that holds npz files of other tools (the MedSAM2 reference, the CVPR challenge) is
    listed as it is: modality from the file name, split from a folder name such as `npz_train`, otherwise by hash.

    Raises:
        DataError: if there is neither, or a row is damaged; the sentence names what was looked for.
    """
    root = Path(root)
    path = root / MANIFEST
    if path.is_file():
        return _read_rows(path)
    if root.is_dir() and (records := _foreign_records(root)):
        return records
    looked = f"neither {MANIFEST} nor any .npz file in it" if root.is_dir() else "no such folder"
    raise DataError(
        f"{root} is not a prepared dataset ({looked}); make one with: "
        f"python -m data_prep volumes --images DIR --masks DIR --out {root} --modality CT"
    )


def write_manifest(root: Path | str, records: Iterable[Record]) -> Path:
    """Write `manifest.csv` in one step: readers see the old table or the new one, never half of one."""
    path = Path(root) / MANIFEST
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=[column.name for column in fields(Record)])
        writer.writeheader()
        writer.writerows(_to_row(record) for record in records)
    draft.replace(path)
    return path


def _to_row(record: Record) -> dict[str, str]:
    return {
        **{
            name: getattr(record, name) for name in ("case", "file", "modality", "split", "patient", "source", "sha256")
        },
        "labels": json.dumps(record.labels),
        "shape": "x".join(map(str, record.shape)),
        "spacing": "x".join(f"{step:.6g}" for step in record.spacing) if record.spacing else "",
    }


def _read_rows(path: Path) -> list[Record]:
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        missing = {column.name for column in fields(Record)} - set(reader.fieldnames or ())
        if missing:
            raise DataError(f"{path} lacks the column(s) {', '.join(sorted(missing))}; prepare the dataset again.")
        return [_from_row(row, path, number) for number, row in enumerate(reader, start=2)]


def _from_row(row: dict[str, str], path: Path, number: int) -> Record:
    try:
        step = [float(part) for part in row["spacing"].split("x")] if row["spacing"] else None
        return Record(
            case=row["case"],
            file=row["file"],
            modality=row["modality"],
            split=row["split"],
            patient=row["patient"],
            labels={str(name): [int(i) for i in ids] for name, ids in json.loads(row["labels"] or "{}").items()},
            shape=tuple(int(part) for part in row["shape"].split("x")) if row["shape"] else (),
            spacing=(step[0], step[1], step[2]) if step else None,
            source=row["source"],
            sha256=row["sha256"],
        )
    except (ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        raise DataError(f"{path}, line {number}, is damaged ({error}); prepare the dataset again.") from None


def _foreign_records(root: Path) -> list[Record]:
    files = sorted(path for path in root.rglob("*.npz") if not path.name.startswith("."))
    names = [path.relative_to(root).with_suffix("").as_posix().replace("/", "__") for path in files]
    hashed = assign_splits(names)
    return [
        Record(
            case=name,
            file=path.relative_to(root).as_posix(),
            modality=_modality_in_name(path.stem),
            split=_split_in_path(path.relative_to(root)) or hashed[name],
            patient=name,
            shape=grid_of(path),
            source=str(path),
        )
        for name, path in zip(names, files, strict=True)
    ]


def _modality_in_name(stem: str) -> str:
    """`CT_Abd_case`, `2DBox_US_0001`, `3D_PET_x`: the first part that names a modality."""
    for part in re.split(r"[_\-]", stem):
        try:
            return normalise_modality(part)
        except DataError:
            continue
    return ""


def _split_in_path(relative: Path) -> str:
    for folder in relative.parts[:-1]:
        for word in re.split(r"[_\-]", folder.lower()):
            if word in ("train", "training"):
                return "train"
            if word in ("val", "valid", "validation"):
                return "val"
            if word in ("test", "testing"):
                return "test"
    return ""
