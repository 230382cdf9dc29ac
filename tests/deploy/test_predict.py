"""predict puts masks where they belong: any orientation, any space of the box, any file."""

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from medsam2_ft.data.intensity import IntensityRecipe
from medsam2_ft.deploy import commands, downloads
from medsam2_ft.deploy.engine import serving_recipe
from medsam2_ft.deploy.predict import to_uint8
from medsam2_ft.deploy.prompt_file import read_targets, target_from_box, targets_from_mask
from medsam2_ft.deploy.source import open_source
from medsam2_ft.errors import DataError, UserError, exit_on_user_error
from medsam2_ft.inference.predictor import Predictor

CENTER_RAS = np.array([-15.0, 22.0, 31.0])
RADII_MM = np.array([11.0, 8.0, 14.0])
SHAPE_IJK = (40, 44, 18)


class Phantom:
    """Stands in for `Predictor`: the bright region that the box touches, within the z-range."""

    recipe = None

    @classmethod
    def from_checkpoint(cls, checkpoint, *, device):
        return cls()

    def segment(self, images, prompts, *, z_range, depths=None, progress=None):
        labels = np.zeros(images.shape[:3], np.uint16)
        regions, _ = ndimage.label((images if images.ndim == 3 else images.max(axis=-1)) > 100)
        for prompt in prompts:
            x0, y0, x1, y1 = (round(v) for v in prompt.box)
            inside = regions[prompt.slice, max(y0, 0) : y1, max(x0, 0) : x1]
            labels[np.isin(regions, np.unique(inside[inside > 0]))] = prompt.object_id
        labels[: z_range[0]] = 0
        labels[z_range[1] :] = 0
        return labels


@pytest.fixture(autouse=True)
def phantom_predictor(request, monkeypatch):
    if "real" not in request.keywords and "real" not in request.node.name:
        monkeypatch.setattr("medsam2_ft.inference.predictor.Predictor", Phantom)


def turned(degrees_x: float, degrees_z: float) -> np.ndarray:
    cx, sx, cz, sz = (
        *(f(np.radians(degrees_x)) for f in (np.cos, np.sin)),
        *(f(np.radians(degrees_z)) for f in (np.cos, np.sin)),
    )
    return np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]]) @ np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])


DIRECTIONS = {
    "ras": np.eye(3),
    "lps": np.diag([-1.0, -1, 1]),
    "flipped": np.diag([1.0, -1, -1]),
    "coronal": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
    "sagittal": np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]),
    "oblique": turned(18, -12),
    "oblique flipped": turned(-20, 15) @ np.diag([-1.0, 1, -1]),
}


def write_phantom(path, direction, spacing=(0.9, 1.2, 3.5)) -> np.ndarray:
    """An ellipsoid in space, sampled on a grid; returns the mask on the file's own grid."""
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = CENTER_RAS + np.array([0.4, -0.3, 0.9]) - affine[:3, :3] @ ((np.array(SHAPE_IJK) - 1) / 2)
    ras = nib.affines.apply_affine(affine, np.moveaxis(np.indices(SHAPE_IJK), 0, -1))
    inside = (((ras - CENTER_RAS) / RADII_MM) ** 2).sum(axis=-1) < 1
    nib.save(nib.Nifti1Image(np.where(inside, 220, 20).astype(np.uint8), affine), path)
    return inside


def ras_box() -> str:
    return " ".join(f"{v:g}" for v in (*(CENTER_RAS - RADII_MM - 2), *(CENTER_RAS + RADII_MM + 2)))


def ijk_box(inside) -> str:
    where = np.argwhere(inside)
    return " ".join(str(v) for v in (*(where.min(axis=0) - 1), *(where.max(axis=0) + 2)))


@pytest.mark.parametrize("name", DIRECTIONS)
@pytest.mark.parametrize("space", ["ras", "ijk", "array"])
@pytest.mark.parametrize("plane", ["acquisition", "coronal"])
def test_the_mask_lies_on_the_phantom_in_space(tmp_path, name, space, plane):
    inside = write_phantom(tmp_path / "scan.nii.gz", DIRECTIONS[name])
    volume = open_source(tmp_path / "scan.nii.gz", plane=plane)
    where = np.argwhere(volume.array > 100)
    (t0, y0, x0), (t1, y1, x1) = where.min(axis=0), where.max(axis=0) + 1
    box = {"ras": ras_box(), "ijk": ijk_box(inside), "array": f"{x0} {y0} {t0} {x1} {y1} {t1}"}[space]
    arguments = ["--image", str(tmp_path / "scan.nii.gz"), "--out", str(tmp_path / "mask.nii.gz"), "--plane", plane]
    commands.predict([*arguments, "--box", box, "--box-space", space])
    source, mask = nib.load(tmp_path / "scan.nii.gz"), nib.load(tmp_path / "mask.nii.gz")
    assert mask.shape == source.shape
    np.testing.assert_allclose(mask.affine, source.affine, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), inside)
    in_space = nib.affines.apply_affine(mask.affine, np.argwhere(np.asarray(mask.dataobj)))
    assert ((((in_space - CENTER_RAS) / RADII_MM) ** 2).sum(axis=-1) < 1).all()


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii"])
def test_other_formats_keep_the_geometry(tmp_path, suffix):
    import SimpleITK as sitk

    inside = write_phantom(tmp_path / "scan.nii.gz", DIRECTIONS["oblique"])
    scan = sitk.ReadImage(str(tmp_path / "scan.nii.gz"))
    sitk.WriteImage(scan, str(tmp_path / f"scan{suffix}"))
    image, out = tmp_path / f"scan{suffix}", tmp_path / f"mask{suffix}"
    commands.predict(["--image", str(image), "--out", str(out), "--box", ras_box(), "--box-space", "ras"])
    mask = sitk.ReadImage(str(out))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask).transpose(2, 1, 0), inside)
    np.testing.assert_allclose(mask.GetDirection(), scan.GetDirection(), atol=1e-5)
    np.testing.assert_allclose(mask.GetOrigin(), scan.GetOrigin(), atol=1e-4)


def test_several_objects_from_json_csv_and_a_coarse_mask(tmp_path):
    array = np.full((10, 32, 40), 10, np.uint8)
    array[3:6, 4:12, 5:15] = array[4:9, 18:28, 22:36] = 200
    affine = np.diag([-1.0, -1, 3, 1])
    nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), affine), tmp_path / "scan.nii.gz")
    volume = open_source(tmp_path / "scan.nii.gz")
    boxes = [
        {"box": [4, 3, 17, 13], "slice": 4, "name": "spleen"},
        {"box": [20, 17, 37, 29], "slice": 6, "name": "liver"},
    ]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    (tmp_path / "boxes.csv").write_text("name,slice,x0,y0,x1,y1\nspleen,4,4,3,17,13\nliver,6,20,17,37,29\n")
    coarse = np.zeros_like(volume.array)
    coarse[4:5, 5:11, 6:13], coarse[5:7, 19:27, 24:34] = 1, 2
    nib.save(nib.Nifti1Image(coarse.transpose(2, 1, 0), affine), tmp_path / "coarse.nii.gz")
    base = ["--image", str(tmp_path / "scan.nii.gz"), "--out", str(tmp_path / "mask.nii.gz")]
    for source in ("boxes.json", "boxes.csv", "coarse.nii.gz"):
        option = "--coarse" if source.startswith("coarse") else "--prompts"
        commands.predict([*base, option, str(tmp_path / source)])
        mask = np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj).transpose(2, 1, 0)
        assert set(np.unique(mask)) == {0, 1, 2}, source
        np.testing.assert_array_equal(mask > 0, array > 100)
    assert json.loads((tmp_path / "mask.labels.json").read_text()) == {"spleen": 1, "liver": 2}
    commands.predict([*base, "--box", "4 3 17 13", "--prompts", str(tmp_path / "boxes.json"), "--slice", "4"])


def test_images_and_videos(tmp_path):
    photo = np.zeros((30, 40, 3), np.uint8)
    photo[10:20, 15:30] = (200, 180, 150)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    commands.predict(["--image", str(tmp_path / "photo.png"), "--out", str(tmp_path / "m.png"), "--box", "14 9 31 21"])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "m.png")), photo.max(axis=-1) > 100)
    frames = np.repeat(photo[None], 5, axis=0)
    downloads.write_overlay_video(tmp_path / "film.mp4", frames, np.zeros((5, 30, 40), np.uint8), fps=12)
    for out in ("m.mp4", "m.zip"):
        commands.predict(["--image", str(tmp_path / "film.mp4"), "--out", str(tmp_path / out), "--box", "14 9 31 21"])
        assert (tmp_path / out).stat().st_size > 500
    assert open_source(tmp_path / "m.mp4").array.shape[0] == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--image", "nothing.nii.gz", "--out", "m.nii.gz", "--box", "1 2 3 4"], "no file"),
        (["--image", "scan.nii.gz", "--out", "m.jpg", "--box", "1 2 3 4"], "masks are written as"),
        (["--image", "scan.nii.gz", "--out", "m.png", "--box", "1 2 3 4"], "one slice"),
        (["--image", "photo.png", "--out", "m.nii.gz", "--box", "1 2 3 4"], "no geometry"),
        (["--image", "scan.nii.gz", "--out", "m.nii.gz"], "Say what to segment"),
        (["--image", "scan.nii.gz", "--out", "m.nii.gz", "--box", "1 2 3"], "four or six"),
        (["--image", "scan.nii.gz", "--out", "m.nii.gz", "--box", "a b c d"], "not a box"),
        (["--image", "scan.nii.gz", "--out", "m.nii.gz", "--box", "9 9 3 3"], "empty"),
        (["--image", "scan.nii.gz", "--out", "m.nii.gz", "--box", "1 2 3 4", "--box-space", "ijk"], "six"),
        (["--image", "scan.nii.gz", "--out", "m.nii.gz", "--box", "1 2 3 4", "--slice", "99"], "slice 99"),
        (["--image", "scan.nii.gz", "--out", "m.nii.gz", "--box", "900 900 990 990"], "outside"),
        (["--image", "scan.nii.gz", "--out", "m.nii.gz", "--coarse", "photo.png"], "differ in grid"),
        (["--image", "scan.nii.gz", "--out", "m.nii.gz", "--prompts", "none.json"], "no file"),
        (["--image", "notes.txt", "--out", "m.nii.gz", "--box", "1 2 3 4"], "no kind"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    write_phantom(tmp_path / "scan.nii.gz", np.eye(3))
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "photo.png")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(SystemExit) as exit_, exit_on_user_error():
        commands.predict(arguments)
    assert exit_.value.code == 2
    error = capsys.readouterr().err.strip()
    assert words in error and "Traceback" not in error and "\n" not in error


def test_broken_prompt_files_name_the_entry(tmp_path):
    write_phantom(tmp_path / "scan.nii.gz", np.eye(3))
    volume = open_source(tmp_path / "scan.nii.gz")
    for text, words in (
        ("{", "not JSON"),
        ("[]", "no boxes"),
        ("[1]", "list like"),
        ('[{"box": [1, 2]}]', "entry 1"),
        ('[{"slice": 2}]', "box"),
    ):
        (tmp_path / "p.json").write_text(text)
        with pytest.raises(DataError, match=words):
            read_targets(tmp_path / "p.json", volume)
    (tmp_path / "p.csv").write_text("x0,y0\n1,2\n")
    with pytest.raises(DataError, match="columns"):
        read_targets(tmp_path / "p.csv", volume)
    with pytest.raises(UserError, match="outside the box"):
        target_from_box([1, 1, 2, 9, 9, 4], volume, object_id=1, index=7)


def test_a_coarse_mask_elsewhere_in_space_is_refused(tmp_path):
    write_phantom(tmp_path / "scan.nii.gz", np.eye(3))
    scan = nib.load(tmp_path / "scan.nii.gz")
    moved = scan.affine.copy()
    moved[0, 3] += 5
    nib.save(nib.Nifti1Image(np.asarray(scan.dataobj), moved), tmp_path / "coarse.nii.gz")
    with pytest.raises(DataError, match="elsewhere in space"):
        commands.predict(
            [
                "--image",
                str(tmp_path / "scan.nii.gz"),
                "--out",
                str(tmp_path / "m.nii.gz"),
                "--coarse",
                str(tmp_path / "coarse.nii.gz"),
            ]
        )


def test_a_coarse_box_is_wider_by_the_margin():
    labels = np.zeros((6, 20, 20), np.uint8)
    labels[2:4, 5:9, 1:11] = 7
    from medsam2_ft.io.volume import Volume

    (target,) = targets_from_mask(labels, Volume(labels), margin_px=3)
    assert target.prompt.box == (0.0, 2.0, 14.0, 12.0) and target.prompt.object_id == 7 and target.depth == (0, 6)


def test_the_real_network_from_the_library_and_the_command_line(tmp_path):
    """Both doors give the same mask."""
    inside = write_phantom(tmp_path / "scan.nii.gz", DIRECTIONS["oblique"])
    checkpoint = "sam2.1_nano@random"
    arguments = [
        "--image",
        str(tmp_path / "scan.nii.gz"),
        "--out",
        str(tmp_path / "mask.nii.gz"),
        "--checkpoint",
        checkpoint,
    ]
    reach_mm = np.array([9, 7, 2])
    corners = [*(CENTER_RAS - reach_mm), *(CENTER_RAS + reach_mm)]
    box = " ".join(f"{value:g}" for value in corners)
    commands.predict([*arguments, "--box", box, "--box-space", "ras", "--device", "cpu"])
    volume = open_source(tmp_path / "scan.nii.gz")
    target = target_from_box(corners, volume, object_id=1, space="ras")
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    labels = predictor.segment(to_uint8(predictor, volume), [target.prompt], z_range=target.depth)
    from medsam2_ft.io.write import to_source_grid

    mask = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), to_source_grid(labels, like=volume))
    assert mask.shape == inside.shape


def write_series(folder, num_slices=7) -> np.ndarray:
    """A CT series with a bright ball, files named out of order; returns (K, rows, columns)."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    k, y, x = np.indices((num_slices, 24, 30))
    values = np.where((k - 3) ** 2 * 6 + (y - 12) ** 2 + (x - 14) ** 2 < 40, 220, 20).astype(np.int16)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    folder.mkdir()
    for index in range(num_slices):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, series, frame
        data.PatientID, data.PatientName, data.PatientBirthDate, data.PatientSex = "p", "p", "", ""
        data.StudyID, data.StudyDate, data.StudyTime, data.AccessionNumber = "1", "20240101", "120000", ""
        data.ReferringPhysicianName, data.Manufacturer, data.SeriesNumber = "", "m", 1
        data.PositionReferenceIndicator, data.Modality, data.InstanceNumber = "", "CT", index + 1
        data.Rows, data.Columns, data.PixelSpacing, data.SliceThickness = 24, 30, [0.8, 0.8], 2.5
        data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-10, -20, 30 + 2.5 * index]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.RescaleIntercept, data.RescaleSlope, data.PixelData = 0, 1, values[index].tobytes()
        data.save_as(folder / f"{(index * 5) % num_slices}.dcm", enforce_file_format=True)
    assert len(list(folder.iterdir())) == num_slices
    return values


def test_a_dicom_folder_becomes_nifti_and_dicom_seg(tmp_path):
    highdicom = pytest.importorskip("highdicom")
    values = write_series(tmp_path / "series")
    base = ["--image", str(tmp_path / "series"), "--window", "120", "200", "--box", "5 3 24 22", "--slice", "3"]
    commands.predict([*base, "--out", str(tmp_path / "mask.nii.gz")])
    mask = nib.load(tmp_path / "mask.nii.gz")
    in_space = nib.affines.apply_affine(mask.affine, np.argwhere(np.asarray(mask.dataobj)))
    expected_lps = np.argwhere(values > 100)[:, ::-1] * [0.8, 0.8, 2.5] + [-10, -20, 30]
    order = lambda points: points[np.lexsort(np.round(points, 3).T)]  # noqa: E731
    np.testing.assert_allclose(order(in_space), order(expected_lps * [-1, -1, 1]), atol=1e-4)

    commands.predict([*base, "--out", str(tmp_path / "mask.dcm")])
    seg = highdicom.seg.segread(tmp_path / "mask.dcm")
    volume = seg.get_volume(combine_segments=True)
    found = np.argwhere(volume.array > 0)
    found_lps = (np.c_[found, np.ones(len(found))] @ volume.affine.T)[:, :3]
    np.testing.assert_allclose(order(found_lps), order(expected_lps), atol=1e-4)


@pytest.mark.parametrize(
    ("own", "dtype", "method"),
    [
        (None, np.int16, "percentile"),
        (None, np.uint8, "passthrough"),
        ("percentile", np.uint8, "percentile"),
        ("passthrough", np.uint8, "passthrough"),
        ("passthrough", np.uint16, "percentile"),
    ],
)
def test_intensities_follow_the_checkpoint(own, dtype, method):
    """A set of dark 8-bit images is trained on stretched, so prediction stretches, too."""
    recipe = None if own is None else IntensityRecipe(own)
    assert serving_recipe(recipe, dtype=np.dtype(dtype)).method == method
