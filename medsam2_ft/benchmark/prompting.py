"""What a protocol prompts in a case, and the boxes it gives: pure functions of case, protocol and generator."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from medsam2_ft.benchmark.masks import SparseMask, Window
from medsam2_ft.benchmark.protocol import Jitter, Protocol
from medsam2_ft.data.case import Case
from medsam2_ft.prompts.sampling import Box


@dataclass(frozen=True)
class Target:
    """One object that gets a box and a score.

    Attributes:
        region: its name in the case's labels.
        instance: 0 for the whole region, the id of an instance, or the rank of a component, the largest being 1.
        truth: its mask, (T, H, W).
    """

    region: str
    instance: int
    truth: SparseMask


def find_targets(case: Case, protocol: Protocol, *, t: int | None = None) -> list[Target]:
    """The objects of a case that the protocol prompts.

    Args:
        case: with masks.
        protocol: says what gets a box and how small is too small.
        t: look at this slice alone; None takes all that somebody labelled.

    Returns:
        Targets in the order of regions and instances; with `t`, their masks are empty on other slices.
    """
    found: list[Target] = []
    split = protocol.targets
    if split in ("auto", "whole"):
        split = "instance" if case.instances else "component" if split == "auto" else "region"
    for (region, instance), slices in _places(case, t, is_split=split == "instance").items():
        mask = SparseMask(case.shape)
        for s in slices:
            mask[s] = case.region_mask(region, s, instance=instance)
        pieces = _components(mask, protocol, t) if split == "component" else [(instance, mask)]
        found += [Target(region, number, piece) for number, piece in pieces]
    found = [target for target in found if _prompted_px(target, t) >= protocol.min_px]
    return found[: protocol.max_per_image or None]


def prompted_slices(case: Case, protocol: Protocol) -> list[int]:
    """Slices that the task "slices" prompts: every n-th of those that somebody labelled and that hold an object."""
    step = int(protocol.slice_step.get(case.kind, 1))
    stack = case.gts_layers if case.gts_layers is not None else None if case.gts is None else case.gts[None]
    occupied = [t for t in case.labelled_slices if stack is not None and stack[:, t].any()]
    return occupied[::step]


def prompt_slice(truth: SparseMask, protocol: Protocol, *, offset: float = 0.0) -> int:
    """The slice on which an object of a volume gets its prompt.

    Args:
        truth: of the object, not empty.
        protocol: middle, largest or first.
        offset: share of the way from there to the end of the object's range, upwards if positive; the nearest slice that
            shows the object is taken.
    """
    slices = truth.slices
    low, high = slices[0], slices[-1]
    if protocol.prompt_slice == "first":
        start = low
    elif protocol.prompt_slice == "largest":
        start = max(slices, key=truth.count)
    else:
        start = (low + high) // 2
    wanted = start + offset * ((high - start) if offset > 0 else (start - low))
    return min(slices, key=lambda t: (abs(t - wanted), t))


def tight_prompt(truth: SparseMask, t: int, protocol: Protocol) -> Box:
    """The box round an object on slice t, or round its union or largest slice, with the protocol's margin; without jitter."""
    margin = protocol.box_margin_px
    boxes = {}
    for s in truth.slices:
        if (box := truth.box(s)) is not None:
            x0, y0, x1, y1 = box
            boxes[s] = _clipped((x0 - margin, y0 - margin, x1 + margin, y1 + margin), truth.shape[1:])
    if protocol.box == "union":
        sides = np.array(list(boxes.values()))
        (x0, y0), (x1, y1) = sides[:, :2].min(axis=0), sides[:, 2:].max(axis=0)
        return float(x0), float(y0), float(x1), float(y1)
    if protocol.box == "largest":
        return max(boxes.values(), key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
    assert t in boxes, "the prompt slice shows the object"
    return boxes[t]


def loosen(box: Box, rng: np.random.Generator, *, jitter: Jitter, shape_hw: tuple[int, int]) -> Box:
    """Move each side outwards by its own draw of the protocol's jitter, clipped to the image.

    Four numbers are drawn whatever the jitter, so that a change of it does not shift later draws.
    """
    num_steps = int(jitter.max / jitter.step + 1e-9) if jitter.step else 0
    draws = np.floor(rng.random(4) * (num_steps + 1)) * jitter.step * max(shape_hw) / jitter.grid
    x0, y0, x1, y1 = box
    return _clipped((x0 - draws[0], y0 - draws[1], x1 + draws[2], y1 + draws[3]), shape_hw)


def disturb(box: Box, rng: np.random.Generator, *, knob: str, value: float, shape_hw: tuple[int, int]) -> Box:
    """Worsen a box for the robustness sweep, in shares of its own sides.

    Args:
        box: half-open, in pixels.
        rng: the direction of a shift is drawn from it.
        knob: "looseness" moves each side out by `value` of the box's side; "shift" moves the whole box by that much along
            a random direction; any other knob leaves it.
        value: share of the box's side.
        shape_hw: image height and width in pixels.
    """
    x0, y0, x1, y1 = box
    reach_x, reach_y = value * (x1 - x0), value * (y1 - y0)
    angle = rng.random() * 2 * np.pi
    if knob == "looseness":
        return _clipped((x0 - reach_x, y0 - reach_y, x1 + reach_x, y1 + reach_y), shape_hw)
    if knob == "shift":
        dx, dy = reach_x * np.cos(angle), reach_y * np.sin(angle)
        return _clipped((x0 + dx, y0 + dy, x1 + dx, y1 + dy), shape_hw)
    return box


def _clipped(box: Iterable[float], shape_hw: tuple[int, int]) -> Box:
    height, width = shape_hw
    x0, y0, x1, y1 = (float(side) for side in box)
    x0, y0 = min(max(x0, 0.0), width - 1.0), min(max(y0, 0.0), height - 1.0)
    return x0, y0, max(min(x1, float(width)), x0 + 1), max(min(y1, float(height)), y0 + 1)


def _places(case: Case, t: int | None, *, is_split: bool) -> dict[tuple[str, int], set[int]]:
    """(region, instance) -> the labelled slices that show it, in the order of regions and ids; instance 0 unless split by it."""
    found = {(name, i): set[int]() for name, ids in case.labels.items() for i in ((0, *ids) if is_split else (0,))}
    for s in case.labelled_slices if t is None else [t]:
        for region, instance in case.objects(s):
            found[region, instance if is_split else 0].add(s)
    return {place: slices for place, slices in found.items() if slices}


def _components(mask: SparseMask, protocol: Protocol, t: int | None) -> list[tuple[int, SparseMask]]:
    """Connected components (8 neighbours on slice t, else 26), the largest first, numbered from 1."""
    window = mask.window()
    assert window is not None, "the region is there"
    if t is None:
        ids = cc3d.connected_components(mask.dense(window), connectivity=26)
    else:  # the whole slice, as components of one size are numbered in cc3d's order, which a crop would change
        window = (slice(t, t + 1), *(slice(0, size) for size in mask.shape[1:]))
        ids = cc3d.connected_components(mask[t], connectivity=8)[None]
    sizes = cc3d.statistics(ids)["voxel_counts"][1:].astype(int)
    order = [int(i) for i in np.argsort(-sizes, kind="stable") if sizes[i] >= protocol.min_px]
    kept = order[: protocol.max_per_mask or None]
    return [(rank, _piece(ids, i + 1, mask.shape, window)) for rank, i in enumerate(kept, start=1)]


def _piece(ids: NDArray[Any], wanted: int, shape: tuple[int, int, int], window: Window) -> SparseMask:
    """Where an array that covers a window of a volume holds the wanted id."""
    piece = SparseMask(shape)
    for t, plane in zip(range(window[0].start, window[0].stop), ids, strict=True):
        if (plane == wanted).any():
            whole = np.zeros(shape[1:], bool)
            whole[window[1:]] = plane == wanted
            piece[t] = whole
    return piece


def _prompted_px(target: Target, t: int | None) -> int:
    """Pixels on the slice, or on the largest slice of a volume."""
    return max((target.truth.count(s) for s in ([t] if t is not None else target.truth.slices)), default=0)


def visited(truth: SparseMask, t: int, direction: str) -> SparseMask:
    """What a sweep from slice t can fill, `up`, `down` or `both` ways, and so what it is scored against."""
    if direction == "both":
        return truth
    kept = SparseMask(truth.shape)
    for s in truth.slices:
        if s >= t if direction == "up" else s <= t:
            kept[s] = truth[s]
    return kept
