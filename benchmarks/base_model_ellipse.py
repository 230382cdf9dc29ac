"""A floor for box prompts: the ellipse that fills the box, scored on the boxes and objects of a finished benchmark run.

python benchmarks/base_model_ellipse.py RUN --data DIR --out runs/nano/bench_ellipse
"""

from __future__ import annotations

import argparse
import csv
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from medsam2_ft.data.case import Case
from medsam2_ft.data.manifest import read_manifest
from medsam2_ft.metrics import dsc


def main() -> None:
    """Copy the run's rows with the ellipse's DSC in place of the model's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, help="of a slice protocol, with rows.csv")
    parser.add_argument("--data", type=Path, required=True, help="folder of the prepared datasets")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with (arguments.run / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    @cache
    def files(dataset: str) -> dict[str, Path]:
        root: Path = arguments.data / dataset
        return {record.case: root / record.file for record in read_manifest(root)}

    scored = []
    case: Case | None = None
    for row in rows:
        if case is None or case.name != row["case"]:
            case = Case.load(files(row["dataset"])[row["case"]])
        truth = target(case, row)
        if truth is not None:
            box = [float(number) for number in row["box"].split()]
            scored.append(row | {"model": "ellipse", "dsc": f"{dsc(ellipse(box, truth.shape), truth):.6f}"})
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(scored)
    print(f"{len(scored)} of {len(rows)} boxes scored: {arguments.out / 'rows.csv'}")


def target(case: Case, row: dict[str, str]) -> NDArray[np.bool_] | None:
    """The object that a row was scored on: an instance, or the connected component of its size that the box holds."""
    t, voxels = int(row["prompt_slice"]), int(row["voxels"])
    if case.instances:
        return case.region_mask(row["label"], t, instance=int(row["instance"]))
    whole = case.region_mask(row["label"], t)
    _, labels, stats, centroids = cv2.connectedComponentsWithStats(whole.astype(np.uint8), connectivity=8)
    x0, y0, x1, y1 = (float(number) for number in row["box"].split())
    for label in range(1, len(stats)):
        x, y = centroids[label]
        if stats[label][cv2.CC_STAT_AREA] == voxels and x0 <= x <= x1 and y0 <= y <= y1:
            return np.asarray(labels == label)
    return whole if int(whole.sum()) == voxels else None


def ellipse(box: list[float], shape_hw: tuple[int, ...]) -> NDArray[np.bool_]:
    """The pixels whose centres lie in the ellipse that touches the box's four sides."""
    x0, y0, x1, y1 = box
    y, x = np.mgrid[: shape_hw[0], : shape_hw[1]] + 0.5
    inside = ((x - (x0 + x1) / 2) / ((x1 - x0) / 2)) ** 2 + ((y - (y0 + y1) / 2) / ((y1 - y0) / 2)) ** 2 <= 1
    return np.asarray(inside)


if __name__ == "__main__":
    main()
