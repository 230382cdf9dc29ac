"""2D images and mask images in, whatever the encoding; pixels keep their values and bit depth."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from medsam2_ft.errors import DataError
from medsam2_ft.io.faults import reading
from medsam2_ft.io.volume import Volume

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".dcm")
LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")


def is_image_file(path: Path) -> bool:
    """Whether the name ends like an image that `read_image` opens."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def read_image(path: Path | str) -> Volume:
    """Read one image.

    Palettes are resolved, alpha is dropped, a colour image whose channels are all equal becomes grey, and a camera's
    rotation tag is obeyed.

    Args:
        path: PNG, JPEG, BMP, GIF, TIFF, WebP or single-frame DICOM.

    Returns:
        A volume of kind "image": array (1, H, W) or (1, H, W, 3) with the file's own integer or float type.

    Raises:
        DataError: one sentence naming the file, if it is missing, damaged, or holds several images.
    """
    path = Path(path)
    with reading(path):
        if path.suffix.lower() == ".dcm":
            from medsam2_ft.io.dicom import read_single

            return read_single(path)
        array = _tiff(path) if path.suffix.lower() in (".tif", ".tiff") else _picture(path, keep_palette=False)
    return Volume(array=_grey_if_equal(_without_alpha(array, path))[None], kind="image", source=str(path))


def read_mask_image(path: Path | str) -> NDArray[Any]:
    """Read a mask's pixels as they are stored: palette images give their indices, not their colours.

    Returns:
        (H, W) numbers, or (H, W, 3) colours.

    Raises:
        DataError: as `read_image`.
    """
    path = Path(path)
    with reading(path):
        if path.suffix.lower() == ".dcm":
            from medsam2_ft.io.dicom import read_single

            single: NDArray[Any] = read_single(path).array[0]
            return single
        array = _tiff(path) if path.suffix.lower() in (".tif", ".tiff") else _picture(path, keep_palette=True)
    return _grey_if_equal(_without_alpha(array, path))


def _picture(path: Path, *, keep_palette: bool) -> NDArray[Any]:
    with Image.open(path) as image:
        num_frames = getattr(image, "n_frames", 1)
        if num_frames > 1:
            raise DataError(f"{path} holds {num_frames} images; it is a video or a stack, not a single image.")
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "P":
            # GIF writers store grey levels as a palette of greys; its indices mean nothing then.
            is_grey_ramp = _is_grey_palette(upright)
            upright = upright if keep_palette and not is_grey_ramp else upright.convert("L" if is_grey_ramp else "RGB")
        elif upright.mode not in ("1", "L", "LA", "RGB", "RGBA", "I;16", "I;16B", "I;16L", "I", "F"):
            upright = upright.convert("RGB")
        return np.asarray(upright)


def _is_grey_palette(image: Image.Image) -> bool:
    palette = np.reshape(image.getpalette("RGB") or [], (-1, 3))
    used = np.flatnonzero(np.asarray(image.histogram()[:256]))
    colours = palette[used[used < len(palette)]]
    return bool(len(colours) and np.all(colours == colours[:, :1]))


def _tiff(path: Path) -> NDArray[Any]:
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            if len(file.pages) > 1 and not file.pages[1].is_reduced:
                raise DataError(f"{path} holds {len(file.pages)} images; it is a stack, not a single image.")
            page = file.pages[0]
            if page.photometric in (tifffile.PHOTOMETRIC.PALETTE, tifffile.PHOTOMETRIC.YCBCR):
                return _picture(path, keep_palette=True)
            array = np.asarray(page.asarray())
    except (tifffile.TiffFileError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        # Compressions that need an extra codec are often known to pillow.
        return _picture(path, keep_palette=True)
    return np.moveaxis(array, 0, -1) if array.ndim == 3 and array.shape[0] in (3, 4) < array.shape[2:] else array


def _without_alpha(array: NDArray[Any], path: Path) -> NDArray[Any]:
    if array.ndim == 3 and array.shape[2] in (2, 4):
        array = array[..., :-1]
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)):
        raise DataError(f"{path} has the shape {array.shape}; an image is grey, RGB or RGBA.")
    if array.dtype == bool:
        array = array.astype(np.uint8) * np.uint8(255)
    # Big-endian files (some TIFF) would otherwise stay big-endian in memory.
    native: NDArray[Any] = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return native


def _grey_if_equal(array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim == 2 or not all(np.array_equal(array[..., 0], array[..., channel]) for channel in (1, 2)):
        return array
    grey: NDArray[Any] = array[..., 0].copy()
    return grey
