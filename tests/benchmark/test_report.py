"""What the report's tables show."""

import numpy as np
import pandas as pd
import pytest

from medsam2_ft.benchmark.protocol import Protocol
from medsam2_ft.benchmark.provenance import ModelRecord, Run
from medsam2_ft.benchmark.report import write_report
from medsam2_ft.benchmark.rows import Row, write_rows


@pytest.fixture
def report(tmp_path):
    """Page and tables of one model on two datasets that both call something `lesion`."""

    def write(hd95=None):
        rows = pd.DataFrame([
            Row("m", "", "p", "CT", dataset, f"c{i}", f"{i}", "lesion", 0, "", 0, 100 + i, dsc=0.8, nsd=0.7, nsd_legacy=0.7,
                seed=0, hd95=hd95 and hd95[i])
            for dataset in ("liver_set", "lung_set") for i in range(3)
        ])  # fmt: skip
        run = Run.open(tmp_path, Protocol("p", hd95=hd95 is not None), roots=[], split="test")
        run.add(ModelRecord("m", "m.pt"))
        write_rows(tmp_path / "rows.csv", rows)
        run.close(rows)
        return [path.read_text() for path in write_report(tmp_path)]

    return write


def test_the_table_by_label_keeps_datasets_apart(report):
    page, _ = report()
    labels = page[page.index('id="labels"') :]
    assert "2 lines" in labels and "liver_set" in labels and "lung_set" in labels
    assert "HD95" not in page


def test_hd95_is_shown_where_it_was_computed(report):
    for text in report(hd95=(2.0, 3.0, np.inf)):
        assert "2.50 (2 infinite)" in text
