"""Every score can be computed again from what a run keeps."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmark.cases import EllipseModel, ellipsoid, image_case, volume_case, write_dataset
from medsam2_ft.benchmark import runner
from medsam2_ft.benchmark.evidence import prediction_and_truth
from medsam2_ft.benchmark.protocol import Jitter, Protocol
from medsam2_ft.benchmark.rows import read_rows
from medsam2_ft.data.case import Case
from medsam2_ft.errors import DataError

DOCS = Path(__file__).parents[2] / "docs" / "benchmark.md"


def cells_case():
    """Two touching cells, each an instance."""
    gts = np.zeros((1, 64, 64), np.uint8)
    gts[0][ellipsoid((64, 64), (20, 20), (12, 12))] = 1
    gts[0][ellipsoid((64, 64), (40, 24), (9, 14))] = 2
    imgs = gts * 100
    return Case("cells", imgs, gts, kind="image", modality="Microscopy", labels={"cell": [1, 2]}, instances=True)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a protocol over volumes, polyps, cells and a damaged file, and gives back the rows."""
    monkeypatch.setattr(runner, "open_model", lambda spec, device: EllipseModel(spec))
    runner._opened.cache_clear()
    sparse = volume_case("sparse", labelled=np.arange(12) % 3 == 0)
    cases = [volume_case(), sparse, image_case(), cells_case(), image_case("damaged")]
    root = write_dataset(tmp_path / "data", cases)
    (root / "cases" / "damaged.npz").write_bytes(b"junk")

    def run_protocol(protocol):
        runner.run_benchmark(protocol, roots=[root], models=["lite_medsam"], out=tmp_path / "out")
        return read_rows(tmp_path / "out" / "rows.csv")

    yield run_protocol
    runner._opened.cache_clear()


LOOSE = Protocol("p", min_px=20, jitter=Jitter(5))


@pytest.mark.parametrize(
    ("protocol", "identity", "values"),
    [
        (replace(LOOSE, targets="auto", seeds=(3, 4)), ["instance", "seed"], {(1, 3), (2, 3), (1, 4), (2, 4)}),
        (replace(LOOSE, targets="whole", task="slices"), ["instance"], {(0,), (1,), (2,)}),
        (
            replace(LOOSE, targets="region", sweep={"looseness": (0.0, 0.25), "slice_offset": (0.5,)}),
            ["protocol"],
            {("p/looseness=0",), ("p/looseness=0.25",), ("p/slice_offset=0.5",)},
        ),
        (replace(LOOSE, targets="region", direction="up"), ["instance"], {(0,)}),
    ],
    ids=["components and instances", "slices", "sweep", "one direction"],
)
def test_the_documented_lines_give_every_dice_again(run, tmp_path, capsys, protocol, identity, values):
    rows = run(protocol).query("status == 'ok'")
    assert set(rows[identity].itertuples(index=False, name=None)) >= values
    lines = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL).group(1)
    lines = lines.replace('"OUT', f'"{tmp_path}/out').replace('"DIR', f'"{tmp_path}/data')
    capsys.readouterr()
    exec(lines, {})
    printed = np.array([line.split()[-2:] for line in capsys.readouterr().out.splitlines()], float)
    assert len(printed) == len(rows)
    assert printed[:, 0] == pytest.approx(printed[:, 1], abs=1e-5)


def test_a_row_without_score_or_mask_says_so(run, tmp_path):
    rows = {row.case: row for row in run(replace(LOOSE, keep_masks=False)).itertuples()}
    with pytest.raises(DataError, match="has no mask of data/damaged, which failed"):
        prediction_and_truth(tmp_path / "out", rows["damaged"], image_case())
    with pytest.raises(DataError, match="keeps masks"):
        prediction_and_truth(tmp_path / "out", rows["image"], image_case())


def test_another_case_is_noticed(run, tmp_path):
    row = next(run(LOOSE).query("case == 'cells'").itertuples())
    with pytest.raises(DataError, match="holds no cell 1"):
        prediction_and_truth(tmp_path / "out", row, image_case())
