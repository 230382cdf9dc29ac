"""The table of results: one row a prompted object, its columns a promise to users.

`encode_s`, `prompt_s` and `propagate_s` are the seconds of the whole case in that pass, repeated on each of its rows.
Lengths are in mm, or in pixels where `tolerance_unit` is px. `spacing` is (T, H, W), `box` is "x0 y0 x1 y1",
half-open.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd

from medsam2_ft.errors import DataError

OK, FAILED, SKIPPED = "ok", "failed", "skipped"


@dataclass
class Row:
    """One prompted object, or one case that failed or had nothing to prompt (`status`, `reason`)."""

    model: str
    checkpoint_sha256: str
    protocol: str
    modality: str
    dataset: str
    case: str
    patient: str
    label: str = ""
    instance: int | None = None
    box: str = ""
    prompt_slice: int | None = None
    voxels: int | None = None
    spacing: str = ""
    dsc: float | None = None
    nsd: float | None = None
    nsd_legacy: float | None = None
    tolerance: float | None = None
    tolerance_unit: str = ""
    encode_s: float | None = None
    prompt_s: float | None = None
    propagate_s: float | None = None
    seed: int | None = None
    status: str = OK
    reason: str = ""
    hd95: float | None = None


OBJECT = ["dataset", "case", "label", "instance", "prompt_slice", "seed"]
"""Columns that say which object a row is about, and from which prompt."""
COLUMNS = [column.name for column in fields(Row) if column.name != "hd95"]
TEXTS = [column.name for column in fields(Row) if column.type is str]
COUNTS = [column.name for column in fields(Row) if column.type == int | None]


def write_rows(path: Path, rows: Sequence[Row] | pd.DataFrame) -> None:
    """Write a csv in one step; the column hd95 is there only if it was computed."""
    table = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame([asdict(row) for row in rows])
    table = table.reindex(columns=[*COLUMNS, "hd95"])
    table = table.astype(dict.fromkeys(COUNTS, "Int64"))  # with a gap they would be floats, and lose digits
    if table["hd95"].isna().all():
        table = table.drop(columns="hd95")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    table.to_csv(draft, index=False, float_format="%.6g")
    draft.replace(path)


def read_rows(path: Path) -> pd.DataFrame:
    """A rows.csv as a table; empty texts stay empty texts.

    Raises:
        DataError: if it is missing, damaged or lacks columns.
    """
    if not path.is_file():
        raise DataError(f"there is no {path}: run `python -m medsam2_ft benchmark` or `score` first")
    empty = {name: [""] for name in (*COLUMNS, "hd95") if name not in TEXTS}
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(TEXTS, str), keep_default_na=False, na_values=empty)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error})") from None
    absent = [name for name in COLUMNS if name not in table.columns]
    if absent:
        raise DataError(f"{path} lacks the column(s) {', '.join(absent)}")
    return table
