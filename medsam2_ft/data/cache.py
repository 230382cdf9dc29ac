"""Uncompressed, memory-mapped copies of npz cases: npz is for storage, training reads these.

A cached case is a folder with `imgs.npy`, `masks.npy` and `case.json`, made once per npz and written under a
temporary name. Its key holds the npz's size and time stamp, so that a case prepared anew is cached anew.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam2_ft.data.case import Case
from medsam2_ft.data.manifest import Record
from medsam2_ft.errors import DataError

CACHE_FOLDER = ".cache"


@dataclass(frozen=True)
class CachedCase:
    """A cached case by the folder it lies in; cheap to pickle to workers, which map the arrays themselves.

    Attributes:
        folder: with `imgs.npy`, `masks.npy` and `case.json`.
        name: of the case.
        labels: region name -> label ids.
        objects: for each slice, the (region, instance) pairs on it; instance 0 is the whole region.
    """

    folder: Path
    name: str
    labels: dict[str, list[int]]
    objects: list[list[tuple[str, int]]]

    @property
    def case(self) -> Case:
        """The case with memory-mapped arrays, opened once per process."""
        return _map_case(self.folder)


def cache_case(record: Record, *, root: Path, cache_dir: Path | None = None) -> CachedCase:
    """The cached copy of a case, made now if it is not there yet.

    Args:
        record: its row in the manifest.
        root: the dataset folder.
        cache_dir: where copies go; `ROOT/.cache` by default.

    Raises:
        DataError: if the npz is missing or damaged, or holds no masks, or the copy cannot be written.
    """
    path = root / record.file
    if not path.is_file():
        raise DataError(f"{path} is in the manifest but not on disk; prepare the dataset again")
    stat = path.stat()
    folder = (cache_dir or root / CACHE_FOLDER) / f"{record.case}-{stat.st_size:x}-{stat.st_mtime_ns:x}"
    if not (folder / "case.json").is_file():
        try:
            _write(Case.load(path), folder, labels=record.labels)
        except OSError as error:
            raise DataError(
                f"the memory-mapped copy of {record.case} cannot be written under {folder.parent} ({error.strerror or error}); "
                "set data.cache_dir to a folder with room that may be written to"
            ) from None
    index = json.loads((folder / "case.json").read_text())
    objects = [[(str(region), int(instance)) for region, instance in found] for found in index["objects"]]
    return CachedCase(folder, record.case, index["labels"], objects)


def _write(case: Case, folder: Path, *, labels: dict[str, list[int]]) -> None:
    masks = case.gts if case.gts_layers is None else case.gts_layers
    if masks is None:
        raise DataError(f"{case.name} has no masks, so nothing can be learned from it; take it out of the manifest")
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    index = {
        "name": case.name,
        "kind": case.kind,
        "labels": case.labels or labels,
        "instances": case.instances,
        "layers": case.gts_layers is not None,
        "objects": [case.objects(t) for t in range(case.num_slices)],
        "kept_slices": None if case.kept_slices is None else case.kept_slices.tolist(),
        "labelled": None if case.labelled is None else case.labelled.tolist(),
    }
    try:
        draft.mkdir(parents=True)
        np.save(draft / "imgs.npy", case.imgs)
        np.save(draft / "masks.npy", masks)
        (draft / "case.json").write_text(json.dumps(index))
        draft.rename(folder)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)
        if not (folder / "case.json").is_file():  # else another process was faster
            raise


@lru_cache(maxsize=512)
def _map_case(folder: Path) -> Case:
    index = json.loads((folder / "case.json").read_text())
    masks: NDArray[Any] = np.load(folder / "masks.npy", mmap_mode="r")
    return Case(
        name=index["name"],
        imgs=np.load(folder / "imgs.npy", mmap_mode="r"),
        gts=None if index["layers"] else masks,
        gts_layers=masks if index["layers"] else None,
        kind=index["kind"],
        labels=index["labels"],
        instances=index["instances"],
        kept_slices=None if index["kept_slices"] is None else np.asarray(index["kept_slices"]),
        labelled=None if index["labelled"] is None else np.asarray(index["labelled"], bool),
    )
