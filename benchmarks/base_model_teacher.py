"""LiteMedSAM's masks for random boxes on the training images of the base sets, as a dataset for the small base model.

    python benchmarks/base_model_teacher.py --data runs/sets --out runs/sets/teacher [--share 1/2]

Each mask gets a box of its own, a little moved, and the teacher is asked again. What stays nearly the same and is not just the
ellipse in that box is kept. Masks of one image do not overlap, so that a label map can hold them. Only training cases are
opened; what is there is not asked again. `--share` does a part of the images, so that several processes can divide the work.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from medsam2_ft.benchmark.models.adapter import Adapter
from medsam2_ft.benchmark.models.catalogue import open_model
from medsam2_ft.data.case import Case
from medsam2_ft.data.manifest import Record, read_manifest, write_manifest
from medsam2_ft.errors import exit_on_user_error

Mask = NDArray[np.bool_]
VIEWS = {
    "us_busi-antillia": 4, "fundus_drishti-antillia": 6, "octa_faz-antillia": 4, "micro_dsb2018": 2, "micro_stardist": 2,
    "mr-seq_sunnybrook-lv": 4, "mr_msd-hippocampus": 1, "ct_sts-ibsi": 10, "mr_sts-ibsi-t1": 10, "pet_sts-ibsi": 4,
}  # fmt: skip
"""The sets that the base model may learn from, and images a case: slices spread evenly, or the whole image and crops of it."""
NUM_BOXES = 12
STABLE, NOT_ELLIPSE, SMALLEST = 0.75, 0.92, 0.001
"""IoU of the masks of two boxes, at least; of mask and ellipse, at most; share of the image, at least."""


@dataclass(frozen=True)
class View:
    """One image to ask about."""

    name: str
    image: NDArray[np.uint8]
    record: Record


def views(folder: Path, count: int, rng: np.random.Generator) -> Iterator[View]:
    """Images of the training cases of one set."""
    for record in read_manifest(folder):
        if record.split != "train":
            continue
        imgs, name = Case.load(folder / record.file).imgs, f"{folder.name}_{record.case}"
        if len(imgs) > 1:
            for t in np.unique(np.linspace(0.1, 0.9, count) * (len(imgs) - 1) + 0.5).astype(int):
                yield View(f"{name}_{t}", imgs[t], record)
            continue
        for number in range(count):
            share = 1.0 if number == 0 else rng.uniform(0.35, 0.7)
            size = (np.array(imgs.shape[1:3]) * share).astype(int)
            top, left = (rng.integers(0, whole - part + 1) for whole, part in zip(imgs.shape[1:3], size, strict=True))
            yield View(f"{name}_{number}", imgs[0, top : top + size[0], left : left + size[1]], record)


def random_boxes(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """(N, 4) boxes of 8 to 60 % of the image, small ones as likely as large ones."""
    height, width = shape
    side = np.exp(rng.uniform(np.log(0.08), np.log(0.6), NUM_BOXES))
    stretch = np.exp(rng.uniform(-0.5, 0.5, NUM_BOXES))
    sizes = np.stack([side * stretch * width, side / stretch * height], 1).clip(6, [0.9 * width, 0.9 * height])
    corners = rng.uniform(0, 1, (NUM_BOXES, 2)) * ([width, height] - sizes)
    return np.concatenate([corners, corners + sizes], 1).round().astype(np.float32)


def box_of(mask: Mask) -> NDArray[np.float32]:
    """Tight half-open box (x0, y0, x1, y1)."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def iou(a: Mask, b: Mask) -> float:
    """IoU of two masks."""
    return float((a & b).sum() / max(1, (a | b).sum()))


def ellipse_in(box: NDArray[np.float32], shape: tuple[int, int]) -> Mask:
    """The ellipse that touches the sides of a box."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    center, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    return np.asarray(((x + 0.5 - center[0]) / half[0]) ** 2 + ((y + 0.5 - center[1]) / half[1]) ** 2 <= 1)


def largest_part(mask: Mask) -> Mask:
    """The largest connected component."""
    number, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    return np.asarray(labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()) if number > 1 else mask


def ask(teacher: Adapter, image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Label map of the masks that are worth learning."""
    shape = (image.shape[0], image.shape[1])
    label_map = np.zeros(shape, np.uint8)
    embedding = teacher.embed(image)
    boxes = random_boxes(shape, rng)
    first = [largest_part(mask) for mask in teacher.masks_from_boxes(embedding, boxes_N4=boxes)]
    first = [mask for mask in first if mask.sum() >= SMALLEST * mask.size]
    if not first:
        return label_map
    tight = np.stack([box_of(mask) for mask in first])
    moved = tight + rng.uniform(-0.05, 0.05, tight.shape) * np.tile(tight[:, 2:] - tight[:, :2], 2)
    moved = moved.clip(0, np.tile(shape[::-1], 2)).astype(np.float32)
    for before, answer in zip(first, teacher.masks_from_boxes(embedding, boxes_N4=moved), strict=True):
        mask = largest_part(answer)
        is_new = mask.any() and not (label_map[mask] > 0).any()
        if is_new and iou(before, mask) >= STABLE and iou(mask, ellipse_in(box_of(mask), shape)) <= NOT_ELLIPSE:
            label_map[mask] = label_map.max() + 1
    return label_map


def main() -> None:
    """Ask about every image, then list what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of base_model_data.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--share", default="1/1")
    options = parser.parse_args()
    part, of = map(int, options.share.split("/"))
    teacher = open_model("lite_medsam", device="cpu")
    todo = [
        view
        for name, count in VIEWS.items()
        for view in views(options.data / name, count, np.random.default_rng(sum(name.encode())))
    ]
    for number in tqdm(range(part - 1, len(todo), of)):
        view, file = todo[number], options.out / "cases" / f"{todo[number].name}.npz"
        if file.is_file():
            continue
        label_map = ask(teacher, view.image, np.random.default_rng(number))
        labels = {f"teacher_{i}": [i] for i in range(1, int(label_map.max()) + 1)}
        case = Case(
            view.name, view.image[None], label_map[None], labels=labels, kind="image", modality=view.record.modality,
            patient=view.record.patient, source="masks by LiteMedSAM for random boxes",
        )  # fmt: skip
        case.save(file)
    records = []
    for view in todo:
        file = options.out / "cases" / f"{view.name}.npz"
        if file.is_file() and (case := Case.load(file)).labels:
            records.append(
                Record(
                    case=view.name, file=f"cases/{file.name}", modality=case.modality, split="train", patient=case.patient,
                    labels=case.labels, shape=case.shape, source=case.source,
                )
            )  # fmt: skip
    write_manifest(options.out, records)
    print(f"{len(records)} of {len(todo)} images, {sum(len(record.labels) for record in records)} masks")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
