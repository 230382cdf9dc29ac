"""Pictures of the report: an object as image, truth and each model's mask; contact sheets of volumes; as inline JPEGs."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from medsam2_ft.benchmark.evidence import kept_mask, true_mask
from medsam2_ft.benchmark.masks import SparseMask
from medsam2_ft.benchmark.protocol import Protocol
from medsam2_ft.benchmark.rows import OBJECT
from medsam2_ft.data.case import Case
from medsam2_ft.data.manifest import read_manifest
from medsam2_ft.errors import DataError

TILE = 232
TRUTH = "#ffffff"
SHEET_SLICES = 8


@dataclass(frozen=True)
class Tile:
    """One picture with its caption; `uri` is a data URI."""

    uri: str
    title: str
    note: str = ""
    colour: str = ""


@dataclass(frozen=True)
class Strip:
    """A row of tiles about one object."""

    title: str
    note: str
    tiles: list[Tile]


class Gallery:
    """Finds images, truths and kept masks of a run's rows.

    Args:
        folder: of the run.
        roots: dataset name -> folder.
        protocol: says what the objects are.
        colours: model -> colour.
    """

    def __init__(self, folder: Path, roots: Mapping[str, Path], protocol: Protocol, colours: Mapping[str, str]) -> None:
        self.folder, self.roots, self.protocol, self.colours = folder, roots, protocol, colours

    def best_median_worst(self, rows: pd.DataFrame) -> list[Strip]:
        """For each modality the objects of highest, median and lowest DSC, averaged over models."""
        strips = []
        for modality, part in rows.groupby("modality", sort=True):
            means = part.groupby(OBJECT, dropna=False)["dsc"].mean().sort_values(kind="stable")
            places = {"best": len(means) - 1, "median": len(means) // 2, "worst": 0}
            for name, place in list(places.items())[: len(means)]:
                strips += self.strip(rows, means.index[place], title=f"{modality} · {name}")
        return strips

    def worst(self, rows: pd.DataFrame, *, count: int = 6) -> dict[str, list[Strip]]:
        """For each model the objects of lowest DSC, no case twice."""
        found: dict[str, list[Strip]] = {}
        for model in self.colours:
            lowest = rows[rows["model"] == model].sort_values("dsc", kind="stable").drop_duplicates(["dataset", "case"])
            found[model] = [
                strip
                for line in lowest.head(count).itertuples()
                for strip in self.strip(
                    rows[rows["model"] == model],
                    tuple(getattr(line, name) for name in OBJECT),
                    title=line.case,
                )
            ]
        return found

    def strip(self, rows: pd.DataFrame, identity: tuple[Any, ...], *, title: str) -> list[Strip]:
        """Image, truth and each model's mask of one object, cropped to it; nothing where case or masks are gone."""
        key = dict(zip(OBJECT, identity, strict=True))
        mine = list(_about(rows, key).itertuples())
        case = self._case(key)
        truth = None if case is None else self._truth(case, mine[0])
        if case is None or truth is None:
            return []
        t = max(truth.slices, key=truth.count, default=int(key["prompt_slice"]))
        masks = {line.model: self._mask(line) for line in mine}
        planes = {model: mask[t] if mask.ndim == 3 else mask for model, mask in masks.items() if mask is not None}
        view = _view([truth[t], *planes.values()])
        image = case.imgs[t]
        tiles = [Tile(_uri(_tile(image, view)), "image", f"slice {t}" if case.num_slices > 1 else "")]
        tiles.append(Tile(_uri(_tile(image, view, [(truth[t], TRUTH)])), "truth", f"{truth.count(t)} px"))
        for line in mine:
            if line.model in planes:
                layers = [(planes[line.model], self.colours[line.model]), (truth[t], TRUTH)]
                note = f"DSC {line.dsc:.3f}  NSD {line.nsd:.3f}"
                tiles.append(Tile(_uri(_tile(image, view, layers)), line.model, note, self.colours[line.model]))
        where = f"{key['dataset']} / {key['case']}"
        number = f" {int(key['instance'])}" if key["instance"] else ""
        return [Strip(title, f"{where} · {key['label']}{number}", tiles)]

    def contact_sheets(self, rows: pd.DataFrame, *, count: int = 4) -> list[Strip]:
        """For up to `count` modalities the volume of median DSC, as slices with truth and models outlined."""
        volumes = rows[rows["propagate_s"].fillna(0) > 0]
        strips = []
        for modality, part in list(volumes.groupby("modality", sort=True))[:count]:
            means = part.groupby(OBJECT, dropna=False)["dsc"].mean().sort_values(kind="stable")
            key = dict(zip(OBJECT, means.index[len(means) // 2], strict=True))
            mine = list(_about(part, key).itertuples())
            case = self._case(key)
            truth = None if case is None else self._truth(case, mine[0])
            if case is None or truth is None:
                continue
            masks = {line.model: self._mask(line) for line in mine}
            shown = [truth.slices[i] for i in np.linspace(0, len(truth.slices) - 1, SHEET_SLICES).round().astype(int)]
            view = _view([np.any([truth[t] for t in shown], axis=0)])
            tiles = []
            for t in dict.fromkeys(shown):
                layers = [(mask[t], self.colours[model]) for model, mask in masks.items() if mask is not None]
                picture = _tile(case.imgs[t], view, [(truth[t], TRUTH), *layers], opacity=0.0)
                tiles.append(Tile(_uri(picture), f"slice {t}", "prompted" if t == key["prompt_slice"] else ""))
            strips.append(
                Strip(
                    f"{modality} · {key['case']}",
                    f"{key['label']}, outlines: truth white, models in their colours",
                    tiles,
                )
            )
        return strips

    def _case(self, key: Mapping[str, Any]) -> Case | None:
        root = self.roots.get(str(key["dataset"]))
        return None if root is None else _load_case(root, str(key["case"]))

    def _truth(self, case: Case, row: Any) -> SparseMask | None:
        try:
            return true_mask(row, case, self.protocol)
        except DataError:
            return None

    def _mask(self, row: Any) -> NDArray[np.bool_] | None:
        try:
            return kept_mask(self.folder, row)
        except DataError:
            return None


def _about(rows: pd.DataFrame, key: Mapping[str, Any]) -> pd.DataFrame:
    return rows[np.logical_and.reduce([rows[name] == value for name, value in key.items()])]


@lru_cache(maxsize=4)
def _load_case(root: Path, name: str) -> Case | None:
    try:
        record = next(record for record in read_manifest(root) if record.case == name)
        return Case.load(root / record.file)
    except (StopIteration, DataError):
        return None


def _view(masks: Sequence[NDArray[np.bool_]]) -> tuple[int, int, int]:
    """(top, left, side) of a square that holds all masks with room round them; it may reach over the image's edge."""
    rows, columns = np.nonzero(np.any(masks, axis=0))
    if not len(rows):
        return 0, 0, max(masks[0].shape)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    side = int(min(max(max(height, width) * 1.7, 48), max(masks[0].shape)))
    centre = (rows.min() + rows.max() + 1) // 2, (columns.min() + columns.max() + 1) // 2
    limit = [max(0, size - side) for size in masks[0].shape]
    return int(np.clip(centre[0] - side // 2, 0, limit[0])), int(np.clip(centre[1] - side // 2, 0, limit[1])), side


def _tile(
    image: NDArray[np.uint8],
    view: tuple[int, int, int],
    layers: Sequence[tuple[NDArray[np.bool_], str]] = (),
    *,
    opacity: float = 0.32,
) -> NDArray[np.uint8]:
    """The view of an image at tile size, masks filled and outlined on it; a white mask is outlined only."""
    top, left, side = view
    crop = image[top : top + side, left : left + side]
    crop = np.repeat(crop[..., None], 3, axis=-1) if crop.ndim == 2 else crop
    scale = TILE / max(crop.shape[:2])
    size = (max(1, round(crop.shape[1] * scale)), max(1, round(crop.shape[0] * scale)))
    canvas = cv2.resize(crop, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)
    for mask, colour in layers:
        rgb = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
        part = mask[top : top + side, left : left + side].astype(np.float32)
        shown = (cv2.resize(part, size, interpolation=cv2.INTER_LINEAR) > 0.5).astype(np.uint8)
        if colour != TRUTH and opacity:
            canvas[shown > 0] = ((1 - opacity) * canvas[shown > 0] + opacity * np.array(rgb)).astype(np.uint8)
        outlines, _ = cv2.findContours(shown, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outlines, -1, rgb, 1 if colour == TRUTH else 2, lineType=cv2.LINE_AA)
    square = np.zeros((TILE, TILE, 3), np.uint8)
    y, x = (TILE - canvas.shape[0]) // 2, (TILE - canvas.shape[1]) // 2
    square[y : y + canvas.shape[0], x : x + canvas.shape[1]] = canvas
    return square


def _uri(picture: NDArray[np.uint8]) -> str:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=86)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
