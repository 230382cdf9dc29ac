"""DICOM files for tests, written from arrays."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, PositronEmissionTomographyImageStorage, generate_uid

TILT = np.array([[1, 0, 0], [0, 0.9848077530, -0.1736481777], [0, 0.1736481777, 0.9848077530]])


def write_series(
    folder: Path, pixels_KRC: np.ndarray, *, modality="CT", spacing=(2.5, 0.7, 0.8), skip=(), series=None, **tags
) -> list[pydicom.Dataset]:
    """One file a slice, with file names in no order; spacing is (slices, rows, columns)."""
    folder.mkdir(parents=True, exist_ok=True)
    series, study, frame = series or generate_uid(), generate_uid(), generate_uid()
    written = []
    for k, plane in enumerate(pixels_KRC):
        if k in skip:
            continue
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage if modality != "PT" else PositronEmissionTomographyImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        name = folder / f"{(k * 7) % 101:03d}.dcm"
        data = FileDataset(str(name), {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        data.Modality, data.SeriesInstanceUID, data.StudyInstanceUID = modality, series, study
        data.FrameOfReferenceUID, data.PatientID, data.PatientName = frame, "P1", "A^B"
        data.PatientBirthDate, data.PatientSex, data.AccessionNumber, data.StudyID = "", "O", "", "1"
        data.StudyDate, data.StudyTime, data.ReferringPhysicianName = "20200101", "120000", ""
        data.SeriesNumber, data.InstanceNumber, data.SeriesDescription = 1, 100 - k, f"series {series[-3:]}"
        data.Rows, data.Columns = plane.shape
        data.PixelSpacing = [spacing[1], spacing[2]]
        data.SliceThickness = spacing[0]
        data.ImageOrientationPatient = [*TILT[:, 0], *TILT[:, 1]]
        data.ImagePositionPatient = [float(v) for v in np.array([-30.0, 12.0, 5.0]) + TILT[:, 2] * spacing[0] * k]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 1
        data.RescaleSlope, data.RescaleIntercept = 1.0, -1024.0
        for key, value in tags.items():
            setattr(data, key, value)
        data.PixelData = plane.astype("<i2").tobytes()
        data.save_as(name)
        written.append(data)
    return written
