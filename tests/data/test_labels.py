from pathlib import Path

import numpy as np
import pytest

from medsam2_ft.data.components import parse_sizes, remove_small, split_instances
from medsam2_ft.data.labels import LabelMap, as_ids, names_beside
from medsam2_ft.data.layers import stack_masks
from medsam2_ft.errors import DataError

SOURCE = {"liver": [1], "kidney_left": [2], "kidney_right": [3], "duodenum": [12]}


def apply(text: str, ids: list[int], source=SOURCE):
    gts, labels = LabelMap.parse(text).apply(np.array(ids, np.uint8), source)
    return gts.tolist(), labels


def test_rename_merge_drop_select():
    assert apply("Leber: 1\nkidneys: [kidney_left, 3]", [0, 1, 2, 3, 12]) == (
        [0, 1, 2, 2, 0],
        {"Leber": [1], "kidneys": [2]},
    )
    assert apply('gut: duodenum\n"*": keep', [0, 1, 12])[1] == {
        "gut": [12], "liver": [1], "kidney_left": [2], "kidney_right": [3],
    }  # fmt: skip


def test_nested_regions_keep_their_ids_apart():
    assert apply("disc: [1, 2]\ncup: 2", [0, 1, 2], {}) == ([0, 1, 2], {"disc": [1, 2], "cup": [2]})
    # 128 and 255 both make the cell, only 255 the nucleus: 128 stays apart from 255.
    assert apply("cell: [128, 255]\nnucleus: 255", [0, 128, 255], {})[0] == [0, 128, 255]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("liver: livr", "did you mean 'liver'"),
        ("- 1", "must map region names"),
        ("liver: 0", "nonzero"),
        ("liver: [", "not valid yaml"),
        ('"*": hold\nliver: 1', "keep or drop"),
    ],
)
def test_label_files_that_make_no_sense(text: str, sentence: str):
    with pytest.raises(DataError, match=sentence):
        apply(text, [1])


def test_missing_label_file(tmp_path: Path):
    with pytest.raises(DataError, match="no label file"):
        LabelMap.read(tmp_path / "x.yaml")


def test_names_from_dataset_json(tmp_path: Path):
    (tmp_path / "labelsTr").mkdir()
    (tmp_path / "dataset.json").write_text('{"labels": {"0": "background", "1": "anterior"}}')
    assert names_beside(tmp_path / "labelsTr") == {1: "anterior"}
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "liver": 1}}')
    assert names_beside(tmp_path) == {1: "liver"}


def test_ids_never_wrap_around():
    assert as_ids(np.array([0.0, 300.0]), source="m").dtype == np.uint16
    for values in ([0.5], [-1], [70000], [np.nan]):
        with pytest.raises(DataError):
            as_ids(np.array(values), source="m")


def test_masks_that_overlap_go_to_layers():
    lung, lesion, heart = np.zeros((3, 1, 6, 6), bool)
    lung[0, :4] = True
    lesion[0, 1, 1] = True
    heart[0, 5] = True
    gts, layers = stack_masks([(1, lung), (2, lesion), (3, heart)])
    assert gts[0, 1, 1] == 2 and layers is not None and layers.shape[0] == 2
    assert ((layers == 1).any(0) == lung).all() and ((layers == 3).any(0) == heart).all()
    assert stack_masks([(1, lung), (3, heart)])[1] is None
    with pytest.raises(DataError, match="up to 255"):
        stack_masks([(1, lung), (300, lesion)])


def test_small_components_are_removed_only_on_request():
    gts = np.zeros((4, 30, 30), np.uint8)
    gts[:, :20, :20] = 1
    gts[2, 25, 25] = 1
    gts[1:3, 25:28, :3] = 2
    assert parse_sizes(["none"]) == (0, 0) and parse_sizes(["reference"]) == (1000, 100)
    cleaned = remove_small(gts, min_voxels=10, min_pixels=0, in_3d=True)
    assert cleaned[2, 25, 25] == 0 and (cleaned == 2).sum() == 18
    assert (remove_small(gts, min_voxels=1000, min_pixels=100, in_3d=True) > 0).sum() == 1600
    with pytest.raises(DataError, match="--remove-small"):
        parse_sizes(["some"])


def test_more_than_255_instances_do_not_wrap():
    gts = np.zeros((1, 40, 40), np.uint8)
    gts[0, ::2, ::2] = 3
    split, labels = split_instances(gts, {"cell": [3]}, names=["cell"])
    assert split.dtype == np.uint16 and len(np.unique(split)) == 401 and labels["cell"] == list(range(4, 404))
    with pytest.raises(DataError, match="no region 'nucleus'"):
        split_instances(gts, {"cell": [3]}, names=["nucleus"])
