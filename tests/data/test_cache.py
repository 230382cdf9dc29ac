"""Memory-mapped copies of cases: where they cannot be written, and the recipe that is read without them."""

from dataclasses import replace

import numpy as np
import pytest
from blobs import write_blobs

from medsam2_ft.data.cache import cache_case
from medsam2_ft.data.case import Case, read_recipe
from medsam2_ft.data.datamodule import PromptedDataModule
from medsam2_ft.data.manifest import read_manifest
from medsam2_ft.errors import DataError


@pytest.fixture
def root(tmp_path):
    return write_blobs(tmp_path / "data", splits="train train val")


def test_a_copy_that_cannot_be_written_gets_one_sentence(root, tmp_path):
    (root / ".cache").write_text("a file where the folder should be")
    record = read_manifest(root)[0]
    with pytest.raises(DataError, match=r"copy of blob_0 cannot be written under .*\.cache .*; set data.cache_dir"):
        cache_case(record, root=root)
    copy = cache_case(record, root=root, cache_dir=tmp_path / "elsewhere")
    np.testing.assert_array_equal(copy.case.imgs, Case.load(root / record.file).imgs)


def test_recipe_is_that_of_all_cases_or_none(root, monkeypatch):
    recipe = {"method": "window", "windows": [[40.0, 400.0]]}
    for record in read_manifest(root):
        replace(Case.load(root / record.file), recipe=recipe).save(root / record.file)
    np.savez(root / "foreign.npz", imgs=np.zeros((4, 8, 8), np.uint8))
    monkeypatch.setattr(Case, "load", None)  # no image is unpacked for it
    assert read_recipe(root / "foreign.npz") is None
    data = PromptedDataModule(root)
    assert data.recipe == recipe
    monkeypatch.undo()
    first = root / data.records[0][1].file
    replace(Case.load(first), recipe=None).save(first)
    assert data.recipe is None
