"""Encoded slices on disk, float16: what decoder-only training reads instead of running the image encoder.

One `.npy` a slice, beside the memory-mapped copy of its case. The folder's name is a hash of everything that decides what the
encoder says, and the case's carries the size and time stamp of its npz, so that no file is ever read for another image.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medsam2_ft.errors import DataError

if TYPE_CHECKING:
    from medsam2_ft.data.dataset import SliceKey

EMBEDDINGS_FOLDER = "embeddings"
_HEADER_BYTES = 128
"""Of a `.npy` file that holds one flat array."""


@dataclass(frozen=True)
class EmbeddingStore:
    """Where the slices of one encoder lie; cheap to pickle to workers.

    Attributes:
        key: hash of the encoder's weights and settings.
        shapes: (C, h, w) of each array kept for a slice: the embedding, then the levels at strides 4 and 8.
    """

    key: str
    shapes: tuple[tuple[int, int, int], ...]

    @property
    def bytes_per_slice(self) -> int:
        """Size of one file."""
        return _HEADER_BYTES + 2 * sum(int(np.prod(shape)) for shape in self.shapes)

    def path(self, key: SliceKey) -> Path:
        """The file of a slice, there or not."""
        folder = key.case.folder
        return folder.parent / EMBEDDINGS_FOLDER / self.key / folder.name / f"{key.t}.npy"

    def holds(self, key: SliceKey) -> bool:
        """Whether the slice's file is there at full length."""
        path = self.path(key)
        return path.is_file() and path.stat().st_size == self.bytes_per_slice

    def read(self, key: SliceKey) -> tuple[NDArray[np.float16], ...]:
        """The slice's arrays, memory-mapped."""
        flat = np.load(
            self.path(key), mmap_mode="c"
        )  # torch wants arrays that it may write to; "c" keeps the file as it is
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])
        return tuple(part.reshape(shape) for part, shape in zip(np.split(flat, ends[:-1]), self.shapes, strict=True))

    def write(self, key: SliceKey, arrays: Iterable[NDArray[np.float16]]) -> None:
        """Keep a slice's arrays: under a temporary name first, so that readers see a whole file or none.

        Raises:
            DataError: if the folder cannot be written to.
        """
        path = self.path(key)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as file:
                np.save(file, np.concatenate([array.ravel() for array in arrays]).astype(np.float16, copy=False))
            draft.replace(path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise DataError(
                f"{path.parent} cannot be written to ({error.strerror or error}); set data.cache_dir to a folder with room, "
                "or finetune.cache_embeddings=false"
            ) from None

    def require_room(self, keys: Iterable[SliceKey]) -> None:
        """Refuse to start what the disk cannot hold.

        Raises:
            DataError: telling how much is needed and how much is free.
        """
        needed: dict[int, int] = {}
        places: dict[int, Path] = {}
        for key in keys:
            if not self.holds(key):
                folder = key.case.folder.parent
                device = folder.stat().st_dev
                places.setdefault(device, folder)
                needed[device] = needed.get(device, 0) + self.bytes_per_slice
        for device, folder in places.items():
            free = shutil.disk_usage(folder).free
            if needed[device] > free:
                raise DataError(
                    f"the encoded slices need {needed[device] / 1e9:.1f} GB under {folder}, where {free / 1e9:.1f} GB are free; "
                    "set data.cache_dir to a larger disk, take fewer slices with data.train_slices_per_case, or set "
                    "finetune.cache_embeddings=false"
                )
