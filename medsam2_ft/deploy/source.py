"""Open whatever a user hands over: the ending of a file, or what a folder holds, says what it is."""

from __future__ import annotations

from pathlib import Path

from medsam2_ft.errors import DataError
from medsam2_ft.io.image import IMAGE_SUFFIXES, is_image_file, read_image
from medsam2_ft.io.sequence import VIDEO_SUFFIXES, is_picture_folder, is_video_file, read_pictures, read_video
from medsam2_ft.io.volume import VOLUME_SUFFIXES, Volume, read_volume

DICOM_SUFFIXES = (".dcm", ".ima")
SUFFIXES = {"image": IMAGE_SUFFIXES, "volume": (*VOLUME_SUFFIXES, *DICOM_SUFFIXES), "video": VIDEO_SUFFIXES}
"""What each tab of the app opens."""


def open_source(path: Path | str, *, plane: str = "acquisition", kind: str | None = None) -> Volume:
    """Read an image, a volume, a DICOM folder, a folder of frames or a video.

    Args:
        path: file or folder.
        plane: which axis of a volume becomes T.
        kind: "image" or "volume" decides what a lone DICOM file is; None takes it for an image.

    Raises:
        DataError: it is missing, damaged, or of no kind that is read here.
    """
    path = Path(path)
    name = path.name.lower()
    if not path.exists():
        raise DataError(f"There is no file {path}.")
    if is_video_file(path):
        return read_video(path)
    if is_picture_folder(path):
        return read_pictures(path, kind="video")
    if path.is_dir() or name.endswith(VOLUME_SUFFIXES) or (kind == "volume" and name.endswith(DICOM_SUFFIXES)):
        return read_volume(path, plane=plane)
    if is_image_file(path):
        return read_image(path)
    known = " ".join((*VOLUME_SUFFIXES, *IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
    raise DataError(f"{path.name} is of no kind that is read here: {known}, or a folder of DICOM files or pictures.")
