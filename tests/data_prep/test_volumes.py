from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medsam2_ft.data.case import Case
from medsam2_ft.data.manifest import read_manifest
from medsam2_ft.io.write import write_mask
from tests.data_prep.conftest import AFFINE, volume_pair, write_nifti
from tests.io.dicoms import write_series


def test_pairs_become_cases_a_manifest_and_a_summary(volumes: Path, tmp_path: Path, prepare, capsys):
    assert prepare("volumes", "--modality", "CT", "--window", "40", "400") == 0
    records = read_manifest(tmp_path / "out")
    assert [record.case for record in records] == [f"case{i}" for i in range(4)]
    assert {record.split for record in records} == {"train", "val", "test"}
    record = records[0]
    assert record.modality == "CT" and record.shape == (6, 24, 20) and record.spacing == (3.0, 0.8, 0.8)
    assert record.labels == {"label_1": [1], "label_2": [2]} and len(record.sha256) == 64
    assert record.source.endswith("case0_0000.nii.gz")
    case = Case.load(tmp_path / "out" / record.file)
    image, mask = volume_pair(0)
    np.testing.assert_array_equal(case.gts, mask.transpose(2, 1, 0))
    window = np.clip((image.transpose(2, 1, 0) + 160) / 400, 0, 1) * 255
    np.testing.assert_array_equal(case.imgs, np.rint(window))
    printed = capsys.readouterr().out
    assert "4 cases, 24 slices" in printed and "label_1 4" in printed and "train" in printed


def test_prediction_goes_back_to_the_source_grid(volumes: Path, tmp_path: Path, prepare):
    prepare("volumes", "--modality", "CT", "--plane", "coronal", "--keep", "labelled")
    case = Case.load(tmp_path / "out/cases/case1.npz")
    assert case.kept_slices is not None and len(case.kept_slices) == case.num_slices < 24
    written = nib.load(write_mask(tmp_path / "back.nii.gz", case.gts, like=case))
    np.testing.assert_array_equal(np.asarray(written.dataobj), volume_pair(1)[1])
    np.testing.assert_allclose(written.affine, AFFINE)


def test_done_cases_are_skipped_by_content(volumes: Path, tmp_path: Path, prepare, capsys):
    options = ("volumes", "--modality", "MR")
    prepare(*options)
    cases = sorted((tmp_path / "out/cases").glob("*.npz"))
    before = [path.stat().st_mtime_ns for path in cases]
    manifest = (tmp_path / "out/manifest.csv").read_bytes()
    assert prepare(*options) == 0 and "4 were done already" in capsys.readouterr().out
    assert before == [path.stat().st_mtime_ns for path in cases]
    assert manifest == (tmp_path / "out/manifest.csv").read_bytes()
    write_nifti(volumes / "masks/case2.nii.gz", volume_pair(2)[1] * 3)
    cases[0].write_bytes(cases[0].read_bytes()[:100])
    prepare(*options)
    assert "2 were done already" in capsys.readouterr().out
    prepare(*options, "--force")
    assert "done already" not in capsys.readouterr().out
    prepare(*options, "--keep", "labelled")
    assert "done already" not in capsys.readouterr().out


def test_added_cases_leave_the_split_as_it_was(volumes: Path, tmp_path: Path, prepare):
    prepare("volumes", "--modality", "CT")
    before = {record.case: record.split for record in read_manifest(tmp_path / "out")}
    for index in range(10, 16):
        image, mask = volume_pair(index)
        write_nifti(volumes / f"images/case{index}_0000.nii.gz", image)
        write_nifti(volumes / f"masks/case{index}.nii.gz", mask)
    prepare("volumes", "--modality", "CT")
    after = {record.case: record.split for record in read_manifest(tmp_path / "out")}
    assert len(after) == 10 and all(after[case] == split for case, split in before.items())


def test_one_bad_file_never_stops_the_run(volumes: Path, tmp_path: Path, prepare, capsys):
    """Truncated file, NaN, constant image, mask of another case: each is listed with its reason."""
    image, mask = volume_pair(9)
    for name in ("cut", "nan", "flat", "other", "moved", "soft"):
        write_nifti(volumes / f"images/{name}_0000.nii.gz", image)
        write_nifti(volumes / f"masks/{name}.nii.gz", mask)
    path = volumes / "images/cut_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:2000])
    broken = image.astype(np.float32)
    broken[3, 4, 2] = np.nan
    write_nifti(volumes / "images/nan_0000.nii.gz", broken)
    write_nifti(volumes / "images/flat_0000.nii.gz", np.full_like(image, 7))
    write_nifti(volumes / "masks/other.nii.gz", mask[:-1])
    shifted = AFFINE.copy()
    shifted[0, 3] += 5
    write_nifti(volumes / "masks/moved.nii.gz", mask, shifted)
    write_nifti(volumes / "masks/soft.nii.gz", mask * 0.5)
    assert prepare("volumes", "--modality", "CT") == 1
    rows = (tmp_path / "out/rejected.csv").read_text().splitlines()[1:]
    reasons = {row.split(",")[0]: row for row in rows}
    expected = {
        "cut": "cannot be read", "nan": "1 NaN", "flat": "constant: every value is 7", "other": "mask of another case",
        "moved": "5 mm apart", "soft": "fractions",
    }  # fmt: skip
    assert reasons.keys() == expected.keys()
    assert all(expected[name] in row for name, row in reasons.items()), reasons
    assert len(read_manifest(tmp_path / "out")) == 4
    assert "6 rejected" in capsys.readouterr().out
    for name in expected:
        (volumes / f"images/{name}_0000.nii.gz").unlink()
    assert prepare("volumes", "--modality", "CT") == 0
    assert not (tmp_path / "out/rejected.csv").exists()


def test_masks_on_another_grid_are_resampled_on_request(volumes: Path, tmp_path: Path, prepare):
    _, mask = volume_pair(0)
    coarse = AFFINE @ np.diag([1, 1, 2, 1])
    write_nifti(volumes / "masks/case0.nii.gz", mask[:, :, ::2], coarse)
    assert prepare("volumes", "--modality", "CT") == 1
    assert prepare("volumes", "--modality", "CT", "--resample-masks") == 0
    case = Case.load(tmp_path / "out/cases/case0.npz")
    assert case.gts.shape == (6, 24, 20)
    np.testing.assert_array_equal(case.gts[::2], mask.transpose(2, 1, 0)[::2])
    far = AFFINE.copy()
    far[:3, 3] += 500
    write_nifti(volumes / "masks/case0.nii.gz", mask, far)
    assert prepare("volumes", "--modality", "CT", "--resample-masks") == 1


def test_nothing_found_is_an_error_that_says_what_was_looked_for(volumes: Path, tmp_path: Path, prepare, capsys):
    for options, sentence in (
        (("--image-suffix", "_9999.nii.gz"), "no files ending in '_9999.nii.gz'"),
        (("--mask-suffix", "x.nii.gz"), "no files ending in 'x.nii.gz'"),
        (("--modality", "CTT"), "did you mean 'CT'"),
        (("--labels", "no.yaml"), "no label file"),
        (("--split", "0.5", "0.1", "0.1"), "sum to 1"),
        (("--window", "40"), "without a width"),
    ):
        with pytest.raises(SystemExit) as stop:
            prepare("volumes", "--modality", "CT", *options)
        assert stop.value.code == 2
        assert sentence in capsys.readouterr().err
    for index in range(4):
        (volumes / f"masks/case{index}.nii.gz").rename(volumes / f"masks/label_{index}.nii.gz")
    with pytest.raises(SystemExit):
        prepare("volumes", "--modality", "CT")
    assert "--image-suffix" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        prepare("volumes", "--modality", "CT", raw=tmp_path / "nowhere")
    assert "no folder" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["case0__{}.nii.gz", "case0/{}.nii.gz"])
def test_one_file_a_region(volumes: Path, tmp_path: Path, prepare, layout: str):
    _, mask = volume_pair(0)
    (volumes / "masks/case0.nii.gz").unlink()
    write_nifti(volumes / "masks" / layout.format("liver"), (mask == 1).astype(np.uint8))
    write_nifti(volumes / "masks" / layout.format("kidney"), (mask == 2).astype(np.uint8))
    write_nifti(volumes / "masks" / layout.format("body"), np.ones_like(mask))
    assert prepare("volumes", "--modality", "CT") == 0
    case = Case.load(tmp_path / "out/cases/case0.npz")
    assert case.labels == {"body": [1], "kidney": [2], "liver": [3]}
    assert case.region_mask("body").all()
    np.testing.assert_array_equal(case.region_mask("liver"), (mask == 1).transpose(2, 1, 0))


def test_labels_file_small_components_and_instances(volumes: Path, tmp_path: Path, prepare):
    labels = tmp_path / "labels.yaml"
    labels.write_text("organs: [1, 2]\n")
    prepare("volumes", "--modality", "CT", "--labels", labels, "--remove-small", 100, 0, "--split-instances", "organs")
    case = Case.load(tmp_path / "out/cases/case0.npz")
    assert case.instances and case.labels.keys() == {"organs"} and len(case.objects()) == 1


def test_three_windows_and_dataset_json(volumes: Path, tmp_path: Path, prepare):
    (volumes / "dataset.json").write_text('{"labels": {"background": 0, "liver": 1, "cyst": 2}}')
    prepare("volumes", "--modality", "CT", "--window", "lung", "soft tissue", "bone")
    case = Case.load(tmp_path / "out/cases/case0.npz")
    assert case.imgs.shape == (6, 24, 20, 3) and case.region_names == ["liver", "cyst"]


def test_patients_stay_together_and_leaks_are_errors(volumes: Path, tmp_path: Path, prepare, capsys):
    prepare("volumes", "--modality", "CT", "--group-by", "^(case)")
    assert {record.split for record in read_manifest(tmp_path / "out")} == {"train"}
    split = tmp_path / "split.csv"
    split.write_text("case,split\ncase0,train\ncase1,train\ncase2,val\ncase3,test\n")
    with pytest.raises(SystemExit):
        prepare("volumes", "--modality", "CT", "--group-by", "^(case)", "--split", split)
    assert "Patient 'case' is in both" in capsys.readouterr().err
    assert prepare("volumes", "--modality", "CT", "--split", split) == 0
    assert [record.split for record in read_manifest(tmp_path / "out")] == ["train", "train", "val", "test"]
    (volumes / "images/case3_0000.nii.gz").write_bytes((volumes / "images/case0_0000.nii.gz").read_bytes())
    with pytest.raises(SystemExit):
        prepare("volumes", "--modality", "CT", "--split", split)
    assert "the same image" in capsys.readouterr().err


def test_two_datasets_in_one_folder_need_a_prefix(volumes: Path, tmp_path: Path, prepare, capsys):
    prepare("volumes", "--modality", "CT")
    twin = tmp_path / "twin"
    for index in (0, 1):
        image, mask = volume_pair(20 + index)
        write_nifti(twin / f"images/case{index}.nii.gz", image)
        write_nifti(twin / f"masks/case{index}.nii.gz", mask)
    with pytest.raises(SystemExit):
        prepare("volumes", "--modality", "MR", raw=twin)
    assert "--prefix" in capsys.readouterr().err
    assert prepare("volumes", "--modality", "MR", "--prefix", "twin_", raw=twin) == 0
    assert len(read_manifest(tmp_path / "out")) == 6


def test_dicom_series(tmp_path: Path, prepare):
    pixels = np.random.default_rng(0).integers(0, 2000, (5, 8, 6)).astype(np.int16)
    for name, skip in (("good", ()), ("gap", (2,))):
        write_series(tmp_path / "raw/images" / name, pixels, skip=skip)
        affine = np.diag([-1.0, -1.0, 1.0, 1.0])
        write_nifti(tmp_path / f"raw/masks/{name}.nii.gz", np.zeros((6, 8, 5), np.uint8), affine)
    from medsam2_ft.io.volume import read_volume

    volume = read_volume(tmp_path / "raw/images/good")
    write_mask(tmp_path / "raw/masks/good.nii.gz", (volume.array > 500).astype(np.uint8), like=volume)
    assert prepare("volumes", "--modality", "CT") == 1
    assert "a slice is missing" in (tmp_path / "out/rejected.csv").read_text()
    case = Case.load(tmp_path / "out/cases/good.npz")
    np.testing.assert_array_equal(case.gts, volume.array > 500)


def test_folders_of_slices(tmp_path: Path, prepare):
    from PIL import Image

    for name in ("a", "b", "c"):
        for z in (9, 10, 11):
            for folder, array in (("images", np.random.default_rng(z + 99 * ord(name)).integers(0, 255, (8, 9), dtype=np.uint8)),
                                  ("masks", np.full((8, 9), 255 * (z == 10), np.uint8))):  # fmt: skip
                (tmp_path / "raw" / folder / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(tmp_path / "raw" / folder / name / f"{z}.png")
    assert prepare("volumes", "--modality", "MR", "--label", "lv", "--spacing", 8, 1.2, 1.2) == 0
    case = Case.load(tmp_path / "out/cases/a.npz")
    assert case.kind == "volume" and case.spacing_mm == (8.0, 1.2, 1.2) and case.labels == {"lv": [1]}
    assert case.gts.any(axis=(1, 2)).tolist() == [False, True, False]


@pytest.mark.slow
def test_dask_gives_the_same_dataset(volumes: Path, tmp_path: Path, prepare):
    distributed = pytest.importorskip(
        "distributed", reason="--backend dask is an extra: pip install 'medsam2-ft[dask]'"
    )
    prepare("volumes", "--modality", "CT")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster),
    ):
        assert prepare("volumes", "--modality", "CT", "--backend", "dask", out=tmp_path / "dask") == 0
    assert (tmp_path / "out/manifest.csv").read_bytes() == (tmp_path / "dask/manifest.csv").read_bytes()
    for path in (tmp_path / "out/cases").iterdir():
        np.testing.assert_array_equal(Case.load(path).imgs, Case.load(tmp_path / "dask/cases" / path.name).imgs)
