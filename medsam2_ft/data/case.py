"""One prepared image, volume or video, and the npz file that stores it.

Inside the code everything is in (T, H, W) order. The file keeps what the MedSAM tools expect: `spacing` as (x, y, z)
and 2D images without a T axis. Files of those tools, which hold little more than `imgs` and `gts`, are read by `npz.py`
as they are.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam2_ft.data.npz import read_arrays, standardise
from medsam2_ft.errors import DataError, nearest

SCHEMA = 1
KINDS = ("image", "volume", "video")


@dataclass(frozen=True)
class Case:
    """An image with its masks and everything needed to put predictions back onto the source.

    Attributes:
        name: unique name in its dataset; the npz's stem.
        imgs: uint8 (T, H, W) or (T, H, W, 3).
        gts: uint8 or uint16 (T, H, W) label or instance ids, 0 is background; None without masks.
        spacing_mm: (T, H, W) distances in mm; None when unknown.
        modality: canonical name, "" when unknown.
        patient: what must not be torn apart by a split.
        kind: "image" (T = 1), "volume" (T is space) or "video" (T is time).
        labels: region name -> label ids. Regions may share ids: `{"disc": [1, 2], "cup": [2]}` are nested.
        instances: True when the ids of `gts` count objects of one class (all ids belong to the one region in `labels`).
        affine: 4x4, array index (t, h, w, 1) -> RAS mm; None when unknown.
        original_affine: 4x4, index of the source file's own grid -> RAS mm.
        original_shape: shape of the source file's own grid, in its own axis order.
        kept_slices: source T index of each stored slice, when not all were kept.
        labelled: bool (T,), False where nobody annotated; None means all are annotated.
        gts_layers: uint8 (K, T, H, W) label ids of masks that overlap; `gts` is then their flattened view for other
            tools.
        boxes: (N, 4) or (N, 6) prompts that came with a foreign file, as they came.
        recipe: the intensity recipe as a dict, see `IntensityRecipe.from_dict`.
        source: the image path as the user gave it.
        source_sha256: hash of the source image.
        fingerprint: hash of image, masks and preparation settings; equal means that preparing again changes nothing.
        fps: frames a second of a video.
    """

    name: str
    imgs: NDArray[np.uint8]
    gts: NDArray[np.unsignedinteger[Any]] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    modality: str = ""
    patient: str = ""
    kind: str = "volume"
    labels: dict[str, list[int]] = field(default_factory=dict)
    instances: bool = False
    affine: NDArray[np.float64] | None = None
    original_affine: NDArray[np.float64] | None = None
    original_shape: tuple[int, ...] | None = None
    kept_slices: NDArray[np.int64] | None = None
    labelled: NDArray[np.bool_] | None = None
    gts_layers: NDArray[np.uint8] | None = None
    boxes: NDArray[Any] | None = None
    recipe: dict[str, Any] | None = None
    source: str = ""
    source_sha256: str = ""
    fingerprint: str = ""
    fps: float | None = None

    def __post_init__(self) -> None:
        grid = self.imgs.shape[:3]
        if self.imgs.dtype != np.uint8 or self.imgs.ndim not in (3, 4) or self.imgs.shape[3:] not in ((), (3,)):
            raise DataError(
                f"{self.name}: imgs must be uint8 (T,H,W) or (T,H,W,3), not {self.imgs.dtype} {self.imgs.shape}."
            )
        if self.kind not in KINDS:
            raise DataError(f"{self.name}: there is no kind '{self.kind}'{nearest(self.kind, KINDS)}.")
        if self.gts is not None and (self.gts.shape != grid or self.gts.dtype not in (np.uint8, np.uint16)):
            raise DataError(f"{self.name}: gts is {self.gts.dtype} {self.gts.shape}, but imgs are on a {grid} grid.")
        if self.gts_layers is not None and self.gts_layers.shape[1:] != grid:
            raise DataError(f"{self.name}: gts_layers is {self.gts_layers.shape}, but imgs are on a {grid} grid.")
        for name, values in (("labelled", self.labelled), ("kept_slices", self.kept_slices)):
            if values is not None and values.shape != grid[:1]:
                raise DataError(f"{self.name}: {name} has {values.size} entries for {grid[0]} slices.")

    @property
    def num_slices(self) -> int:
        """T: slices of a volume, frames of a video, 1 for an image."""
        return int(self.imgs.shape[0])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, H, W) in pixels."""
        return self.imgs.shape[0], self.imgs.shape[1], self.imgs.shape[2]

    @property
    def is_2d(self) -> bool:
        """Whether this is a single image, not a volume or video."""
        return self.kind == "image"

    @property
    def labelled_slices(self) -> list[int]:
        """The slices that somebody annotated."""
        return [t for t in range(self.num_slices) if self.labelled is None or self.labelled[t]]

    @property
    def region_names(self) -> list[str]:
        """The regions of `labels`, in their order; a region may be absent from this case's masks."""
        return list(self.labels)

    def region_mask(self, name: str, t: int | None = None, *, instance: int = 0) -> NDArray[np.bool_]:
        """Where a region is.

        Args:
            name: one of `region_names`.
            t: one slice; None for all.
            instance: one object id of an instance mask; 0 for the whole region.

        Returns:
            bool (T, H, W), or (H, W) with `t`.

        Raises:
            DataError: for an unknown region, or a case without masks.
        """
        if name not in self.labels:
            raise DataError(f"{self.name} has no region '{name}'{nearest(name, self.region_names)}.")
        wanted = [instance] if instance else self.labels[name]
        lookup = np.zeros(int(np.iinfo(self._stack.dtype).max) + 1, bool)
        lookup[[i for i in wanted if i < lookup.size]] = True
        found = np.empty(self.shape if t is None else (1, *self.shape[1:]), bool)
        # Slice by slice, because numpy widens whatever indexes an array to int64, here eight times the size of a mask.
        for plane, s in zip(found, range(self.num_slices) if t is None else [t], strict=True):
            plane[:] = lookup[self._stack[:, s]].any(axis=0)
        return found if t is None else found[0]

    def objects(self, t: int | None = None) -> list[tuple[str, int]]:
        """What there is to segment: (region, 0) for each region present, or (region, id) for each instance present.

        Args:
            t: one slice; None for all.
        """
        if self.gts is None and self.gts_layers is None:
            return []
        slices = range(self.num_slices) if t is None else [t]
        ids = {int(i) for s in slices for i in np.flatnonzero(np.bincount(self._stack[:, s].reshape(-1)))} - {0}
        if self.instances:
            return [(name, i) for name, known in self.labels.items() for i in known if i in ids]
        return [(name, 0) for name, known in self.labels.items() if ids.intersection(known)]

    def save(self, path: Path | str) -> Path:
        """Write a compressed npz in one step: an interrupted run leaves the old file or none, never half of one."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.stem}.{os.getpid()}.part")
        try:
            with draft.open("wb") as stream:
                np.savez_compressed(stream, **self._to_arrays())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: Path | str) -> "Case":
        """Read an npz of ours, of the MedSAM2 reference or of the CVPR MedSAM challenge; nothing is ever unpickled.

        Raises:
            DataError: one sentence naming the file and what is wrong with it.
        """
        path = Path(path)
        arrays = read_arrays(path)
        if "schema" not in arrays:
            return cls(name=path.stem, patient=path.stem, source=str(path), **standardise(arrays, path))
        try:
            return cls._from_arrays(path.stem, arrays)
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise DataError(f"{path} is damaged or incomplete ({error}); prepare the case again.") from None

    @cached_property
    def _stack(self) -> NDArray[Any]:
        """Ids, (K, T, H, W)."""
        if self.gts_layers is not None:
            return self.gts_layers
        if self.gts is None:
            raise DataError(f"{self.name} has no masks.")
        return self.gts[None]

    def _to_arrays(self) -> dict[str, Any]:
        flat = self.is_2d and self.num_slices == 1
        arrays: dict[str, Any] = {
            "schema": SCHEMA,
            "axes": "imgs and gts (T,H,W); spacing (x,y,z) = (W,H,T) in mm; affine (t,h,w,1) to RAS mm",
            "kind": self.kind,
            "imgs": self.imgs[0] if flat else self.imgs,
            "labels": json.dumps(self.labels),
            "window": json.dumps(self.recipe),
        }
        if self.gts is not None:
            arrays["gts"] = self.gts[0] if flat else self.gts
        # Tools that share the format index `spacing` blindly, so it is there even when nobody knows it.
        arrays["spacing"] = np.asarray((self.spacing_mm or (1.0, 1.0, 1.0))[::-1], np.float64)
        arrays["spacing_known"] = self.spacing_mm is not None
        for name in _OPTIONAL:
            value = getattr(self, name)
            if value is not None:
                arrays[name] = value
        return arrays

    @classmethod
    def _from_arrays(cls, name: str, arrays: Mapping[str, NDArray[Any]]) -> "Case":
        kind = str(arrays["kind"])
        imgs, gts = arrays["imgs"], arrays.get("gts")
        if kind == "image" and (imgs.ndim == 2 or (imgs.ndim == 3 and (gts is None or gts.ndim == 2))):
            imgs, gts = imgs[None], None if gts is None else gts[None]
        spacing = [float(step) for step in arrays["spacing"]]
        values: dict[str, Any] = {key: arrays[key] for key in _OPTIONAL if key in arrays}
        for key, convert in _SCALARS.items():
            if key in values:
                values[key] = convert(values[key].item())
        if "original_shape" in values:
            values["original_shape"] = tuple(int(size) for size in values["original_shape"])
        return cls(
            name=name,
            imgs=imgs,
            gts=gts,
            kind=kind,
            spacing_mm=(spacing[2], spacing[1], spacing[0]) if bool(arrays["spacing_known"]) else None,
            labels={str(region): [int(i) for i in ids] for region, ids in json.loads(str(arrays["labels"])).items()},
            recipe=json.loads(str(arrays["window"])),
            **values,
        )


def read_recipe(path: Path) -> dict[str, Any] | None:
    """The intensity recipe that an npz records, without unpacking its images; None where it records none.

    Raises:
        DataError: as `Case.load`.
    """
    stored = read_arrays(path, only=("window",)).get("window")
    recipe: dict[str, Any] | None = None if stored is None else json.loads(str(stored))
    return recipe


_SCALARS = {
    "modality": str, "patient": str, "source": str, "source_sha256": str, "fingerprint": str, "instances": bool,
    "fps": float,
}  # fmt: skip
_OPTIONAL = (
    *_SCALARS, "affine", "original_affine", "original_shape", "kept_slices", "labelled", "gts_layers", "boxes",
)  # fmt: skip
