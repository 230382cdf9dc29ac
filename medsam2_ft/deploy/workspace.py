"""What one user of the app works on: an image, volume or video, its named objects, marks on slices and the label map.

Knows nothing of the browser. What the user sees on a marked slice is what propagation starts from, so a correction is
simply another marked slice. Marks lie over what was propagated, the latest on top, so taking one back uncovers the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medsam2_ft.data.intensity import WINDOWS
from medsam2_ft.deploy.engine import Engine, View, serving_recipe
from medsam2_ft.errors import UserError
from medsam2_ft.io.volume import Volume
from medsam2_ft.prompts.prompt import Prompt

OWN_WINDOW = "as the checkpoint was trained"
MAX_OBJECTS = 255


@dataclass(frozen=True, eq=False)
class Marks:
    """What was drawn for one object on one slice, in the order it was drawn, and the answer.

    Attributes:
        before: the object's mask (H, W) here when the first mark was made; a correction starts from it.
        box: the latest box (x0, y0, x1, y1) in pixels, half-open.
        clicks: (x, y, is_positive).
        bits: the answered mask, packed, because undo keeps one for each mark.
    """

    before: NDArray[np.bool_]
    box: tuple[float, float, float, float] | None = None
    clicks: tuple[tuple[float, float, bool], ...] = ()
    bits: NDArray[np.uint8] | None = None

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The answer, (H, W)."""
        assert self.bits is not None
        return np.unpackbits(self.bits, count=self.before.size).reshape(self.before.shape).astype(np.bool_)

    def to_prompt(self, object_id: int, index: int) -> Prompt:
        """A fresh box starts afresh; clicks alone correct what propagation left here."""
        return Prompt(
            object_id=object_id,
            slice=index,
            box=self.box,
            points=np.array([click[:2] for click in self.clicks], np.float32) if self.clicks else None,
            point_labels=np.array([click[2] for click in self.clicks], np.int64) if self.clicks else None,
            mask=self.before if self.box is None and self.before.any() else None,
        )


class Workspace:
    """One opened file and everything the user did on it."""

    def __init__(self, engine: Engine, volume: Volume, *, key: str) -> None:
        """
        Args:
            engine: answers the prompts.
            volume: what was opened.
            key: names these pixels in the engine's caches; must be unique to this workspace.
        """
        self.volume = volume
        self.names: list[str] = ["object 1"]
        self.index = volume.array.shape[0] // 2
        self.labels: NDArray[np.uint8] = np.zeros(volume.array.shape[:3], np.uint8)
        self.model: str | None = None
        self.window = OWN_WINDOW
        self.is_closed = False
        self._below = self.labels.copy()
        self._history: list[tuple[tuple[int, int], Marks]] = []
        self._cleared: set[int] = set()
        self._engine = engine
        self._key = key

    @property
    def view(self) -> View:
        """The pixels as the network sees them."""
        window = None if self.window == OWN_WINDOW else WINDOWS[self.window]
        recipe = serving_recipe(self._engine.recipe(self.model), dtype=self.volume.array.dtype, window=window)
        view = self._engine.prepare(self.volume.array, key=self._key, recipe=recipe)
        if self.is_closed:  # by another thread; what was just cached would stay
            self.close()
        return view

    @property
    def num_slices(self) -> int:
        """Slices or frames, T."""
        return len(self.labels)

    @property
    def marks(self) -> dict[tuple[int, int], Marks]:
        """What is drawn, by (object, slice), the latest last."""
        latest: dict[tuple[int, int], Marks] = {}
        for place, marks in self._history:
            latest.pop(place, None)
            latest[place] = marks
        return latest

    def close(self) -> None:
        """Let the engine forget the pixels, and end a propagation that is running."""
        self.is_closed = True
        self._engine.forget(self._key)

    def add_object(self, name: str) -> int:
        """The id of a new object, or of the one that has this name already.

        Raises:
            UserError: there are 255 objects.
        """
        name = name.strip() or f"object {len(self.names) + 1}"
        if name not in self.names:
            if len(self.names) >= MAX_OBJECTS:
                raise UserError(f"A label map holds at most {MAX_OBJECTS} objects.")
            self.names.append(name)
        return self.names.index(name) + 1

    def draw_box(self, object_id: int, corners: Sequence[float]) -> None:
        """Take a dragged rectangle as the object's box on the current slice, and answer it; clicks here are forgotten.

        Args:
            object_id: 1 or more.
            corners: (x0, y0, x1, y1) in pixels, in any order, outside parts allowed.

        Raises:
            UserError: the box is empty or outside.
        """
        height, width = self.labels.shape[1:]
        (x0, x1), (y0, y1) = sorted(corners[0::2]), sorted(corners[1::2])
        box = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
        place = object_id, self.index
        self._answer(place, replace(self._marks(place), box=box, clicks=()))

    def click(self, object_id: int, x: float, y: float, *, positive: bool) -> None:
        """Take a click (pixels, 0 at the left and top edge of the image) on the current slice, and answer it.

        Raises:
            UserError: the first mark is a negative click on nothing.
        """
        place = object_id, self.index
        marks = self._marks(place)
        if not positive and marks.box is None and not marks.clicks and not marks.before.any():
            raise UserError("A negative click takes something away; draw a box or click inside the object first.")
        self._answer(place, replace(marks, clicks=(*marks.clicks, (x, y, positive))))

    def undo(self, object_id: int) -> None:
        """Take back the object's latest mark on the current slice, and give back what it covered."""
        place = object_id, self.index
        steps = [step for step, (marked, _) in enumerate(self._history) if marked == place]
        if steps:
            del self._history[steps[-1]]
            self._flatten(self.index)

    def clear(self, object_id: int) -> None:
        """Forget the object's marks and mask on all slices."""
        self._history = [(place, marks) for place, marks in self._history if place[0] != object_id]
        self._below[self._below == object_id] = 0
        self._cleared.add(object_id)
        self._flatten_all()

    def propagate(self) -> Iterator[tuple[float, int]]:
        """Carry all objects from the marked slices through the whole volume, both ways.

        The label map is replaced once the last slice is done, so whoever stops iterating leaves it as it was. It ends
        early where the workspace is closed meanwhile. What the user does meanwhile counts as done afterwards.

        Yields:
            (progress from 0 to 1, slice just done).

        Raises:
            UserError: nothing is marked.
        """
        marked = {index: np.unique(self.labels[index]) for index in sorted({index for _, index in self.marks})}
        prompts = [
            Prompt(int(object_id), index, mask=self.labels[index] == object_id)
            for index, ids in marked.items()
            for object_id in ids
            if object_id
        ]
        if not prompts:
            raise UserError("Nothing is segmented yet: draw a box on a slice first.")
        labels = np.zeros_like(self.labels)
        self._cleared = set()
        for progress, index, masks in self._engine.track(self.view, prompts, model=self.model):
            for object_id, mask in masks.items():
                labels[index][mask] = object_id
            if self.is_closed:
                return
            yield progress, index
        for index, ids in marked.items():  # stays as the user left it; objects from other slices take what is free
            below = self._below[index]
            is_new = (below == 0) & ~np.isin(labels[index], ids)
            labels[index] = np.where(is_new, labels[index], below)
        labels[np.isin(labels, list(self._cleared))] = 0
        self._below = labels
        self._flatten_all()

    def _marks(self, place: tuple[int, int]) -> Marks:
        object_id, index = place
        return self.marks.get(place) or Marks(before=self.labels[index] == object_id)

    def _answer(self, place: tuple[int, int], marks: Marks) -> None:
        """Marks that cannot be answered leave no trace."""
        answer = self._engine.segment_slice(self.view, [marks.to_prompt(*place)], model=self.model)
        if self.is_closed:
            self.close()
        self._history.append((place, replace(marks, bits=np.packbits(answer.masks_NHW[0]))))
        self._flatten(place[1])

    def _flatten(self, index: int) -> None:
        """Lay the slice's marks over the label map below them."""
        plane = self._below[index].copy()
        for (object_id, marked), marks in self.marks.items():
            if marked == index:
                plane[plane == object_id] = 0
                plane[marks.mask] = object_id
        self.labels[index] = plane

    def _flatten_all(self) -> None:
        self.labels = self._below.copy()
        for index in {index for _, index in self.marks}:
            self._flatten(index)
