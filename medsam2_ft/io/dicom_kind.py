"""What a DICOM file is, from its first bytes and a few tags: no pixels are read, and nothing slow is imported."""

from pathlib import Path

import pydicom

from medsam2_ft.io.faults import reading


def is_dicom_file(path: Path) -> bool:
    """Whether the bytes say DICOM; file names of series often say nothing."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def is_series_file(path: Path) -> bool:
    """Whether this is a DICOM image, not a segmentation, contours or anything else."""
    if not is_dicom_file(path):
        return False
    header = pydicom.dcmread(path, specific_tags=["Modality", "Rows"])
    return "Rows" in header and str(header.get("Modality", "")) != "SEG"


def is_multiframe(path: Path) -> bool:
    """Whether this is one DICOM file with several slices."""
    if not is_series_file(path):
        return False
    header = pydicom.dcmread(path, specific_tags=["NumberOfFrames"])
    return int(header.get("NumberOfFrames", 1) or 1) > 1


def is_dicom_mask(path: Path) -> bool:
    """Whether the file is a SEG or an RTSTRUCT."""
    if not is_dicom_file(path):
        return False
    return str(pydicom.dcmread(path, specific_tags=["Modality"]).get("Modality", "")) in ("SEG", "RTSTRUCT")


def structure_names(path: Path) -> list[str]:
    """Names of a SEG's segments or an RTSTRUCT's regions, without reading any masks."""
    with reading(path):
        header = pydicom.dcmread(path, specific_tags=["SegmentSequence", "StructureSetROISequence"])
        if "SegmentSequence" in header:
            return [str(segment.SegmentLabel) for segment in header.SegmentSequence]
        return [str(roi.ROIName) for roi in header.get("StructureSetROISequence", [])]
