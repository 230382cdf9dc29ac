"""LiteMedSAM's masks for random boxes on the training images of the base sets, as a dataset for the small base model.

    python -m benchmarks.base_model_teacher --data runs/nano/data --out runs/nano/teacher [--share 1/2]

Most random boxes hold no object, and the teacher draws one nevertheless. So each mask gets a box of its own, a little moved,
and the teacher is asked again: kept is what stays nearly the same, is not just the ellipse in that box, and has an outline that
the image shows. Masks of one image do not overlap, so that a label map can hold them. Only training cases are opened; what is
there is not asked again. `--share` does a part of the images, so that several processes can divide the work; a last run without
it lists them all.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cc3d
import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.base_model_ellipse import ellipse
from medsam2_ft.benchmark.models.adapter import Adapter
from medsam2_ft.benchmark.models.catalogue import open_model
from medsam2_ft.data.case import Case
from medsam2_ft.data.manifest import Record, read_manifest, write_manifest
from medsam2_ft.errors import exit_on_user_error
from medsam2_ft.prompts.sampling import tight_boxes

Mask = NDArray[np.bool_]
VIEWS = {
    "us_busi-antillia": 4, "fundus_drishti-antillia": 6, "octa_faz-antillia": 4, "micro_dsb2018": 2, "micro_stardist": 2,
    "mr-seq_sunnybrook-lv": 4, "mr_msd-hippocampus": 1, "ct_sts-ibsi": 10, "mr_sts-ibsi-t1": 10, "pet_sts-ibsi": 4,
}  # fmt: skip
"""The sets that the base model may learn from, and images a case: slices spread evenly, or the whole image and crops of it."""
NUM_BOXES = 12
STABLE, NOT_ELLIPSE, SMALLEST, SEEN = 0.75, 0.92, 0.001, 0.6
"""IoU of the masks of two boxes, at least; of mask and ellipse, at most; share of the image, at least; `contrast`, at least."""


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


def iou(a: Mask, b: Mask) -> float:
    """IoU of two masks."""
    return float((a & b).sum() / max(1, (a | b).sum()))


def largest_part(mask: Mask) -> Mask:
    """The largest connected component."""
    return np.asarray(cc3d.largest_k(mask, k=1, connectivity=8) > 0)


def contrast(image: NDArray[np.uint8], mask: Mask) -> float:
    """How far the bands inside and outside of the outline differ, in standard deviations, in the channel that shows it best."""
    width = max(2, round(0.02 * max(mask.shape)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    inside = mask & (cv2.erode(mask.astype(np.uint8), disc) == 0)
    outside = ~mask & (cv2.dilate(mask.astype(np.uint8), disc) > 0)
    bands = [image.reshape(*mask.shape, -1)[band].astype(float) for band in (inside, outside)]
    spread = np.sqrt((bands[0].var(0) + bands[1].var(0)) / 2) + 2  # two grey levels: black on black is no edge
    return float((abs(bands[0].mean(0) - bands[1].mean(0)) / spread).max())


def is_worth(before: Mask, mask: Mask, image: NDArray[np.uint8]) -> bool:
    """Whether the answer to the moved box is one to learn from."""
    if not mask.any() or mask.all() or iou(before, mask) < STABLE:
        return False
    box = tight_boxes(mask[None])[0].tolist()
    return iou(mask, ellipse(box, mask.shape)) <= NOT_ELLIPSE and contrast(image, mask) >= SEEN


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
    tight = tight_boxes(np.stack(first))
    moved = tight + rng.uniform(-0.05, 0.05, tight.shape) * np.tile(tight[:, 2:] - tight[:, :2], 2)
    moved = moved.clip(0, np.tile(shape[::-1], 2)).astype(np.float32)
    for before, answer in zip(first, teacher.masks_from_boxes(embedding, boxes_N4=moved), strict=True):
        mask = largest_part(answer)
        if is_worth(before, mask, image) and not label_map[mask].any():
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
