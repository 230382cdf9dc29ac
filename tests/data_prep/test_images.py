from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsam2_ft.data.case import Case
from medsam2_ft.data.manifest import read_manifest


def test_photographs(pictures: Path, tmp_path: Path, prepare, capsys):
    assert prepare("images", "--modality", "dermoscopy", "--label", "lesion") == 0
    printed = capsys.readouterr().out
    assert "mask encoding: binary (4 masks hold only 0 and 255)" in printed
    assert "8-bit values as they are" in printed and "4 cases, 4 slices" in printed
    record = read_manifest(tmp_path / "out")[0]
    assert record.modality == "Dermoscopy" and record.shape == (1, 24, 30) and record.spacing is None
    case = Case.load(tmp_path / "out" / record.file)
    assert case.is_2d and case.imgs.shape == (1, 24, 30, 3) and case.region_mask("lesion").sum() == 120
    with np.load(tmp_path / "out" / record.file) as stored:
        assert stored["imgs"].shape == (24, 30, 3) and stored["gts"].shape == (24, 30)


def test_bad_images_are_named(pictures: Path, tmp_path: Path, prepare):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(pictures / "masks/photo_0.png")
    (pictures / "images/photo_1.jpg").write_bytes(b"")
    Image.fromarray(np.full((24, 30), 9, np.uint8)).save(pictures / "images/photo_2.jpg")
    (pictures / "masks/lonely.png").write_bytes((pictures / "masks/photo_3.png").read_bytes())
    assert prepare("images", "--modality", "Endoscopy") == 1
    text = (tmp_path / "out/rejected.csv").read_text()
    assert "mask of another image" in text and "0 bytes" in text and "nothing to see" in text
    assert [record.case for record in read_manifest(tmp_path / "out")] == ["photo_3"]


def test_all_rejected_is_an_error(pictures: Path, prepare, capsys):
    for path in (pictures / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(SystemExit):
        prepare("images", "--modality", "Endoscopy")
    assert "All 4 cases were rejected" in capsys.readouterr().err


def test_deep_and_dark_images_are_stretched(pictures: Path, tmp_path: Path, prepare, capsys):
    for seed, path in enumerate(list((pictures / "images").iterdir())):
        array = np.random.default_rng(seed).integers(1, 40, (24, 30), dtype=np.uint8)
        Image.fromarray(array).save(path.with_suffix(".png"))
        path.unlink()
    prepare("images", "--modality", "X-ray")
    assert "dark" in capsys.readouterr().out
    assert Case.load(tmp_path / "out/cases/photo_0.npz").imgs.max() == 255
    for seed, path in enumerate((pictures / "images").iterdir()):
        Image.fromarray(np.random.default_rng(seed).integers(0, 4000, (24, 30)).astype(np.uint16)).save(path)
    prepare("images", "--modality", "X-ray")
    assert "deeper than 8 bit" in capsys.readouterr().out
    assert Case.load(tmp_path / "out/cases/photo_0.npz").recipe["method"] == "percentile"


def test_several_files_an_image(pictures: Path, tmp_path: Path, prepare):
    for index in range(4):
        whole = pictures / f"masks/photo_{index}.png"
        whole.rename(pictures / f"masks/photo_{index}__Left-Lung_3.png")
        lesion = np.zeros((24, 30), np.uint8)
        lesion[6:9, 8:10] = 255
        for number in (1, 2):
            Image.fromarray(np.roll(lesion, number * 3, axis=0)).save(
                pictures / f"masks/photo_{index}_opacity_{number:03d}.png"
            )
    assert prepare("images", "--modality", "X-ray") == 0
    case = Case.load(tmp_path / "out/cases/photo_0.npz")
    assert case.labels == {"left_lung": [1], "opacity": [2]}
    assert case.region_mask("left_lung").sum() == 120 and case.region_mask("opacity").sum() == 12


def test_nested_colours_by_a_label_file(pictures: Path, tmp_path: Path, prepare):
    for path in (pictures / "masks").iterdir():
        colours = np.zeros((24, 30, 3), np.uint8)
        colours[4:16, 4:16] = (255, 255, 0)
        colours[8:12, 8:12] = (255, 0, 0)
        Image.fromarray(colours).save(path)
    labels = tmp_path / "labels.yaml"
    labels.write_text("disc: [yellow, red]\ncup: red\n")
    assert prepare("images", "--modality", "Fundus", "--labels", labels) == 0
    case = Case.load(tmp_path / "out/cases/photo_0.npz")
    assert case.region_mask("disc").sum() == 144 and case.region_mask("cup").sum() == 16


def test_instances(pictures: Path, tmp_path: Path, prepare, capsys):
    for index, path in enumerate(sorted((pictures / "masks").iterdir())):
        cells = np.zeros((24, 30), np.uint16)
        for number in range(12 + index):
            cells[number // 5 * 5 : number // 5 * 5 + 4, number % 5 * 5 : number % 5 * 5 + 4] = number + 1
        Image.fromarray(cells).save(path)
    assert prepare("images", "--modality", "Light microscopy", "--label", "cell") == 0
    assert "mask encoding: instances" in capsys.readouterr().out
    case = Case.load(tmp_path / "out/cases/photo_3.npz")
    assert case.instances and len(case.objects(0)) == 15 and case.region_mask("cell", 0, instance=15).sum() == 16
