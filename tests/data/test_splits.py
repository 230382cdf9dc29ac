from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsam2_ft.data.manifest import Record
from medsam2_ft.data.splits import PatientRule, assign_folds, assign_splits, check_leaks, read_split_csv
from medsam2_ft.errors import DataError


def test_shares_are_about_right_and_repeatable():
    patients = [f"p{i}" for i in range(2000)]
    chosen = assign_splits(patients)
    counts = Counter(chosen.values())
    assert 1520 < counts["train"] < 1680 and 140 < counts["val"] < 260 and 140 < counts["test"] < 260
    assert chosen == assign_splits(reversed(patients))
    assert chosen != assign_splits(patients, seed=1)


def test_adding_patients_moves_nobody():
    before = assign_splits([f"p{i}" for i in range(100)])
    after = assign_splits([f"p{i}" for i in range(400)])
    assert all(after[patient] == split for patient, split in before.items())


@given(st.sets(st.text(min_size=1, max_size=5), min_size=3, max_size=12))
def test_three_patients_are_enough_for_three_splits(patients):
    assert set(assign_splits(patients).values()) == {"train", "val", "test"}


def test_one_patient_trains():
    assert assign_splits(["only"]) == {"only": "train"}


def test_earlier_places_are_kept():
    assert assign_splits(["a", "b", "c"], existing={"a": "test"})["a"] == "test"


@pytest.mark.parametrize("fractions", [(0.8, 0.1), (0.8, 0.3, 0.1), (1.2, -0.1, -0.1)])
def test_shares_must_make_one_whole(fractions):
    with pytest.raises(DataError, match="sum to 1"):
        assign_splits(["a"], fractions=fractions)


def test_folds_hold_out_every_patient_once():
    patients = [f"p{i}" for i in range(11)]
    held = [
        patient
        for fold in range(3)
        for patient, split in assign_folds(patients, folds=3, held_out=fold).items()
        if split == "val"
    ]
    assert sorted(held) == sorted(patients)
    with pytest.raises(DataError, match="Fold 3"):
        assign_folds(patients, folds=3, held_out=3)
    with pytest.raises(DataError, match="there are 2 patients"):
        assign_folds(["a", "b"], folds=3, held_out=0)


def record(case: str, split: str, patient: str, sha256: str = "") -> Record:
    return Record(case=case, file=f"{case}.npz", modality="CT", split=split, patient=patient, sha256=sha256)


def test_leaks_are_errors():
    check_leaks([record("a", "train", "p1"), record("b", "train", "p1"), record("c", "val", "p2")])
    with pytest.raises(DataError, match=r"Patient 'p1'.*train \(a\).*val \(b\)"):
        check_leaks([record("a", "train", "p1"), record("b", "val", "p1")])
    with pytest.raises(DataError, match="the same image"):
        check_leaks([record("a", "train", "p1", "ff"), record("b", "test", "p2", "ff")])


def test_patient_rules(tmp_path: Path):
    assert PatientRule(None)("x_1") == "x_1"
    assert PatientRule(r"(P\d+)_")("P12_L_CC") == "P12"
    assert PatientRule(r"^[^_]+")("P12_L") == "P12"
    table = tmp_path / "patients.csv"
    table.write_text("case,who\na,1\n")
    assert PatientRule(f"{table}:who")("a") == "1"
    with pytest.raises(DataError, match="no case 'b'"):
        PatientRule(f"{table}:who")("b")
    with pytest.raises(DataError, match="no column 'patient'"):
        PatientRule(f"{table}:patient")
    with pytest.raises(DataError, match="does not match"):
        PatientRule(r"Q\d")("P1")
    with pytest.raises(DataError, match="not a regular expression"):
        PatientRule("(")


def test_fixed_splits(tmp_path: Path):
    path = tmp_path / "split.csv"
    path.write_text("patient,split\na,train\nb,test\n")
    assert read_split_csv(path) == {"a": "train", "b": "test"}
    path.write_text("patient,split\na,trian\n")
    with pytest.raises(DataError, match="'trian'"):
        read_split_csv(path)
