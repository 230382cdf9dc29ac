"""How a dataset's mask images encode labels, decided from their pixels, with the evidence in words.

`binary`: foreground above a threshold. `index`: the value is the label id. `colour`: each colour is a label.
`instances`: the value counts objects of one class. The decision is made once for a whole dataset, so that ids mean the
same in every image.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter

from medsam2_ft.data.labels import Labels, as_ids
from medsam2_ft.errors import DataError

KINDS = ("binary", "index", "colour", "instances")
_COLOUR_NAMES = {
    (255, 0, 0): "red", (0, 255, 0): "green", (0, 0, 255): "blue", (255, 255, 0): "yellow", (255, 0, 255): "magenta",
    (0, 255, 255): "cyan", (255, 255, 255): "white", (0, 0, 0): "black",
}  # fmt: skip
PLAIN_COLOURS = tuple(_COLOUR_NAMES.values())
"""What the colours that mask painters use are called here."""
_LEVEL_GAP = 16
_MAX_INDEX_IDS = 64
_MANY_INSTANCES = 10
_COLOUR_DISTANCE = 60.0
_COLOUR_SHARE = 0.005
_SOFT_SHARE = 0.6
"""Up to this share of the foreground may be soft edge, which is much only for small structures."""


@dataclass(frozen=True)
class Encoding:
    """A decision about mask images.

    Attributes:
        kind: one of `KINDS`.
        threshold: binary: foreground is strictly above it.
        levels: index: the values that are labels, others are snapped to the nearest; empty: all values stand.
        colours: colour: the RGB colours in the order of their ids, starting at 1.
        background: colour: what is not a label.
        evidence: the decision's grounds in words.
    """

    kind: str
    threshold: float = 0.0
    levels: tuple[int, ...] = ()
    colours: tuple[tuple[int, int, int], ...] = ()
    background: tuple[int, int, int] = (0, 0, 0)
    evidence: str = ""

    def decode(self, mask: NDArray[Any], *, source: str) -> NDArray[np.unsignedinteger[Any]]:
        """Label or instance ids (H, W) of one mask image.

        Args:
            mask: (H, W) numbers or (H, W, 3) colours as `io.image.read_mask_image` gives them.
            source: the file, for errors.

        Raises:
            DataError: if the mask contradicts the encoding.
        """
        if self.kind == "colour":
            colour = mask if mask.ndim == 3 else np.repeat(mask[..., None], 3, axis=-1)
            return _nearest(colour.astype(np.float32), np.array([self.background, *self.colours], np.float32))
        if mask.ndim == 3:
            raise DataError(
                f"{source} is a colour image, but the masks are read as {self.kind}; use --mask-encoding colour."
            )
        if self.kind == "binary":
            return (mask > self.threshold).astype(np.uint8)
        ids = as_ids(mask, source=source)
        if not self.levels:
            return ids
        levels = np.array([0, *self.levels])
        return levels[_nearest(ids[..., None].astype(np.float32), levels[:, None].astype(np.float32))].astype(ids.dtype)

    def labels(self, ids: Sequence[int], *, name: str | None = None) -> Labels:
        """Region names and ids.

        Args:
            ids: the nonzero ids of the decoded mask.
            name: what the user calls the foreground of binary and instance masks.
        """
        if self.kind == "colour":
            return {colour_name(colour): [number] for number, colour in enumerate(self.colours, start=1)}
        if self.kind == "binary":
            return {name or "label_1": [1]}
        if self.kind == "instances":
            return {name or "label_1": list(ids)}
        return {f"label_{i}": [i] for i in (self.levels or ids)}

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {
            "kind": self.kind,
            "threshold": self.threshold,
            "levels": list(self.levels),
            "colours": [list(colour) for colour in self.colours],
            "background": list(self.background),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Encoding":
        """The inverse of `to_dict`."""
        return cls(
            kind=values["kind"],
            threshold=values["threshold"],
            levels=tuple(values["levels"]),
            colours=tuple((c[0], c[1], c[2]) for c in values["colours"]),
            background=(values["background"][0], values["background"][1], values["background"][2]),
        )


@dataclass
class _Statistics:
    """What is counted over the sampled masks."""

    num_masks: int = 0
    num_colour: int = 0
    values: Counter[int] = field(default_factory=Counter)
    with_interior: set[int] = field(default_factory=set)
    colours: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    flat_colours: set[tuple[int, int, int]] = field(default_factory=set)
    instance_counts: list[int] = field(default_factory=list)
    num_instance_like: int = 0
    is_wide: bool = False

    def add(self, mask: NDArray[Any]) -> None:
        self.num_masks += 1
        if mask.ndim == 3:
            self.num_colour += 1
            packed = mask.astype(np.int64) @ (65536, 256, 1)
            found, counts = np.unique(packed, return_counts=True)
            for value, count in zip(found.tolist(), counts.tolist(), strict=True):
                self.colours[_unpacked(value)] += count
            self.flat_colours.update(_unpacked(value) for value in np.unique(packed[_is_flat(packed)]).tolist())
            return
        self.is_wide |= mask.dtype.itemsize > 1
        whole = as_ids(mask, source="a mask")
        found, counts = np.unique(whole, return_counts=True)
        self.values.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
        self.with_interior.update(np.unique(whole[_is_flat(whole)]).tolist())
        ids = [value for value in found.tolist() if value]
        if ids:
            # Counting without gaps is a sign of objects; so are more ids than a list of classes has.
            may_count = ids[-1] == len(ids) or len(ids) > _MAX_INDEX_IDS
            parts = cc3d.connected_components(whole, connectivity=8, return_N=True)[1] if may_count else 0
            self.instance_counts.append(len(ids))
            self.num_instance_like += may_count and parts <= 1.1 * len(ids)


def detect_encoding(masks: Iterable[NDArray[Any]], *, is_lossy: bool) -> Encoding:
    """Decide how masks encode labels.

    Args:
        masks: sampled over the dataset, as `io.image.read_mask_image` gives them.
        is_lossy: whether they were stored as JPEG or the like, whose values scatter.

    Raises:
        DataError: if the pixels do not settle it; the sentence names the option that does.
    """
    seen = _Statistics()
    for mask in masks:
        seen.add(mask)
    if not seen.num_masks:
        raise DataError("There is no readable mask to learn the encoding from.")
    return _decide_colour(seen) if seen.num_colour else _decide_grey(seen, is_lossy)


def forced_encoding(kind: str, masks: Iterable[NDArray[Any]], *, is_lossy: bool) -> Encoding:
    """The user's choice of kind, its details (threshold, colours) still taken from the pixels."""
    seen = _Statistics()
    for mask in masks:
        seen.add(mask)
    if kind == "colour":
        return _decide_colour(seen)
    if kind == "binary":
        highest = max(seen.values, default=1)
        is_soft = is_lossy or len(seen.values) > 2
        return Encoding("binary", threshold=highest / 2 - 0.5 if is_soft else 0.0, evidence="chosen by --mask-encoding")
    return Encoding(kind, evidence="chosen by --mask-encoding")


def colour_name(colour: tuple[int, int, int]) -> str:
    """`red` for the plain colours, `#a0b0c0` for others."""
    return _COLOUR_NAMES.get(colour, "#{:02x}{:02x}{:02x}".format(*colour))


def _decide_grey(seen: _Statistics, is_lossy: bool) -> Encoding:
    values = sorted(seen.values)
    nonzero = [value for value in values if value]
    if len(nonzero) <= 1:
        return Encoding(
            "binary", evidence=f"{seen.num_masks} masks hold only 0 and {nonzero[0] if nonzero else 'nothing'}"
        )
    count = sum(seen.values[value] for value in nonzero)
    highest = nonzero[-1]
    middle = [value for value in values if highest * 0.1 < value < highest * 0.9]
    share = sum(seen.values[value] for value in middle) / max(count, 1)
    if highest > 200 and not seen.with_interior.intersection(middle) and share < _SOFT_SHARE:
        grounds = "lossy file format" if is_lossy else "anti-aliased edges"
        return Encoding(
            "binary",
            threshold=127 if highest <= 255 else highest / 2,
            evidence=f"{len(values)} values, but only {share:.1%} of the foreground between the two ends, all of it at "
            f"edges ({grounds}): thresholded at half",
        )
    counts = seen.instance_counts
    most = max(counts, default=0)
    if seen.num_instance_like >= 0.9 * len(counts) and (
        (most >= _MANY_INSTANCES and len(set(counts)) > 1) or (len(counts) == 1 and most >= 2 * _MANY_INSTANCES)
    ):
        return Encoding(
            "instances",
            evidence=f"{min(counts)} to {most} ids a mask, each one connected object",
        )
    if not is_lossy and len(nonzero) <= _MAX_INDEX_IDS:
        return Encoding("index", evidence=f"{len(nonzero)} distinct nonzero values: {_few(nonzero)}")
    levels = _levels(seen)
    if 1 <= len(levels) <= _MAX_INDEX_IDS:
        return Encoding(
            "index",
            levels=levels,
            evidence=f"{len(values)} values around the levels {_few(levels)}; others snapped to them",
        )
    raise DataError(
        f"The masks hold {len(nonzero)} different values that look neither like labels nor like objects; "
        "say what they are with --mask-encoding binary, index, colour or instances."
    )


def _levels(seen: _Statistics) -> tuple[int, ...]:
    """Values with flat areas, those closer than a JPEG's noise taken together at their most frequent one."""
    groups: list[list[int]] = []
    for value in sorted(seen.with_interior | {0}):
        if groups and value - groups[-1][-1] < _LEVEL_GAP:
            groups[-1].append(value)
        else:
            groups.append([value])
    return tuple(max(group, key=lambda value: seen.values[value]) for group in groups if 0 not in group)


def _decide_colour(seen: _Statistics) -> Encoding:
    total = sum(seen.colours.values())
    if not total:
        raise DataError("--mask-encoding colour was asked for, but the masks are grey; use binary, index or instances.")
    black = (0, 0, 0)
    background = black if seen.colours[black] > 0.001 * total else seen.colours.most_common(1)[0][0]
    foreground = total - sum(
        n for colour, n in seen.colours.items() if _distance(colour, background) < _COLOUR_DISTANCE
    )
    chosen: list[tuple[int, int, int]] = []
    for colour, count in seen.colours.most_common(4096):
        if count < _COLOUR_SHARE * foreground or len(chosen) > 254:
            break
        # Colours that occur only in edges are mixtures, however frequent.
        if seen.flat_colours - {background} and colour not in seen.flat_colours:
            continue
        plain = next((c for c in _COLOUR_NAMES if _distance(c, colour) < _COLOUR_DISTANCE / 2), colour)
        if all(_distance(plain, other) >= _COLOUR_DISTANCE for other in (background, *chosen)):
            chosen.append(plain)
    if not chosen:
        raise DataError("The masks are colour images without any frequent colour; they look like pictures, not masks.")
    near = sum(n for c, n in seen.colours.items() if any(_distance(c, other) < _COLOUR_DISTANCE for other in chosen))
    return Encoding(
        "colour",
        colours=tuple(sorted(chosen)),
        background=background,
        evidence=f"{', '.join(colour_name(c) for c in sorted(chosen))} on {colour_name(background)} make up "
        f"{near / max(foreground, 1):.1%} of the coloured pixels; others (edges) go to the nearest",
    )


def _is_flat(pixels: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a pixel equals its eight neighbours."""
    same: NDArray[np.bool_] = maximum_filter(pixels, 3) == minimum_filter(pixels, 3)
    return same


def _unpacked(value: int) -> tuple[int, int, int]:
    return value >> 16, value >> 8 & 255, value & 255


def _distance(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
    return float(np.linalg.norm(np.subtract(a, b)))


def _nearest(pixels: NDArray[np.float32], targets: NDArray[np.float32]) -> NDArray[np.uint8]:
    best = np.zeros(pixels.shape[:-1], np.uint8)
    least = np.full(pixels.shape[:-1], np.inf, np.float32)
    for number, target in enumerate(targets):
        distance = ((pixels - target) ** 2).sum(axis=-1)
        closer = distance < least
        best[closer] = number
        least[closer] = distance[closer]
    return best


def _few(values: list[int] | tuple[int, ...]) -> str:
    return ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")
