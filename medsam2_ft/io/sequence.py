"""Many pictures as one array: folders of slices or frames in numeric order, and video files."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam2_ft.errors import DataError
from medsam2_ft.io.faults import reading
from medsam2_ft.io.image import is_image_file, read_image
from medsam2_ft.io.volume import Volume

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg")
MAX_BYTES = 8 * 2**30
"""Longest sequence that is held in memory, decoded."""


def is_sequence(path: Path) -> bool:
    """Whether this is a video file, or a folder that holds pictures and no folders."""
    return is_video_file(path) or is_picture_folder(path)


def is_video_file(path: Path) -> bool:
    """Whether the name ends like a video that `read_video` opens."""
    return path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES


def is_picture_folder(path: Path) -> bool:
    """Whether this is a folder of slices or frames as ordinary pictures (not DICOM)."""
    if not path.is_dir():
        return False
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    pictures = [entry for entry in entries if is_image_file(entry) and entry.suffix.lower() != ".dcm"]
    return bool(pictures) and not any(entry.is_dir() for entry in entries)


def picture_files(folder: Path) -> list[Path]:
    """The pictures of a folder, 10 after 9."""
    files = [entry for entry in folder.iterdir() if is_image_file(entry) and not entry.name.startswith(".")]
    return sorted(files, key=lambda file: natural_key(file.name))


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sort key in which `10` comes after `9`."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name)]


def read_pictures(folder: Path | str, *, kind: str = "volume") -> Volume:
    """Read a folder of equally sized pictures.

    Args:
        folder: its pictures, sorted numerically, become T.
        kind: "volume" if T is space, "video" if it is time.

    Returns:
        array (T, H, W), or (T, H, W, 3) if any picture has colour; spacing and affine unknown.

    Raises:
        DataError: naming the picture that is damaged or of another size.
    """
    folder = Path(folder)
    files = picture_files(folder)
    if not files:
        raise DataError(f"{folder} holds no pictures.")
    arrays = [read_image(file).array[0] for file in files]
    for file, array in zip(files, arrays, strict=True):
        if array.shape[:2] != arrays[0].shape[:2]:
            raise DataError(f"{file} is {array.shape[:2]} pixels, but {files[0].name} is {arrays[0].shape[:2]}.")
    return Volume(array=_stacked(arrays), kind=kind, source=str(folder))


def read_video(path: Path | str, *, every: int = 1) -> Volume:
    """Decode a video file.

    Args:
        path: anything PyAV opens.
        every: keep only each n-th frame.

    Returns:
        uint8 array (T, H, W), or (T, H, W, 3) if it has colour, with `fps` of the kept frames.

    Raises:
        DataError: if it is damaged, empty, or too long for memory.
    """
    import av

    path = Path(path)
    frames: list[NDArray[np.uint8]] = []
    with reading(path), av.open(str(path)) as container:
        stream = next(iter(container.streams.video), None)
        if stream is None:
            raise DataError(f"{path} has no video stream.")
        rate = float(stream.average_rate) if stream.average_rate else None
        for number, frame in enumerate(container.decode(stream)):
            if number % every:
                continue
            frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) * frames[0].nbytes > MAX_BYTES:
                raise DataError(f"{path} needs more than {MAX_BYTES >> 30} GiB decoded; cut it, or use --every.")
    if not frames:
        raise DataError(f"{path} holds no frames.")
    return Volume(
        array=_without_equal_channels(np.stack(frames)),
        kind="video",
        source=str(path),
        fps=None if rate is None else rate / every,
    )


def _stacked(arrays: Iterable[NDArray[Any]]) -> NDArray[Any]:
    listed = list(arrays)
    if any(array.ndim == 3 for array in listed):
        listed = [array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=-1) for array in listed]
    return np.stack(listed)


def _without_equal_channels(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    # Grey videos come back from YUV with channels that differ by rounding only; strict equality keeps real colour.
    if all(np.array_equal(array[..., 0], array[..., channel]) for channel in (1, 2)):
        return np.ascontiguousarray(array[..., 0])
    return array
