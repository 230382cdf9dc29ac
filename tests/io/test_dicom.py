from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medsam2_ft.errors import DataError
from medsam2_ft.io.dicom_kind import is_dicom_mask, structure_names
from medsam2_ft.io.dicom_masks import read_dicom_masks
from medsam2_ft.io.image import read_image
from medsam2_ft.io.volume import is_volume, read_volume
from medsam2_ft.io.write import write_mask
from tests.io.dicoms import write_series

PIXELS = np.random.default_rng(0).integers(0, 2000, (5, 8, 6)).astype(np.int16)


def test_slices_are_ordered_by_position_and_rescaled(tmp_path: Path):
    write_series(tmp_path / "s", PIXELS)
    (tmp_path / "s" / "notes.txt").write_text("not DICOM")
    assert is_volume(tmp_path / "s")
    volume = read_volume(tmp_path / "s")
    np.testing.assert_array_equal(volume.array, PIXELS - 1024.0)
    assert volume.modality == "CT" and volume.spacing_mm == (2.5, 0.7, 0.8)
    # (0, 0, 0) is the first slice's first pixel: LPS (-30, 12, 5) is RAS (30, -12, 5).
    np.testing.assert_allclose(volume.affine @ [0, 0, 0, 1], [30, -12, 5, 1], atol=1e-4)
    written = nib.load(write_mask(tmp_path / "m.nii.gz", volume.array > 0, like=volume))
    assert written.shape == (6, 8, 5)


def test_gaps_are_refused_naming_the_slices(tmp_path: Path):
    write_series(tmp_path / "s", PIXELS, skip=(2,))
    with pytest.raises(DataError, match=r"007\.dcm.*021\.dcm.*a slice is missing"):
        read_volume(tmp_path / "s")


def test_mixed_series_are_refused(tmp_path: Path):
    write_series(tmp_path / "s", PIXELS)
    write_series(tmp_path / "t", PIXELS)
    for index, path in enumerate((tmp_path / "t").iterdir()):
        path.rename(tmp_path / "s" / f"other{index}.dcm")
    with pytest.raises(DataError, match="mixes 2 series"):
        read_volume(tmp_path / "s")


def test_two_slices_in_one_place_are_refused(tmp_path: Path):
    uid = "1.2.3.4"
    write_series(tmp_path / "s", PIXELS, series=uid)
    write_series(tmp_path / "t", PIXELS[:1], series=uid)
    next((tmp_path / "t").iterdir()).rename(tmp_path / "s" / "again.dcm")
    with pytest.raises(DataError, match="two slices at"):
        read_volume(tmp_path / "s")


def test_a_truncated_slice_is_named(tmp_path: Path):
    write_series(tmp_path / "s", PIXELS)
    path = tmp_path / "s" / "014.dcm"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="cannot be read"):
        read_volume(tmp_path / "s")


def test_empty_folder(tmp_path: Path):
    with pytest.raises(DataError, match="no DICOM images"):
        read_volume(tmp_path)


def tracer() -> Sequence:
    item = Dataset()
    item.RadionuclideTotalDose, item.RadionuclideHalfLife = 4e8, 6586.2
    item.RadiopharmaceuticalStartTime = "110000"
    return Sequence([item])


def test_pet_becomes_suv_where_the_tags_allow(tmp_path: Path):
    tags = dict(Units="BQML", SeriesDate="20200101", SeriesTime="120000", RescaleIntercept=0.0)  # noqa: C408
    write_series(
        tmp_path / "s", PIXELS, modality="PT", PatientWeight=70.0, DecayCorrection="START",
        RadiopharmaceuticalInformationSequence=tracer(), **tags,
    )  # fmt: skip
    factor = 70_000 / (4e8 * 2 ** (-3600 / 6586.2))
    np.testing.assert_allclose(read_volume(tmp_path / "s").array, PIXELS * factor, rtol=1e-5)
    write_series(tmp_path / "t", PIXELS, modality="PT", **tags)
    np.testing.assert_array_equal(read_volume(tmp_path / "t").array, PIXELS)


def test_multiframe(tmp_path: Path):
    (first, *_) = write_series(tmp_path / "s", PIXELS[:1])
    item = Dataset()
    orientation, measures, transform = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing = [0.5, 0.6]
    transform.RescaleSlope, transform.RescaleIntercept = 2.0, -10.0
    item.PlaneOrientationSequence = Sequence([orientation])
    item.PixelMeasuresSequence = Sequence([measures])
    item.PixelValueTransformationSequence = Sequence([transform])
    frames = []
    for k in reversed(range(5)):
        position, own = Dataset(), Dataset()
        position.ImagePositionPatient = [0.0, 0.0, 3.0 * k]
        own.PlanePositionSequence = Sequence([position])
        frames.append(own)
    first.SharedFunctionalGroupsSequence = Sequence([item])
    first.PerFrameFunctionalGroupsSequence = Sequence(frames)
    first.NumberOfFrames = 5
    first.PixelData = PIXELS[::-1].astype("<i2").tobytes()
    del first.RescaleSlope, first.RescaleIntercept
    first.save_as(tmp_path / "multi.dcm")
    assert is_volume(tmp_path / "multi.dcm")
    volume = read_volume(tmp_path / "multi.dcm")
    np.testing.assert_array_equal(volume.array, PIXELS * 2.0 - 10)
    assert volume.spacing_mm == (3.0, 0.5, 0.6)


def test_single_images(tmp_path: Path):
    write_series(tmp_path / "s", PIXELS[:1], modality="DX", PhotometricInterpretation="MONOCHROME1", RescaleIntercept=0)
    volume = read_image(tmp_path / "s" / "000.dcm")
    np.testing.assert_array_equal(volume.array[0], PIXELS[0].max() - (PIXELS[0] - PIXELS[0].min()))
    assert volume.spacing_mm == (1.0, 0.7, 0.8) and volume.modality == "X-ray"


def rtstruct(path: Path, rings: dict[str, list[np.ndarray]]) -> None:
    """Contours given as LPS points."""
    data = Dataset()
    data.Modality, data.SOPClassUID, data.SOPInstanceUID = "RTSTRUCT", "1.2.840.10008.5.1.4.1.1.481.3", "1.2.3"
    data.StructureSetROISequence, data.ROIContourSequence = Sequence(), Sequence()
    for number, (name, contours) in enumerate(rings.items(), start=1):
        roi, owner = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, owner.ReferencedROINumber = number, name, number
        owner.ContourSequence = Sequence()
        for points in contours:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            contour.ContourData = [f"{value:.6f}" for value in points.ravel()]
            owner.ContourSequence.append(contour)
        data.StructureSetROISequence.append(roi)
        data.ROIContourSequence.append(owner)
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.save_as(path, enforce_file_format=True)


def test_contours_become_masks_with_holes(tmp_path: Path):
    write_series(tmp_path / "s", np.random.default_rng(0).integers(0, 99, (5, 20, 24)).astype(np.int16))
    volume = read_volume(tmp_path / "s")
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.original_affine

    def square(low, high, k):
        corners = np.array([[low, low], [high, low], [high, high], [low, high]], float)
        return (to_lps @ np.c_[corners, np.full(4, k), np.ones(4)].T)[:3].T

    rtstruct(
        tmp_path / "rt.dcm", {"Organ": [square(2.5, 15.5, 2), square(6.5, 9.5, 2)], "Lesion": [square(2.5, 4.5, 3)]}
    )
    assert is_dicom_mask(tmp_path / "rt.dcm") and structure_names(tmp_path / "rt.dcm") == ["Organ", "Lesion"]
    masks = read_dicom_masks(tmp_path / "rt.dcm", like=volume)
    expected = np.zeros(volume.array.shape, bool)
    expected[2, 3:16, 3:16] = True
    expected[2, 7:10, 7:10] = False
    np.testing.assert_array_equal(masks["Organ"], expected)
    assert masks["Lesion"].sum() == 4 and masks["Lesion"][3, 3, 3]


def test_segmentation_objects(tmp_path: Path):
    highdicom = pytest.importorskip(
        "highdicom", reason="reading DICOM SEG is an extra: pip install 'medsam2-ft[dicomseg]'"
    )
    from pydicom.sr.codedict import codes

    sources = write_series(tmp_path / "s", np.random.default_rng(0).integers(0, 99, (5, 20, 24)).astype(np.int16))
    volume = read_volume(tmp_path / "s", plane="sagittal")
    axial = np.zeros((5, 20, 24), np.uint8)
    axial[1:3, 4:9, 10:20] = 1
    axial[4, 2:4, 3:5] = 2
    described = [
        highdicom.seg.SegmentDescription(
            number, name, codes.SCT.Organ, codes.SCT.Liver, highdicom.seg.SegmentAlgorithmTypeValues.MANUAL
        )
        for number, name in ((1, "liver"), (2, "cyst"))
    ]
    highdicom.seg.Segmentation(
        sources, axial, highdicom.seg.SegmentationTypeValues.BINARY, described, "1.2.3.9", 1, "1.2.3.10", 1, "m", "m",
        "1", "1",
    ).save_as(tmp_path / "seg.dcm")  # fmt: skip
    masks = read_dicom_masks(tmp_path / "seg.dcm", like=volume)
    np.testing.assert_array_equal(masks["liver"], (axial == 1).transpose(2, 0, 1))
    np.testing.assert_array_equal(masks["cyst"], (axial == 2).transpose(2, 0, 1))
    write_series(tmp_path / "other", np.zeros((5, 20, 24)), spacing=(2.5, 0.9, 0.9))
    with pytest.raises(DataError, match="another grid"):
        read_dicom_masks(tmp_path / "seg.dcm", like=read_volume(tmp_path / "other"))
