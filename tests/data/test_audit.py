from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medsam2_ft.data.audit import audit_dataset, require_sound
from medsam2_ft.data.card import write_card
from medsam2_ft.data.case import Case
from medsam2_ft.data.manifest import Record, write_manifest
from medsam2_ft.errors import DataError


def case(name: str, seed: int, **changes) -> Case:
    rng = np.random.default_rng(seed)
    gts = np.zeros((3, 32, 40), np.uint8)
    gts[1, 5:20, 8:30] = 1
    made = Case(
        name=name, imgs=rng.integers(0, 255, (3, 32, 40), dtype=np.uint8), gts=gts, spacing_mm=(3.0, 1.0, 1.0),
        labels={"liver": [1]}, modality="CT",
    )  # fmt: skip
    return replace(made, **changes)


def dataset(root: Path, cases: list[Case], splits=("train", "val", "test", "train"), **changes) -> Path:
    records = []
    for made, split in zip(cases, splits, strict=False):
        made.save(root / f"cases/{made.name}.npz")
        records.append(
            Record(
                made.name, f"cases/{made.name}.npz", "CT", split, changes.get("patient", made.name), made.labels,
                made.shape, made.spacing_mm, "", "",
            )
        )  # fmt: skip
    write_manifest(root, records)
    return root


def messages(root: Path, level: str) -> str:
    return " ".join(f"{f.case}: {f.message}" for f in audit_dataset(root).findings if f.level == level)


def test_a_sound_dataset(tmp_path: Path):
    root = dataset(tmp_path, [case(f"c{i}", i) for i in range(3)])
    assert audit_dataset(root).findings == []
    require_sound(root)
    page = write_card(audit_dataset(root)).read_text()
    assert "liver" in page and "0 errors" in page and "data:image/png" in page and "http" not in page


@pytest.mark.parametrize(
    ("changes", "level", "sentence"),
    [
        ({"imgs": np.full((3, 32, 40), 9, np.uint8)}, "error", "constant"),
        ({"labels": {"liver": [2]}}, "error", "no label names: 1"),
        ({"spacing_mm": (3.0, float("nan"), 1.0)}, "error", "not positive"),
        ({"affine": np.zeros((4, 4))}, "error", "singular"),
        ({"affine": np.eye(4)}, "error", "contradicts"),
        ({"gts": np.zeros((3, 32, 40), np.uint8)}, "warning", "mask is empty"),
        ({"gts": None}, "warning", "no mask"),
        ({"imgs": np.random.default_rng(1).integers(0, 20, (3, 32, 40), dtype=np.uint8)}, "warning", "hardly varies"),
    ],
)
def test_what_is_wrong_with_one_case(tmp_path: Path, changes, level: str, sentence: str):
    root = dataset(tmp_path, [case("c0", 0), case("c1", 1), case("bad", 2, **changes)])
    assert f"bad: {sentence}"[:4] in messages(root, level) and sentence in messages(root, level)
    if level == "error":
        with pytest.raises(DataError, match=r"'bad'.*data_prep audit"):
            require_sound(root)
    else:
        require_sound(root)


def test_labels_that_vanish_at_training_size(tmp_path: Path):
    gts = np.zeros((1, 1024, 1024), np.uint8)
    gts[0, 501, 501] = 1
    imgs = np.random.default_rng(0).integers(0, 255, gts.shape, dtype=np.uint8)
    root = dataset(tmp_path, [case("c0", 0), case("c1", 1), case("tiny", 2, imgs=imgs, gts=gts)])
    assert "'liver' vanishes at 256 px: its largest slice has 1 of 1024x1024" in messages(root, "warning")


def test_duplicates_and_leaks(tmp_path: Path):
    twins = [case("c0", 0), case("c1", 1), case("c2", 0), case("c3", 3)]
    assert "The same image is here 2 times" in messages(dataset(tmp_path / "a", twins), "error")
    assert "The same image" in messages(
        dataset(tmp_path / "b", twins, splits=("train", "val", "train", "test")), "warning"
    )
    assert "Patient 'p' is in both" in messages(dataset(tmp_path / "c", twins, patient="p"), "error")


def test_outliers_missing_splits_and_strays(tmp_path: Path):
    dark = case("dark", 5, imgs=np.random.default_rng(5).integers(0, 60, (3, 32, 40), dtype=np.uint8))
    root = dataset(tmp_path, [*(case(f"c{i}", i) for i in range(4)), dark], splits=["train"] * 5)
    (root / "cases/stray.npz").write_bytes(b"")
    text = messages(root, "warning")
    assert "dark: Unusual intensity" in text and "No case is in the val split" in text and "not in the manifest" in text


def test_unreadable_cases_and_stale_verdicts(tmp_path: Path):
    root = dataset(tmp_path, [case(f"c{i}", i) for i in range(3)])
    require_sound(root)
    (root / "cases/c1.npz").write_bytes(b"junk")
    with pytest.raises(DataError, match="not a readable npz"):
        require_sound(root)
