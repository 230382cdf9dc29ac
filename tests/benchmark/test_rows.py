"""rows.csv: what is written is read again."""

import pandas as pd

from medsam2_ft.benchmark.rows import FAILED, Row, read_rows, write_rows


def test_whole_numbers_keep_all_digits_beside_a_row_without_them(tmp_path):
    scored = Row("m", "", "p", "CT", "d", "a", "a", "x", 0, "", 3, 12345678, dsc=0.1234567, seed=20240117)
    failed = Row("m", "", "p", "CT", "d", "b", "b", status=FAILED)
    write_rows(tmp_path / "rows.csv", pd.DataFrame([vars(scored), vars(failed)]))
    table = read_rows(tmp_path / "rows.csv")
    assert table.loc[0, ["instance", "prompt_slice", "voxels", "seed"]].tolist() == [0, 3, 12345678, 20240117]
    assert table.loc[1, ["instance", "prompt_slice", "voxels", "seed"]].isna().all()
    assert table["voxels"].dtype == float
    assert table.loc[0, "dsc"] == 0.123457
