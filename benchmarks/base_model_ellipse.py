"""A floor for box prompts: the ellipse that fills the box, scored on the boxes and objects of a finished benchmark run.

python benchmarks/base_model_ellipse.py RUN --data DIR --out runs/nano/bench_ellipse
"""

from __future__ import annotations

import argparse
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsam2_ft.benchmark.evidence import true_mask
from medsam2_ft.benchmark.protocol import protocol_from
from medsam2_ft.benchmark.provenance import Run
from medsam2_ft.benchmark.rows import OBJECT, OK, read_rows, write_rows
from medsam2_ft.data.case import Case
from medsam2_ft.data.manifest import read_manifest
from medsam2_ft.errors import exit_on_user_error
from medsam2_ft.metrics import dsc


def main() -> None:
    """Copy the run's rows with the ellipse's DSC in place of the model's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, help="of a slice protocol, with rows.csv")
    parser.add_argument("--data", type=Path, required=True, help="folder of the prepared datasets")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    protocol = protocol_from(Run.read(arguments.run).protocol)
    rows = read_rows(arguments.run / "rows.csv")
    rows = rows[rows["status"] == OK].drop_duplicates(OBJECT)

    @cache
    def files(dataset: str) -> dict[str, Path]:
        root: Path = arguments.data / dataset
        return {record.case: root / record.file for record in read_manifest(root)}

    @lru_cache(maxsize=1)
    def load(dataset: str, name: str) -> Case:
        return Case.load(files(dataset)[name])

    scores = []
    for row in rows.itertuples():
        truth = true_mask(row, load(row.dataset, row.case), protocol)[int(row.prompt_slice)]
        scores.append(dsc(ellipse([float(side) for side in row.box.split()], truth.shape), truth))
    unknown = dict.fromkeys(("nsd", "nsd_legacy", "encode_s", "prompt_s", "propagate_s"))
    write_rows(arguments.out / "rows.csv", rows.assign(model="ellipse", checkpoint_sha256="", dsc=scores, **unknown))
    print(f"{len(rows)} boxes scored: {arguments.out / 'rows.csv'}")


def ellipse(box: list[float], shape_hw: tuple[int, ...]) -> NDArray[np.bool_]:
    """The pixels whose centres lie in the ellipse that touches the box's four sides."""
    x0, y0, x1, y1 = box
    y, x = np.mgrid[: shape_hw[0], : shape_hw[1]] + 0.5
    inside = ((x - (x0 + x1) / 2) / ((x1 - x0) / 2)) ** 2 + ((y - (y0 + y1) / 2) / ((y1 - y0) / 2)) ** 2 <= 1
    return np.asarray(inside)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
