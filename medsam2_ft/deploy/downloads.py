"""A label map as files for other programs: NIfTI in the source's geometry, PNG slices, an mp4 to look at."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medsam2_ft.errors import DataError
from medsam2_ft.overlay import COLOURS, draw_masks

DEFAULT_FPS = 10.0


def write_png(path: Path, labels_HW: NDArray[Any]) -> Path:
    """One slice's ids as an indexed PNG: pixel values are the ids, colours those of the overlay.

    Raises:
        DataError: ids above 255.
    """
    path.write_bytes(_png(labels_HW))
    return path


def write_png_zip(path: Path, labels_THW: NDArray[Any], *, names: Mapping[str, int]) -> Path:
    """All slices as `0000.png` ... with the ids as pixel values, and `labels.json` with their names."""
    digits = max(4, len(str(len(labels_THW) - 1)))
    with zipfile.ZipFile(path, "w") as archive:
        for index, plane in enumerate(labels_THW):
            archive.writestr(f"{index:0{digits}d}.png", _png(plane))
        archive.writestr("labels.json", json.dumps(dict(names), indent=2))
    return path


def write_overlay_video(
    path: Path, imgs_THW: NDArray[np.uint8], labels_THW: NDArray[Any], *, fps: float | None = None
) -> Path:
    """The masks over the slices or frames as an mp4 (H.264, 4:2:0) that browsers play; encoded on the CPU by PyAV.

    Args:
        path: ends in .mp4.
        imgs_THW: uint8 (T, H, W) or (T, H, W, 3).
        labels_THW: ids of the same grid.
        fps: frames a second; ten where unknown.
    """
    import av

    height, width = (side + side % 2 for side in labels_THW.shape[1:])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps or DEFAULT_FPS).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "20", "preset": "veryfast"}
        for image, plane in zip(imgs_THW, labels_THW, strict=True):
            drawn = draw_masks(np.ascontiguousarray(image), _by_colour(plane))
            even = np.pad(drawn, ((0, height - drawn.shape[0]), (0, width - drawn.shape[1]), (0, 0)), mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")))
        container.mux(stream.encode())
    return path


def _by_colour(labels_HW: NDArray[Any]) -> list[NDArray[np.bool_]]:
    """One mask for each colour, which ids share in turn: as cheap for a thousand objects as for one."""
    return [(labels_HW > 0) & ((labels_HW.astype(np.int64) - 1) % len(COLOURS) == i) for i in range(len(COLOURS))]


def _png(labels_HW: NDArray[Any]) -> bytes:
    if labels_HW.size and labels_HW.max() > 255:
        raise DataError(f"A PNG holds ids up to 255, and this mask has {labels_HW.max()}; write .nii.gz instead.")
    image = Image.fromarray(labels_HW.astype(np.uint8)).convert("P")
    image.frombytes(labels_HW.astype(np.uint8).tobytes())
    palette = [(0, 0, 0), *(COLOURS[i % len(COLOURS)] for i in range(255))]
    image.putpalette([channel for colour in palette for channel in colour])
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()
