"""A prepared dataset of 64-px cases with ellipses, for tests of everything behind data preparation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medsam2_ft.data.case import Case
from medsam2_ft.data.manifest import Record, write_manifest

LABELS = {"large": [1], "small": [2]}


def blob_case(name: str, *, num_slices: int, seed: int, size: int = 64, num_labels: int = 2) -> Case:
    """A grey volume (or image, with one slice) of bright ellipses on noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    gts = np.zeros((num_slices, size, size), np.uint8)
    for t in range(num_slices):
        for label in range(1, num_labels + 1):
            centre, radius = rng.uniform(0.3, 0.7, 2) * size, rng.uniform(0.08, 0.2, 2) * size / label
            gts[t][((rows - centre[0]) / radius[0]) ** 2 + ((columns - centre[1]) / radius[1]) ** 2 < 1] = label
    imgs = np.clip(rng.normal(60, 15, gts.shape) + 60 * gts, 0, 255).astype(np.uint8)
    labels = {name: ids for name, ids in LABELS.items() if ids[0] <= num_labels}
    return Case(
        name=name, imgs=imgs, gts=gts, spacing_mm=(3.0, 1.0, 1.0), modality="CT", patient=name, labels=labels,
        kind="image" if num_slices == 1 else "volume",
    )  # fmt: skip


def write_blobs(
    root: Path, *, splits: str = "train train train val val test", num_slices: int = 4, size: int = 64
) -> Path:
    """A dataset folder with one case for each word of `splits`."""
    records = []
    for i, split in enumerate(splits.split()):
        case = blob_case(f"blob_{i}", num_slices=num_slices, seed=i, size=size, num_labels=2 - i % 2)
        case.save(root / "cases" / f"{case.name}.npz")
        records.append(
            Record(
                case.name,
                f"cases/{case.name}.npz",
                "CT",
                split,
                case.patient,
                case.labels,
                case.shape,
                case.spacing_mm,
                "",
                str(i),
            )
        )
    write_manifest(root, records)
    return root
