"""A predictor without a network: an object is the bright connected region that a prompt points at.

It obeys the same contract as `Predictor` and `propagate`, so that geometry and traffic can be tested to the voxel.
"""

import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from medsam2_ft.deploy.engine import Engine
from medsam2_ft.deploy.limits import Limits

BRIGHT = 100


@dataclass
class PhantomEmbedding:
    bright_HW: np.ndarray


@dataclass
class PhantomPrediction:
    masks_NHW: np.ndarray
    iou_N: np.ndarray


class PhantomPredictor:
    recipe = None
    labels = None
    checkpoint_sha256 = "0" * 64
    image_size = 64
    device = "cpu"

    def __init__(self) -> None:
        self.num_embedded = 0

    def embed(self, image: np.ndarray) -> PhantomEmbedding:
        assert image.dtype == np.uint8
        self.num_embedded += 1
        grey = image if image.ndim == 2 else image.max(axis=-1)
        return PhantomEmbedding(grey > BRIGHT)

    def predict(
        self, embedding, *, boxes_N4=None, points_NP2=None, point_labels_NP=None, mask_logits_Nhw=None
    ) -> PhantomPrediction:
        num = len(boxes_N4 if boxes_N4 is not None else points_NP2)
        masks = np.stack([embedding.bright_HW] * num)
        if boxes_N4 is not None:
            rows, columns = np.indices(embedding.bright_HW.shape)
            for mask, (x0, y0, x1, y1) in zip(masks, boxes_N4, strict=True):
                mask &= (columns >= x0) & (columns < x1) & (rows >= y0) & (rows < y1)
        if points_NP2 is not None:
            regions, _ = ndimage.label(embedding.bright_HW)
            for mask, points, labels in zip(masks, points_NP2, point_labels_NP, strict=True):
                hit = [regions[int(y), int(x)] for x, y in points]
                wanted = {region for region, label in zip(hit, labels, strict=True) if label and region}
                unwanted = {region for region, label in zip(hit, labels, strict=True) if not label}
                if wanted:
                    mask &= np.isin(regions, list(wanted))
                mask &= ~np.isin(regions, list(unwanted)) | (regions == 0)
        return PhantomPrediction(masks, np.ones(num, np.float32))


def sweep(predictor: Any, imgs: np.ndarray, *, groups: list[dict[int, np.ndarray]], low: int, high: int):
    """For each group every slice of low..high-1, with the 3D regions that the conditioning masks touch."""
    grey = imgs if imgs.ndim == 3 else imgs.max(axis=-1)
    regions, _ = ndimage.label(grey > BRIGHT)
    for number, conditioning in enumerate(groups):
        num = len(next(iter(conditioning.values())))
        wanted = [
            np.unique(np.concatenate([regions[t][masks[n]] for t, masks in conditioning.items()])) for n in range(num)
        ]
        for t in range(low, high):
            yield t, number, np.stack([np.isin(regions[t], ids[ids > 0]) for ids in wanted])


def two_balls(num_slices=9, height=60, width=80) -> np.ndarray:
    """Two bright balls, left at (20, 30) and right at (60, 30), on the slices around the middle."""
    t, y, x = np.indices((num_slices, height, width))
    middle = num_slices // 2
    left = (t - middle) ** 2 * 9 + (y - 30) ** 2 + (x - 20) ** 2 < 100
    right = (t - middle) ** 2 * 9 + (y - 30) ** 2 + (x - 60) ** 2 < 100
    return np.where(left | right, 200, 30).astype(np.uint8)


def bright_ball() -> np.ndarray:
    """A bright ball of radius 5 at (t, y, x) = (6, 20, 24)."""
    grid = np.indices((12, 40, 48))
    return np.where(((grid - np.array([6, 20, 24])[:, None, None, None]) ** 2).sum(axis=0) < 25, 200, 20).astype(
        np.int16
    )


def phantom_engine(*, limits: Limits | None = None, sweep=sweep, predictor: PhantomPredictor | None = None) -> Engine:
    predictor = predictor or PhantomPredictor()
    return Engine({"phantom": "none"}, limits=limits, open_model=lambda name, device: predictor, sweep=sweep)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running_server(app):
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=free_port(), log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.config.port}"
    finally:
        server.should_exit = True
        thread.join(10)
