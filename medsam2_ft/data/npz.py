"""Opening npz files that anyone may have made: guarded against bombs and pickles, and foreign layouts told apart.

Foreign files hold `imgs`, `gts`, `boxes` and `spacing` (x, y, z) and nothing that says which axis is which;
`standardise` decides from all of them together and returns (T, H, W) order.
"""

import zipfile
import zlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from medsam2_ft.errors import DataError

KEYS = (
    "imgs", "gts", "boxes", "spacing", "schema", "axes", "kind", "labels", "window", "spacing_known", "modality",
    "patient", "source", "source_sha256", "fingerprint", "instances", "fps", "affine", "original_affine",
    "original_shape", "kept_slices", "labelled", "gts_layers", "origin", "direction",
)  # fmt: skip
MAX_BYTES = 8 * 2**30
"""Largest case that is opened, uncompressed."""
_SUSPICIOUS_BYTES = 256 * 2**20
_SUSPICIOUS_RATIO = 400


def read_arrays(path: Path, *, only: tuple[str, ...] = KEYS) -> dict[str, NDArray[Any]]:
    """The arrays of an npz that we know, never unpickling.

    Args:
        path: the npz.
        only: which keys to open; the others are not touched.

    Raises:
        DataError: if the file is not an npz, is truncated, holds pickled `imgs`, or would unfold to an absurd size.
    """
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            shapes = _check_members(archive, path)
        with np.load(path, allow_pickle=False) as stored:
            arrays = {}
            for key in only:
                # Challenge files carry pickled extras (text prompts, boxes as dicts); they are left shut.
                if key in shapes and shapes[key][1] != np.dtype(object):
                    arrays[key] = stored[key]
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError, NotImplementedError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not a readable npz file, or was cut short ({error}).") from None
    return arrays


def read_header(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and dtype of each array, without unpacking any.

    Raises:
        DataError: as `read_arrays`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _check_members(archive, path)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError, NotImplementedError) as error:
        raise DataError(f"{path} is not a readable npz file, or was cut short ({error}).") from None


def grid_of(path: Path) -> tuple[int, ...]:
    """(T, H, W) of a foreign npz, told from its headers alone; () if it cannot be opened."""
    try:
        headers = read_header(path)
    except DataError:
        return ()
    if "imgs" not in headers:
        return ()
    # Arrays of one repeated value have the shapes and take no memory.
    blank = {key: np.broadcast_to(np.uint8(0), headers[key][0]) for key in ("imgs", "gts", "boxes") if key in headers}
    imgs, gts = blank["imgs"], blank.get("gts")
    spacing = blank["imgs"] if "spacing" in headers else None
    if _is_single_image(imgs, gts, blank.get("boxes"), spacing, path):
        return 1, *imgs.shape[:2]
    return imgs.shape[1:] if imgs.ndim == 4 and _is_channels_first(imgs, gts) else imgs.shape[:3]


def standardise(arrays: dict[str, NDArray[Any]], path: Path) -> dict[str, Any]:
    """Fields of a `Case` from a foreign npz.

    Args:
        arrays: `imgs` and any of `gts`, `boxes`, `spacing`, `origin`, `direction`.
        path: for the name of the file in errors, and its hints.

    Raises:
        DataError: if there are no images, values are not 8-bit, or image and mask do not fit.
    """
    if "imgs" not in arrays:
        raise DataError(f"{path} holds no array 'imgs'; it is not a MedSAM case.")
    imgs = arrays["imgs"]
    raw_gts = arrays.get("gts")
    gts = None if raw_gts is None else _as_ids(raw_gts, path)
    boxes = arrays.get("boxes")
    is_flat = _is_single_image(imgs, gts, boxes, arrays.get("spacing"), path)
    if is_flat:
        imgs = imgs[None]
        gts = None if gts is None else gts.reshape(1, *imgs.shape[1:3])
    elif imgs.ndim == 4 and _is_channels_first(imgs, gts):
        imgs = np.ascontiguousarray(np.moveaxis(imgs, 0, -1))
    if gts is not None and gts.shape != imgs.shape[:3]:
        raise DataError(f"{path}: the mask is {gts.shape}, but the image is on a {imgs.shape[:3]} grid.")
    spacing = _spacing(arrays.get("spacing"), is_flat)
    affine = None
    if spacing is not None and {"origin", "direction"} <= arrays.keys():
        affine = _affine(spacing, arrays["origin"], arrays["direction"])
    ids = [] if gts is None else [int(i) for i in np.flatnonzero(np.bincount(gts.reshape(-1))) if i]
    return {
        "imgs": _as_uint8(imgs, path),
        "gts": gts,
        "boxes": boxes,
        "kind": "image" if is_flat else "volume" if spacing is not None or imgs.ndim == 3 else "video",
        "spacing_mm": spacing,
        "labels": {f"label_{i}": [i] for i in ids},
        "affine": affine,
        "original_affine": None if affine is None else affine[:, [2, 1, 0, 3]],
        "original_shape": None if affine is None else imgs.shape[2::-1],
    }


def _check_members(archive: zipfile.ZipFile, path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Headers of all members, after making sure that unpacking them is safe."""
    members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
    total = sum(info.file_size for info in members)
    if total > MAX_BYTES:
        raise DataError(f"{path} would unfold to {total / 2**30:.0f} GiB; it is a zip bomb or not a case.")
    headers = {}
    for info in members:
        key = info.filename.removesuffix(".npy")
        with archive.open(info) as stream:
            shape, dtype = _read_npy_header(stream)
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if dtype != np.dtype(object) and size > info.file_size:
            raise DataError(f"{path}: '{key}' claims {size} bytes but stores {info.file_size}; the file is damaged.")
        # Real images do not compress like this; masks may.
        if key == "imgs" and info.file_size > max(_SUSPICIOUS_BYTES, _SUSPICIOUS_RATIO * info.compress_size):
            raise DataError(
                f"{path}: '{key}' unfolds {info.file_size // max(info.compress_size, 1)}-fold to "
                f"{info.file_size / 2**20:.0f} MiB; it is a zip bomb or an empty image."
            )
        headers[key] = (shape, dtype)
    return headers


class _Stream(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...


def _read_npy_header(stream: _Stream) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream)
    return tuple(shape), dtype


def _is_single_image(
    imgs: NDArray[Any], gts: NDArray[Any] | None, boxes: NDArray[Any] | None, spacing: NDArray[Any] | None, path: Path
) -> bool:
    """Tell (H, W) and (H, W, 3) from (D, H, W), taking the masks' word first, then the boxes', then the shape's."""
    if imgs.ndim == 2:
        return True
    if imgs.ndim == 4:
        return False
    if imgs.ndim != 3:
        raise DataError(f"{path}: imgs have {imgs.ndim} axes; 2 to 4 are expected.")
    if gts is not None and gts.ndim == 2:
        return True
    if gts is not None and gts.shape == imgs.shape:
        return False
    if boxes is not None and boxes.ndim == 2 and boxes.shape[1] in (4, 6):
        return bool(boxes.shape[1] == 4)
    if imgs.shape[-1] != 3:
        return False
    return spacing is None or not path.stem.upper().startswith("3D")


def _is_channels_first(imgs: NDArray[Any], gts: NDArray[Any] | None) -> bool:
    if gts is not None and gts.shape in (imgs.shape[1:], imgs.shape[:3]):
        return bool(imgs.shape[0] == 3 and gts.shape == imgs.shape[1:])
    return bool(imgs.shape[0] == 3 and imgs.shape[-1] != 3)


def _spacing(stored: NDArray[Any] | None, is_flat: bool) -> tuple[float, float, float] | None:
    if stored is None or stored.ndim != 1 or stored.size not in (2, 3) or not np.all(np.asarray(stored, float) > 0):
        return None
    x, y, z = (*map(float, stored), 1.0)[:3]
    return (1.0 if is_flat else z, y, x)


def _affine(
    spacing_mm: tuple[float, float, float], origin: NDArray[Any], direction: NDArray[Any]
) -> NDArray[np.float64]:
    """(t, h, w, 1) -> RAS from SimpleITK's origin and direction, which are LPS and (x, y, z)."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(direction, (3, 3)).astype(float)[:, ::-1] * np.asarray(spacing_mm)
    affine[:3, 3] = np.asarray(origin, float)
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _as_ids(gts: NDArray[Any], path: Path) -> NDArray[Any]:
    if gts.dtype in (np.uint8, np.uint16):
        return gts
    if gts.dtype == bool:
        return gts.astype(np.uint8)
    if gts.size and (gts.min() < 0 or gts.max() > 65535 or np.any(gts != np.rint(gts))):
        raise DataError(
            f"{path}: gts must be whole numbers from 0 to 65535; they go from {gts.min():g} to {gts.max():g}."
        )
    return gts.astype(np.uint8 if not gts.size or gts.max() < 256 else np.uint16)


def _as_uint8(imgs: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    if imgs.dtype == np.uint8:
        return imgs
    if imgs.size and (not np.all(np.isfinite(imgs)) or imgs.min() < 0 or imgs.max() > 255):
        raise DataError(f"{path}: imgs must be 0..255; they are {imgs.dtype} from {imgs.min():g} to {imgs.max():g}.")
    if imgs.size and imgs.dtype.kind == "f" and imgs.max() <= 1 and np.any(imgs != np.rint(imgs)):
        raise DataError(f"{path}: imgs go from 0 to 1; the format wants 0..255, so multiply by 255 first.")
    rounded: NDArray[np.uint8] = np.rint(imgs).astype(np.uint8)
    return rounded
