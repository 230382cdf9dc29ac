"""What one user of the app works on: an image, volume or video, its named objects, marks on slices and the label map.

Knows nothing of the browser. What the user sees on a marked slice is what propagation starts from, so a correction is
simply another marked slice.
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
    """What was drawn for one object on one slice, in the order it was drawn.

    Attributes:
        box: the latest box (x0, y0, x1, y1) in pixels, half-open.
        clicks: (x, y, is_positive).
        before: the object's mask (H, W) here when the first mark was made; a correction starts from it.
    """

    before: NDArray[np.bool_]
    box: tuple[float, float, float, float] | None = None
    clicks: tuple[tuple[float, float, bool], ...] = ()

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
        self.marks: dict[tuple[int, int], Marks] = {}
        self.is_closed = False
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
        self._answer(object_id, replace(self._marks(object_id), box=box, clicks=()))

    def click(self, object_id: int, x: float, y: float, *, positive: bool) -> None:
        """Take a click (pixels, 0 at the left and top edge of the image) on the current slice, and answer it.

        Raises:
            UserError: the first mark is a negative click on nothing.
        """
        marks = self._marks(object_id)
        if not positive and marks.box is None and not marks.clicks and not marks.before.any():
            raise UserError("A negative click takes something away; draw a box or click inside the object first.")
        self._answer(object_id, replace(marks, clicks=(*marks.clicks, (x, y, positive))))

    def undo(self, object_id: int) -> None:
        """Take back the object's latest mark on the current slice."""
        marks = self._marks(object_id)
        marks = replace(marks, clicks=marks.clicks[:-1]) if marks.clicks else replace(marks, box=None)
        if marks.box is not None or marks.clicks:
            self._answer(object_id, marks)
        elif self.marks.pop((object_id, self.index), None):
            self._paint(object_id, marks.before)

    def clear(self, object_id: int) -> None:
        """Forget the object's marks and mask on all slices."""
        self.marks = {place: marks for place, marks in self.marks.items() if place[0] != object_id}
        self.labels[self.labels == object_id] = 0

    def propagate(self) -> Iterator[tuple[float, int]]:
        """Carry all objects from the marked slices through the whole volume, both ways.

        The label map is replaced once the last slice is done, so whoever stops iterating leaves it as it was. It ends
        early where the workspace is closed meanwhile.

        Yields:
            (progress from 0 to 1, slice just done).

        Raises:
            UserError: nothing is marked.
        """
        slices = sorted({index for _, index in self.marks})
        prompts = [
            Prompt(int(object_id), index, mask=self.labels[index] == object_id)
            for index in slices
            for object_id in np.unique(self.labels[index])
            if object_id
        ]
        if not prompts:
            raise UserError("Nothing is segmented yet: draw a box on a slice first.")
        labels = np.zeros_like(self.labels)
        for progress, index, masks in self._engine.track(self.view, prompts, model=self.model):
            for object_id, mask in masks.items():
                labels[index][mask] = object_id
            if self.is_closed:
                return
            yield progress, index
        self.labels = labels

    def _marks(self, object_id: int) -> Marks:
        known = self.marks.get((object_id, self.index))
        return known or Marks(before=self.labels[self.index] == object_id)

    def _answer(self, object_id: int, marks: Marks) -> None:
        """Marks that cannot be answered leave no trace."""
        answer = self._engine.segment_slice(self.view, [marks.to_prompt(object_id, self.index)], model=self.model)
        if self.is_closed:
            self.close()
        self.marks[object_id, self.index] = marks
        self._paint(object_id, answer.masks_NHW[0])

    def _paint(self, object_id: int, mask: NDArray[np.bool_]) -> None:
        plane = self.labels[self.index]
        plane[plane == object_id] = 0
        plane[mask] = object_id
