"""A label map as DICOM-SEG beside the series that it was predicted from (needs the `dicomseg` extra)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam2_ft import __version__
from medsam2_ft.errors import ConfigError, DataError
from medsam2_ft.io.dicom_kind import is_series_file
from medsam2_ft.io.volume import Volume
from medsam2_ft.io.write import to_source_grid

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])
_POSITION_TOLERANCE_MM = 0.1


def write_dicom_seg(path: Path, labels: NDArray[Any], volume: Volume, *, names: Mapping[str, int]) -> Path:
    """Write one binary segment for each object that has a voxel.

    Args:
        path: ends in .dcm.
        labels: (T, H, W) ids.
        volume: read from a folder of single-frame DICOM files.
        names: object name -> id.

    Raises:
        ConfigError: highdicom is not installed.
        DataError: the source is not such a folder, or nothing was segmented.
    """
    if find_spec("highdicom") is None:
        raise ConfigError("DICOM-SEG needs highdicom: pip install 'medsam2-ft[dicomseg]'.")
    import highdicom as hd
    from pydicom.sr.codedict import codes

    folder = series_folder(volume)
    present = {name: object_id for name, object_id in names.items() if (labels == object_id).any()}
    if not present:
        raise DataError("Nothing was segmented, so there is no DICOM-SEG to write.")
    grid_IJK = to_source_grid(labels, like=volume)
    datasets, indices = _sorted_series(folder, volume)
    planes_KHW = grid_IJK.transpose(2, 1, 0)[indices]
    masks = np.stack([planes_KHW == object_id for object_id in present.values()], axis=-1).astype(np.uint8)
    algorithm = hd.AlgorithmIdentificationSequence(
        name="medsam2_ft", version=__version__, family=codes.DCM.ArtificialIntelligence
    )
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.AnatomicalStructure,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(present, start=1)
    ]
    segmentation = hd.seg.Segmentation(
        source_images=datasets,
        pixel_array=masks,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=hd.UID(),
        series_number=900,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="medsam2_ft",
        manufacturer_model_name="medsam2_ft",
        software_versions=__version__,
        device_serial_number="0",
        series_description="medsam2_ft segmentation, for research only",
    )
    segmentation.save_as(path)
    return path


def series_folder(volume: Volume) -> Path:
    """The folder of DICOM files that a volume was read from.

    Raises:
        DataError: it was not.
    """
    folder = Path(volume.source)
    if not folder.is_dir():
        raise DataError(f"DICOM-SEG refers to a DICOM series, and {folder.name} is no folder of one; write .nii.gz.")
    return folder


def _sorted_series(folder: Path, volume: Volume) -> tuple[list[Any], list[int]]:
    """The series' datasets, and the k of the volume's own grid that each of them is, found by position."""
    import pydicom

    assert volume.original_affine is not None
    to_index = np.linalg.inv(volume.original_affine)
    datasets, indices = [], []
    for file in sorted(path for path in folder.iterdir() if is_series_file(path)):
        dataset = pydicom.dcmread(file)
        if "ImagePositionPatient" not in dataset:
            raise DataError(f"{file} has no position, so DICOM-SEG cannot refer to it; write .nii.gz.")
        position_ras = RAS_TO_LPS @ np.array(dataset.ImagePositionPatient, float)
        ijk = to_index[:3, :3] @ position_ras + to_index[:3, 3]
        if np.abs(ijk - np.rint(ijk)).max() > _POSITION_TOLERANCE_MM:
            raise DataError(f"{file} lies between the slices of the volume; write .nii.gz.")
        datasets.append(dataset)
        indices.append(round(float(ijk[2])))
    return datasets, indices
