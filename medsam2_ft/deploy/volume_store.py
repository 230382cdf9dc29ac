"""Uploaded volumes on disk, addressed by the sha256 of their .npy bytes; file names are never the client's."""

import hashlib
import logging
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam2_ft.deploy.limits import Limits, Refusal

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
DTYPES = ("u1", "i1", "u2", "i2", "i4", "u4", "f4", "f8")


class VolumeStore:
    """Content-addressed, reference-counted arrays below one folder that the server owns.

    Several sessions that upload the same bytes share one file; the file goes when the last of them releases it.
    """

    def __init__(self, folder: Path, *, limits: Limits) -> None:
        self.folder = folder
        self._limits = limits
        self._holders: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def stored_bytes(self) -> int:
        """Bytes of all volumes on disk."""
        return sum(self._sizes.values())

    def add(self, upload: Path, *, sha256: str) -> None:
        """Check a gzip-compressed .npy upload and keep it, or count one more holder of the same bytes.

        Args:
            upload: the received file; it stays where it is and is the caller's to delete.
            sha256: what the client says the uncompressed .npy bytes hash to.

        Raises:
            Refusal: 413 too large, 415 not gzip or not .npy, 422 wrong hash, shape or values, 429 disk budget spent.
        """
        unpacked = upload.with_suffix(".npy")
        try:
            digest = self._unpack(upload, unpacked)
            if digest != sha256:
                raise Refusal(422, f"The upload's sha256 is {digest}, not {sha256}: it was damaged on its way.")
            _check_array(unpacked, side=self._limits.side)
            with self._lock:
                if sha256 not in self._sizes:
                    size = unpacked.stat().st_size
                    if self.stored_bytes + size > self._limits.stored_bytes:
                        raise Refusal(429, "The server's disk budget is spent; close a session or try again later.")
                    unpacked.replace(self._path(sha256))
                    self._sizes[sha256] = size
                self._holders[sha256] = self._holders.get(sha256, 0) + 1
        finally:
            unpacked.unlink(missing_ok=True)

    def open(self, sha256: str) -> NDArray[Any]:
        """The stored array, memory-mapped and read-only.

        Raises:
            Refusal: 404, it was deleted while the request was on its way.
        """
        try:
            array: NDArray[Any] = np.load(self._path(sha256), mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise Refusal(404, "This volume was deleted.") from None
        return array

    def release(self, sha256: str) -> bool:
        """One holder less; True if that was the last and the file is gone."""
        with self._lock:
            self._holders[sha256] -= 1
            if self._holders[sha256]:
                return False
            del self._holders[sha256], self._sizes[sha256]
            self._path(sha256).unlink(missing_ok=True)
            return True

    def _path(self, sha256: str) -> Path:
        assert len(sha256) == 64 and sha256.isalnum(), sha256
        return self.folder / f"{sha256}.npy"

    def _unpack(self, packed: Path, target: Path) -> str:
        """Decompress in bounded steps, so that a bomb is noticed before it fills memory or disk."""
        inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        digest, total = hashlib.sha256(), 0
        with packed.open("rb") as source, target.open("wb") as sink:
            while not inflate.eof:
                chunk = inflate.unconsumed_tail or source.read(CHUNK_BYTES)
                if not chunk:
                    raise Refusal(415, "The upload ends early or is not gzip-compressed.")
                try:
                    plain = inflate.decompress(chunk, CHUNK_BYTES)
                except zlib.error:
                    raise Refusal(415, "The upload is not gzip-compressed.") from None
                total += len(plain)
                if total > self._limits.volume_bytes:
                    raise Refusal(413, f"The volume is larger than {self._limits.volume_bytes >> 20} MiB uncompressed.")
                digest.update(plain)
                sink.write(plain)
        return digest.hexdigest()


def _check_array(path: Path, *, side: int) -> None:
    """Refuse what is not a finite 3D scalar or RGB array (415, 422)."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError, TypeError):
        raise Refusal(415, "The upload is not a NumPy .npy array of numbers.") from None
    if not isinstance(array, np.ndarray) or array.dtype.str[1:] not in DTYPES:
        raise Refusal(422, "The volume's values must be 8, 16 or 32 bit integers or floats.")
    is_volume = array.ndim == 3 or (array.ndim == 4 and array.shape[-1] == 3 and array.dtype == np.uint8)
    if not is_volume or min(array.shape) < 1 or max(array.shape) > side:
        raise Refusal(
            422, f"The volume must be (slices, rows, columns) with 1 to {side} voxels a side, not {array.shape}."
        )
    if array.dtype.kind == "f" and not all(np.isfinite(plane).all() for plane in array):
        raise Refusal(422, "The volume holds values that are not finite numbers; replace them before sending.")
