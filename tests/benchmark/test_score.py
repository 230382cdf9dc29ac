"""Masks from elsewhere: npz, NIfTI in the source geometry, pictures; missing and misfitting ones."""

import nibabel as nib
import numpy as np
import pytest

from benchmark.cases import image_case, volume_case, write_dataset
from medsam2_ft.benchmark.evidence import prediction_and_truth
from medsam2_ft.benchmark.report import write_report
from medsam2_ft.benchmark.score import score_folder
from medsam2_ft.errors import DataError
from medsam2_ft.io.volume import read_volume


def test_npz_and_missing_masks(tmp_path):
    root = write_dataset(tmp_path / "data", [volume_case("a"), volume_case("b"), volume_case("c")])
    pred = tmp_path / "pred"
    pred.mkdir()
    np.savez(pred / "a.npz", segs=volume_case().gts)
    np.savez(pred / "b.npz", segs=volume_case().gts[:5])
    table = score_folder(pred, root=root, out=tmp_path / "out", name="theirs").set_index("case")
    assert table.loc["a", "dsc"].tolist() == [1.0, 1.0]
    assert table.loc["b", "reason"].startswith(str(pred / "b.npz"))
    assert table.loc["c", "status"] == "failed"
    with pytest.raises(DataError, match="holds no mask"):
        score_folder(tmp_path / "data", root=root, out=tmp_path / "empty", name="none")


def test_a_region_that_only_the_mask_has_scores_nothing(tmp_path):
    case = volume_case("a", labels={"liver": [1], "kidney": [2], "spleen": [3], "colon": [4]})
    root = write_dataset(tmp_path / "data", [case])
    segs = case.gts.copy()
    segs[2:5, :6, :6] = 3
    (tmp_path / "pred").mkdir()
    np.savez(tmp_path / "pred" / "a.npz", segs=segs)
    table = score_folder(tmp_path / "pred", root=root, out=tmp_path / "out", name="theirs")
    found = table[["label", "dsc", "nsd", "voxels"]].set_index("label").T.to_dict("list")
    assert found.pop("spleen") == [0, 0, 0]
    assert found == {
        "liver": [1, 1, case.region_mask("liver").sum()],
        "kidney": [1, 1, case.region_mask("kidney").sum()],
    }
    row = next(table.query("label == 'spleen'").itertuples())
    prediction, truth = prediction_and_truth(tmp_path / "out", row, case)
    assert prediction.sum() == 3 * 36
    assert not truth.any()
    html, _ = write_report(tmp_path / "out")
    assert "data / a · spleen" in html.read_text()


def test_two_datasets_with_cases_of_one_name_in_one_folder(tmp_path):
    for name in ("one", "two"):
        root = write_dataset(tmp_path / name, [volume_case("same")])
        (tmp_path / f"pred_{name}").mkdir()
        np.savez(tmp_path / f"pred_{name}" / "same.npz", segs=volume_case().gts)
        table = score_folder(tmp_path / f"pred_{name}", root=root, out=tmp_path / "out", name="theirs")
    assert table["dataset"].tolist() == ["one", "one", "two", "two"]
    assert len(list((tmp_path / "out" / "masks").rglob("*.npz"))) == 2


def test_pictures(tmp_path):
    from PIL import Image

    root = write_dataset(tmp_path / "data", [image_case("a")])
    pred = tmp_path / "pred"
    pred.mkdir()
    Image.fromarray(image_case().gts[0]).save(pred / "a.png")
    assert score_folder(pred, root=root, out=tmp_path / "out", name="theirs")["dsc"].tolist() == [1.0]


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SRA"])
def test_a_nifti_file_in_the_source_geometry(tmp_path, codes):
    gts = volume_case().gts
    source = nib.Nifti1Image(gts.transpose(2, 1, 0), np.diag([1.0, 1.5, 5.0, 1.0]))
    turned = source.as_reoriented(nib.orientations.ornt_transform(
        nib.orientations.io_orientation(source.affine), nib.orientations.axcodes2ornt(codes)
    ))  # fmt: skip
    pred = tmp_path / "pred"
    pred.mkdir()
    nib.save(turned, pred / "a.nii.gz")
    volume = read_volume(pred / "a.nii.gz")
    case = volume_case("a", affine=volume.affine, spacing=volume.spacing_mm)
    object.__setattr__(case, "gts", volume.array.astype(np.uint8))
    root = write_dataset(tmp_path / "data", [case])
    assert score_folder(pred, root=root, out=tmp_path / "out", name="nnunet")["dsc"].tolist() == [1.0, 1.0]
