import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsam2_ft.errors import DataError
from medsam2_ft.io.volume import read_volume
from medsam2_ft.io.write import write_mask

SIDES = (("R", "L"), ("A", "P"), ("S", "I"))
ORIENTATIONS = [
    "".join(letters[axis] for axis in order)
    for order in itertools.permutations(range(3))
    for letters in itertools.product(*SIDES)
]
SHAPE_RAS = (9, 11, 6)
SPACING_RAS = (0.8, 1.0, 4.0)


def phantom() -> tuple[np.ndarray, np.ndarray]:
    """Values on an oblique RAS grid, with marks at four corners that tell all axes and directions apart."""
    values = np.random.default_rng(0).integers(0, 20, SHAPE_RAS).astype(np.int16)
    values[-1, -1, -1] = 100
    values[0, -1, -1] = 50
    values[-1, 0, -1] = 60
    values[-1, -1, 0] = 70
    tilt = np.radians(8)
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    affine = np.eye(4)
    affine[:3, :3] = turn * SPACING_RAS
    affine[:3, 3] = (-12.5, 30.0, 7.0)
    return values, affine


def store(path: Path, codes: str) -> Path:
    values, affine = phantom()
    image = nib.Nifti1Image(values, affine)
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
    nib.save(image.as_reoriented(turn), path)
    return path


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_all_48_orientations_give_one_array(tmp_path: Path, codes: str):
    values, affine = phantom()
    volume = read_volume(store(tmp_path / "x.nii", codes))
    np.testing.assert_array_equal(volume.array, values.transpose(2, 1, 0)[:, ::-1, ::-1])
    np.testing.assert_allclose(volume.spacing_mm, SPACING_RAS[::-1], rtol=1e-5)
    # Inferior->superior, anterior->posterior, right->left: the RAS corner is last, first, first.
    assert [volume.array[i] for i in ((-1, 0, 0), (-1, 0, -1), (-1, -1, 0), (0, 0, 0))] == [100, 50, 60, 70]
    corner = affine @ [*np.subtract(SHAPE_RAS, 1), 1]
    np.testing.assert_allclose(volume.affine @ [SHAPE_RAS[2] - 1, 0, 0, 1], corner, atol=1e-4)
    mask = (volume.array > 40).astype(np.uint8) * 3
    written = nib.load(write_mask(tmp_path / "mask.nii.gz", mask, like=volume))
    source = nib.load(tmp_path / "x.nii")
    np.testing.assert_array_equal(np.asarray(written.dataobj), (np.asarray(source.dataobj) > 40) * 3)
    np.testing.assert_allclose(written.affine, source.affine, atol=1e-5)


@pytest.mark.parametrize(
    ("plane", "order"),
    [("axial", (2, 1, 0)), ("coronal", (1, 2, 0)), ("sagittal", (0, 2, 1)), ("acquisition", (2, 1, 0))],
)
def test_planes(tmp_path: Path, plane: str, order: tuple[int, ...]):
    values, _ = phantom()
    volume = read_volume(store(tmp_path / "x.nii.gz", "PIR"), plane=plane)
    lps = values[::-1, ::-1]
    np.testing.assert_array_equal(volume.array, lps.transpose(order))
    written = nib.load(write_mask(tmp_path / "m.nii", volume.array.astype(np.uint8), like=volume))
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(nib.load(tmp_path / "x.nii.gz").dataobj))


@pytest.mark.parametrize(
    ("spacing", "first_axis"), [((1, 1, 1), 2), ((3, 1, 1), 0), ((1, 3, 1), 1), ((1, 1.004, 1), 2), ((2, 2, 1), 1)]
)
def test_acquisition_plane_is_across_the_largest_spacing_and_axial_on_ties(tmp_path: Path, spacing, first_axis):
    nib.save(nib.Nifti1Image(np.zeros((5, 6, 7), np.uint8), np.diag([*spacing, 1.0])), tmp_path / "x.nii")
    assert read_volume(tmp_path / "x.nii").array.shape[0] == (5, 6, 7)[first_axis]


@settings(max_examples=30, deadline=None)
@given(
    codes=st.sampled_from(ORIENTATIONS),
    plane=st.sampled_from(["axial", "coronal", "sagittal", "acquisition"]),
    angles=st.tuples(*[st.floats(-30, 30)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 8)] * 3),
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    suffix=st.sampled_from([".nii", ".nii.gz", ".nrrd", ".mha"]),
)
def test_any_geometry_round_trips(tmp_path_factory, codes, plane, angles, spacing, shape, suffix):
    from scipy.spatial.transform import Rotation

    from medsam2_ft.io.itk import write_array

    folder = tmp_path_factory.mktemp("g")
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing
    affine[:3, 3] = (5.0, -70.0, 33.0)
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
    ids = np.random.default_rng(1).integers(0, 300, shape).astype(np.uint16)
    image = nib.Nifti1Image(ids, affine).as_reoriented(turn)
    stored = np.asarray(image.dataobj)
    path = folder / f"x{suffix}"
    if "nii" in suffix:
        nib.save(image, path)
    else:
        write_array(path, stored, image.affine)
    volume = read_volume(path, plane=plane)
    again = read_volume(write_mask(folder / f"m{suffix}", volume.array.astype(np.uint16), like=volume), plane=plane)
    np.testing.assert_array_equal(again.array, volume.array)
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-3)
    assert volume.original_shape == stored.shape


def test_kept_slices_go_back_to_their_places(tmp_path: Path):
    from dataclasses import replace

    volume = read_volume(store(tmp_path / "x.nii", "SRP"))
    kept = np.array([1, 2, 5])
    part = replace(volume, array=volume.array[kept], kept_slices=kept)
    again = read_volume(write_mask(tmp_path / "m.nii", part.array.astype(np.uint8), like=part))
    np.testing.assert_array_equal(again.array[kept], volume.array[kept])
    assert not again.array[[0, 3, 4]].any()


def test_scaled_and_big_endian_files(tmp_path: Path):
    image = nib.Nifti1Image(np.arange(24).reshape(2, 3, 4).astype(">i2"), np.eye(4), nib.Nifti1Header(endianness=">"))
    image.header.set_slope_inter(2.0, -1000.0)
    nib.save(image, tmp_path / "x.nii")
    array = read_volume(tmp_path / "x.nii", plane="axial").array
    assert {float(array.min()), float(array.max())} == {-1000.0, -954.0} or array.max() == 23


def test_four_axes_need_a_channel(tmp_path: Path):
    nib.save(nib.Nifti1Image(np.stack([np.zeros((4, 4, 4)), np.ones((4, 4, 4))], -1), np.eye(4)), tmp_path / "x.nii")
    with pytest.raises(DataError, match=r"2 channels.*--channel"):
        read_volume(tmp_path / "x.nii")
    assert read_volume(tmp_path / "x.nii", channel=1).array.min() == 1


def cut(path: Path) -> None:
    store(path, "RAS")
    path.write_bytes(path.read_bytes()[:400])


def singular(path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), None)
    image.header["sform_code"] = 1
    nib.save(image, path)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (cut, "cannot be read"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_bytes(b"not a nifti" * 100), "cannot be read"),
        (singular, "broken geometry"),
        (lambda path: None, "no file"),
    ],
)
def test_bad_volumes_end_in_one_sentence(tmp_path: Path, make, sentence: str):
    make(tmp_path / "bad.nii")
    with pytest.raises(DataError, match=sentence):
        read_volume(tmp_path / "bad.nii")
    with pytest.raises(DataError, match="did you mean 'axial'"):
        read_volume(tmp_path / "bad.nii", plane="axail")
