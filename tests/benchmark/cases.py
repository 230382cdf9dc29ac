"""Small generated datasets and a model that answers a box with the ellipse inside it."""

from pathlib import Path

import numpy as np

from medsam2_ft.data.case import Case
from medsam2_ft.data.manifest import Record, write_manifest


class EllipseModel:
    """Answers every box with its inscribed ellipse, and counts how often it encodes."""

    licence = "none"
    num_parameters = 0

    def __init__(self, name="ellipse", checkpoint_sha256="cafe", shrink=0.0):
        self.name, self.checkpoint_sha256, self.shrink = name, checkpoint_sha256, shrink
        self.num_encoded = 0

    def embed(self, image):
        self.num_encoded += 1
        return image.shape[:2]

    def masks_from_boxes(self, embedding, *, boxes_N4):
        rows, columns = np.indices(embedding) + 0.5
        masks = []
        for x0, y0, x1, y1 in boxes_N4:
            ry, rx = (y1 - y0) / 2 * (1 - self.shrink), (x1 - x0) / 2 * (1 - self.shrink)
            masks.append(((rows - (y0 + y1) / 2) / ry) ** 2 + ((columns - (x0 + x1) / 2) / rx) ** 2 <= 1)
        return np.array(masks)


def ellipsoid(shape, centre, radii):
    grid = np.stack(np.indices(shape), axis=-1) + 0.5
    return (((grid - centre) / radii) ** 2).sum(-1) <= 1


def volume_case(name="volume", *, spacing=(5.0, 1.0, 1.0), **keywords):
    """Two ellipsoids, liver (1) and a smaller kidney (2), in 12 slices of 64 x 64."""
    gts = np.zeros((12, 64, 64), np.uint8)
    gts[ellipsoid(gts.shape, (6, 24, 24), (5, 16, 12))] = 1
    gts[ellipsoid(gts.shape, (4, 48, 48), (3, 9, 9))] = 2
    imgs = np.random.default_rng(0).integers(0, 60, gts.shape).astype(np.uint8) + gts * 80
    keywords = {"modality": "CT", "patient": name, "labels": {"liver": [1], "kidney": [2]}} | keywords
    return Case(name=name, imgs=imgs, gts=gts, spacing_mm=spacing, kind="volume", **keywords)


def image_case(name="image", **keywords):
    """Two blobs of one region and a speck of 4 pixels, 64 x 64, no spacing."""
    gts = np.zeros((1, 64, 64), np.uint8)
    gts[0][ellipsoid((64, 64), (20, 20), (12, 9))] = 1
    gts[0][ellipsoid((64, 64), (46, 44), (8, 10))] = 1
    gts[0, 60:62, 2:4] = 1
    imgs = np.random.default_rng(1).integers(0, 60, (1, 64, 64, 3)).astype(np.uint8) + gts[..., None] * 150
    keywords = {"modality": "Endoscopy", "patient": name, "labels": {"polyp": [1]}} | keywords
    return Case(name=name, imgs=imgs, gts=gts, kind="image", **keywords)


def write_dataset(root: Path, cases, split="test"):
    records = []
    for case in cases:
        case.save(root / "cases" / f"{case.name}.npz")
        records.append(
            Record(case.name, f"cases/{case.name}.npz", case.modality, split, case.patient, case.labels, case.shape)
        )
    write_manifest(root, records)
    return root
