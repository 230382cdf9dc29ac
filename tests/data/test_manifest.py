from pathlib import Path

import numpy as np
import pytest

from medsam2_ft.data.manifest import MODALITIES, Record, normalise_modality, read_manifest, write_manifest
from medsam2_ft.errors import DataError

RECORDS = [
    Record("a,b", "cases/a.npz", "CT", "train", "p", {"liver": [1], "disc, cup": [2, 3]}, (4, 5, 6), (2.5, 0.7, 0.7), "x", "ff"),
    Record("c", "cases/c.npz", "Fundus", "test", "q", {}, (1, 5, 6), None, "ünï", ""),
]  # fmt: skip


def test_round_trip(tmp_path: Path):
    write_manifest(tmp_path, RECORDS)
    assert read_manifest(tmp_path) == RECORDS
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.csv"]


def test_missing_manifest_says_what_was_looked_for_and_how_to_make_one(tmp_path: Path):
    with pytest.raises(DataError, match=r"manifest\.csv.*python -m data_prep volumes"):
        read_manifest(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        read_manifest(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "text", ["case,file\na,b\n", "case,file,modality,split,patient,labels,shape,spacing,source,sha256\na,b,CT,train,p,{,1x2,,,\n"]
)  # fmt: skip
def test_damaged_manifest(tmp_path: Path, text: str):
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(DataError, match="prepare the dataset again"):
        read_manifest(tmp_path)


def test_a_folder_of_foreign_files_is_a_dataset(tmp_path: Path):
    for name in ("npz_train/CT_Abd/CT_Abd_1.npz", "npz_test/CT_Abd/CT_Abd_2.npz", "2DBox_US_0001.npz"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, imgs=np.ones((2, 4, 4), np.uint8))
    records = {record.file: record for record in read_manifest(tmp_path)}
    assert records["npz_train/CT_Abd/CT_Abd_1.npz"].split == "train"
    assert records["npz_test/CT_Abd/CT_Abd_2.npz"].split == "test"
    assert records["2DBox_US_0001.npz"].modality == "Ultrasound"
    assert records["npz_train/CT_Abd/CT_Abd_1.npz"].modality == "CT"
    assert records["2DBox_US_0001.npz"].shape == (2, 4, 4)


def test_modalities():
    assert all(normalise_modality(name.lower()) == name for name in MODALITIES)
    aliases = {"MRI": "MR", "us": "Ultrasound", "Light microscopy": "Microscopy", "X_Ray": "X-ray", "xray": "X-ray"}
    assert {alias: normalise_modality(alias) for alias in aliases} == aliases
    with pytest.raises(DataError, match="did you mean 'Dermoscopy'"):
        normalise_modality("Dermoscopi")
