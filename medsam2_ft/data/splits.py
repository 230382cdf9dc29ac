"""Splits into train, val and test: whole patients, decided by hashing, and checked for leaks.

A patient's split depends on its own id and the seed, not on who else is in the set, so adding cases moves nobody.
"""

import csv
import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from medsam2_ft.errors import DataError

_NAMES = ("train", "val", "test")


class Placed(Protocol):
    """What `check_leaks` looks at in a manifest record."""

    @property
    def case(self) -> str: ...  # noqa: D102
    @property
    def split(self) -> str: ...  # noqa: D102
    @property
    def patient(self) -> str: ...  # noqa: D102
    @property
    def sha256(self) -> str: ...  # noqa: D102


def assign_splits(
    patients: Iterable[str],
    *,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    existing: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Choose a split for every patient.

    Each patient falls where the hash of (seed, id) points. If that leaves a wanted split empty, the patient nearest to
    it moves there, so that three patients are enough for three splits.

    Args:
        patients: ids, repeats allowed.
        fractions: shares of train, val and test; they sum to 1.
        seed: another seed, another split.
        existing: patient -> split of an earlier preparation; those stay where they are.

    Returns:
        patient -> "train", "val" or "test".

    Raises:
        DataError: if the fractions are not three shares of one whole.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise DataError(
            f"A split needs three shares (train val test) that sum to 1; got {' '.join(map(str, fractions))}."
        )
    fixed = dict(existing or {})
    place = {patient: _unit_hash(patient, seed) for patient in patients}
    chosen = {patient: fixed.get(patient) or _split_at(point, fractions) for patient, point in place.items()}
    _fill_empty(chosen, place, fractions, movable=set(place) - set(fixed))
    return chosen


def assign_folds(patients: Iterable[str], *, folds: int, held_out: int, seed: int = 0) -> dict[str, str]:
    """K-fold split: fold `held_out` (0-based) becomes "val", all others "train".

    Patients are dealt to folds in hash order, so folds differ by at most one patient; unlike `assign_splits`, an added
    patient may shift others.

    Raises:
        DataError: for fewer patients than folds or a fold that does not exist.
    """
    order = sorted(set(patients), key=lambda patient: _unit_hash(patient, seed))
    if not 2 <= folds <= len(order):
        raise DataError(f"{folds} folds need at least 2 folds and {folds} patients; there are {len(order)} patients.")
    if not 0 <= held_out < folds:
        raise DataError(f"Fold {held_out} does not exist; with {folds} folds they are 0 to {folds - 1}.")
    return {patient: "val" if rank % folds == held_out else "train" for rank, patient in enumerate(order)}


def read_split_csv(path: Path) -> dict[str, str]:
    """A fixed split: a csv with the columns `case` or `patient`, and `split`.

    Raises:
        DataError: if the columns or a split's name are not as expected.
    """
    rows = _read_columns(path, wanted=("split",))
    key = next((name for name in ("patient", "case") if name in rows[0]), None)
    if key is None:
        raise DataError(f"{path} needs a column 'patient' or 'case' beside 'split'.")
    for row in rows:
        if row["split"] not in _NAMES:
            raise DataError(f"{path} puts '{row[key]}' into '{row['split']}'; splits are {', '.join(_NAMES)}.")
    return {row[key]: row["split"] for row in rows}


def parse_split(words: Sequence[str]) -> list[float] | dict[str, str]:
    """Read a split as a user types it: three shares, or one csv file.

    Raises:
        DataError: for anything else.
    """
    if len(words) == 1 and words[0].endswith(".csv"):
        return read_split_csv(Path(words[0]))
    try:
        shares = [float(word) for word in words]
    except ValueError:
        raise DataError(f"--split takes three shares or one csv; got '{' '.join(words)}'.") from None
    assign_splits([], fractions=shares)
    return shares


class PatientRule:
    """Tells the patient of a case: by a regular expression on its name, or by a csv column.

    Args:
        rule: a regex whose first group (or whole match) is the patient, or `FILE.csv:COLUMN` with a `case` column in
            the file; None makes every case its own patient.
    """

    def __init__(self, rule: str | None = None):
        self.rule = rule
        self._table: dict[str, str] | None = None
        self._pattern: re.Pattern[str] | None = None
        if rule is None:
            return
        file, _, column = rule.rpartition(":")
        if file.endswith(".csv"):
            self._table = {row["case"]: row[column] for row in _read_columns(Path(file), wanted=("case", column))}
            return
        try:
            self._pattern = re.compile(rule)
        except re.error as error:
            raise DataError(f"--group-by '{rule}' is not a regular expression ({error}).") from None

    def __call__(self, case: str) -> str:
        """The patient of `case`.

        Raises:
            DataError: if the rule does not know the case; a silent fallback could tear a patient apart.
        """
        if self._table is not None:
            if case not in self._table:
                raise DataError(f"The table of --group-by '{self.rule}' has no case '{case}'.")
            return self._table[case]
        if self._pattern is None:
            return case
        match = self._pattern.search(case)
        if match is None:
            raise DataError(f"--group-by '{self.rule}' does not match the case '{case}'.")
        return match.group(1) if match.groups() else match.group(0)


def check_leaks(records: Collection[Placed]) -> None:
    """Refuse a table in which one patient, or one source image, is in two splits.

    Raises:
        DataError: naming the patient or the two cases.
    """
    by_patient: dict[str, Placed] = {}
    by_hash: dict[str, Placed] = {}
    for record in records:
        first = by_patient.setdefault(record.patient, record)
        if first.split != record.split:
            raise DataError(
                f"Patient '{record.patient}' is in both {first.split} ({first.case}) and {record.split} "
                f"({record.case}); split by patient with --group-by."
            )
        twin = by_hash.setdefault(record.sha256, record) if record.sha256 else record
        if twin.split != record.split:
            raise DataError(
                f"Cases '{twin.case}' ({twin.split}) and '{record.case}' ({record.split}) are the same image; "
                "remove one of them."
            )


def _unit_hash(patient: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}:{patient}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _split_at(point: float, fractions: Sequence[float]) -> str:
    if point < fractions[0]:
        return "train"
    return "val" if point < fractions[0] + fractions[1] else "test"


def _fill_empty(
    chosen: dict[str, str], place: dict[str, float], fractions: Sequence[float], *, movable: set[str]
) -> None:
    """Move single patients into splits that hashing left empty, never emptying another one."""
    edges = {"train": fractions[0] / 2, "val": fractions[0] + fractions[1] / 2, "test": 1 - fractions[2] / 2}
    # Order of need: a run without a training or test set is worth less than one without validation.
    for name, share in (("train", fractions[0]), ("test", fractions[2]), ("val", fractions[1])):
        counts = {split: sum(1 for value in chosen.values() if value == split) for split in _NAMES}
        if share <= 0 or counts[name]:
            continue
        # Training may take a split's only patient: nothing else can be done without it.
        spare = 0 if name == "train" else 1
        donors = [patient for patient in movable if patient in chosen and counts[chosen[patient]] > spare]
        if donors:
            nearest_patient = min(donors, key=lambda patient: (abs(place[patient] - edges[name]), patient))
            chosen[nearest_patient] = name


def _read_columns(path: Path, *, wanted: Sequence[str]) -> list[dict[str, str]]:
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    with path.open(newline="", encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream))
    if not rows:
        raise DataError(f"{path} has no rows.")
    absent = [column for column in wanted if column not in rows[0]]
    if absent:
        raise DataError(f"{path} has no column '{absent[0]}'; it has {', '.join(rows[0])}.")
    return rows
