"""SAM2 and SAM2.1 of any size, Meta's, the paper's authors' or exported here, through our own `Predictor`."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from medsam2_ft.benchmark.models.adapter import Boxes, Masks, Seed
from medsam2_ft.benchmark.sweep import schedule
from medsam2_ft.inference.predictor import Embedding, Predictor
from medsam2_ft.inference.propagate import FeatureCache, propagate


class Sam2:
    """SAM2 behind the `Adapter` and `Propagator` interfaces.

    Args:
        checkpoint: path, zoo name, or `NAME@random`.
        name: what reports call it.
        device: `auto`, `cuda`, `mps` or `cpu`.
        licence: of the weights.
    """

    def __init__(self, checkpoint: Path | str, *, name: str, device: str = "auto", licence: str = "Apache-2.0") -> None:
        self.name, self.licence = name, licence
        self.predictor = Predictor.from_checkpoint(checkpoint, device=device)
        self.device = self.predictor.device
        self.checkpoint_sha256 = self.predictor.checkpoint_sha256
        self.num_parameters = self.predictor.num_parameters

    def embed(self, image: NDArray[np.uint8]) -> Embedding:
        """Encode one uint8 image."""
        return self.predictor.embed(image)

    def masks_from_boxes(self, embedding: Embedding, *, boxes_N4: Boxes) -> Masks:
        """Bool (N, H, W): one mask a box, from one encoding."""
        return self.predictor.predict(embedding, boxes_N4=boxes_N4).masks_NHW

    def propagate(
        self,
        images: NDArray[np.uint8],
        seeds: Sequence[Seed],
        *,
        features: Mapping[int, Any],
        directions: tuple[str, ...] = ("up", "down"),
    ) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
        """Carry all seeds to the ends of their ranges; objects that share start and range go as one batch.

        The groups advance in step, so that each slice is encoded once for all of them however their starts differ.
        """
        groups = _group(seeds)
        sweeps: dict[tuple[int, str], Iterator[tuple[int, Masks]]] = {}
        for number, members in enumerate(groups):
            first = seeds[members[0]]
            for direction in directions:
                sweeps[number, direction] = propagate(
                    self.predictor,
                    images,
                    conditioning={first.start: np.stack([seeds[i].mask for i in members])},
                    low=first.low,
                    high=first.high,
                    directions=(direction,),
                    features=cast(FeatureCache, features),
                )
        for t, direction in schedule(seeds, directions):
            for number, members in enumerate(groups):
                first = seeds[members[0]]
                steps = first.start < t < first.high if direction == "up" else first.low <= t < first.start
                if not steps:
                    continue
                slice_number, masks = next(sweeps[number, direction])
                if slice_number == first.start:  # the upward sweep yields its start first
                    slice_number, masks = next(sweeps[number, direction])
                assert slice_number == t
                for index, mask in zip(members, masks, strict=True):
                    yield t, index, mask


def _group(seeds: Sequence[Seed]) -> list[list[int]]:
    def place(index: int) -> tuple[int, int, int]:
        return seeds[index].start, seeds[index].low, seeds[index].high

    return [list(members) for _, members in groupby(sorted(range(len(seeds)), key=place), key=place)]
