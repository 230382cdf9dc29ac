"""The model behind the server and the app: loaded once, shared by all, embeddings of recent slices kept.

Prompts are answered from a slice's cached embedding; propagation computes each slice's features once for all objects.
Between two slices of a propagation, waiting clicks get their turn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medsam2_ft.data.intensity import IntensityRecipe
from medsam2_ft.deploy.bounded_cache import BoundedCache
from medsam2_ft.deploy.limits import Limits, Refusal
from medsam2_ft.deploy.turns import Turns
from medsam2_ft.errors import nearest
from medsam2_ft.prompts.prompt import Prompt

if TYPE_CHECKING:
    from torch import Tensor

    from medsam2_ft.inference.predictor import Embedding, Predictor

Sweep = Callable[..., Iterator[tuple[int, int, NDArray[np.bool_]]]]


@dataclass(frozen=True)
class View:
    """Prepared pixels and a key that names exactly these pixels in the caches.

    Attributes:
        imgs: uint8 (T, H, W) or (T, H, W, 3).
        key: equal only for equal pixels: volume, axis and intensity recipe, for instance.
    """

    imgs: NDArray[np.uint8]
    key: tuple[Hashable, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, H, W)."""
        num_slices, height, width = self.imgs.shape[:3]
        return num_slices, height, width


@dataclass(frozen=True)
class SliceAnswer:
    """The objects of one slice, in the order of their prompts.

    Attributes:
        masks_NHW: bool, on the grid of the view.
        iou_N: the model's own estimate of each mask's IoU, 0 to 1.
    """

    masks_NHW: NDArray[np.bool_]
    iou_N: NDArray[np.float32]


class Engine:
    """Named checkpoints, opened on first use and shared by all callers, from any thread."""

    def __init__(
        self,
        checkpoints: Mapping[str, str | Path],
        *,
        device: str = "auto",
        limits: Limits | None = None,
        open_model: Callable[..., Predictor] | None = None,
        sweep: Sweep | None = None,
    ) -> None:
        """
        Args:
            checkpoints: what clients may choose from, by name; the first is the default. Values are paths or zoo names.
            device: "auto", "cpu", "cuda" or "mps".
            limits: sizes of the caches.
            open_model, sweep: stand in for `Predictor.from_checkpoint` and `propagate_groups` in tests.
        """
        assert checkpoints, "an engine needs a checkpoint"
        limits = limits or Limits()
        self.checkpoints = dict(checkpoints)
        self.turns = Turns(waiting_clicks=limits.waiting_clicks)
        self._device = device
        self._open_model = open_model
        self._sweep = sweep
        self._models: BoundedCache[Predictor] = BoundedCache(limits.loaded_models)
        self._embeddings: BoundedCache[Embedding] = BoundedCache(limits.embeddings)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._read_ahead: Future[None] | None = None
        self._prepared: BoundedCache[NDArray[np.uint8]] = BoundedCache(limits.prepared_bytes, cost=lambda a: a.nbytes)

    @property
    def default(self) -> str:
        """The name of the checkpoint that is used when a client names none."""
        return next(iter(self.checkpoints))

    def recipe(self, model: str | None) -> IntensityRecipe | None:
        """The intensity recipe that the checkpoint was trained with, if it carries one."""
        predictor = self._models.get(model or self.default)
        if predictor is None:
            with self.turns.click():
                predictor = self._predictor(model)
        return None if predictor.recipe is None else IntensityRecipe.from_dict(predictor.recipe)

    def warm_up(self) -> None:
        """Open the default checkpoint now, so that a broken one is told at start and the first click is quick."""
        with self.turns.click():
            self._predictor(None)

    def prepare(self, array: NDArray[Any], *, key: Hashable, recipe: IntensityRecipe, axis: int = 0) -> View:
        """Raw numbers to uint8 with `axis` in front, kept for the next request on the same volume and recipe.

        Args:
            array: raw volume of three axes, or four with colour last.
            key: names the raw volume.
            recipe: how numbers become uint8.
            axis: 0, 1 or 2, the array axis to step through as slices; the other two keep their order.

        Raises:
            DataError: the recipe does not fit the numbers.
        """
        prepared = self._prepared.get((key, recipe))
        if prepared is None:
            prepared = np.ascontiguousarray(recipe.apply(array))
            if not prepared.flags.writeable:  # 8-bit data comes through as the file on disk; torch wants memory
                prepared = prepared.copy()
            self._prepared.put((key, recipe), prepared)
        return View(np.moveaxis(prepared, axis, 0), (key, recipe, axis))

    def forget(self, key: Hashable) -> None:
        """Drop everything cached for the volume `key`."""
        self._prepared.drop(lambda cached: isinstance(cached, tuple) and cached[0] == key)
        self._embeddings.drop(lambda cached: isinstance(cached, tuple) and key in cached)

    def embed(self, view: View, index: int, *, model: str | None = None) -> None:
        """Compute slice `index` ahead of its first click."""
        with self.turns.click():
            self._embedding(view, index, model)

    def embed_soon(self, view: Callable[[], View], index: int, *, model: str | None = None) -> None:
        """Compute slice `index` while the caller goes on; a hint, dropped while an earlier one is still worked on.

        What goes wrong is told when somebody asks for a mask.
        """
        if self._read_ahead is None or self._read_ahead.done():
            self._read_ahead = self._reader.submit(lambda: self.embed(view(), index, model=model))

    def segment_slice(self, view: View, prompts: Sequence[Prompt], *, model: str | None = None) -> SliceAnswer:
        """Masks of all prompted objects of one slice, from one encoding.

        Args:
            view: the pixels.
            prompts: one for each object, all on the same slice. A prompt that is only a mask comes back as it is; a
                mask with clicks is refined by them.
            model: name of a checkpoint; None for the default.

        Raises:
            UserError: a prompt that does not fit the slice, or an unknown model.
        """
        check_prompts(view.shape, prompts)
        index = prompts[0].slice
        assert all(prompt.slice == index for prompt in prompts)
        masks_NHW = np.zeros((len(prompts), *view.shape[1:]), np.bool_)
        iou_N = np.ones(len(prompts), np.float32)
        asked: defaultdict[tuple[bool, int, bool], list[int]] = defaultdict(list)
        for position, prompt in enumerate(prompts):
            num_points = 0 if prompt.points is None else len(prompt.points)
            if prompt.mask is not None and prompt.box is None and not num_points:
                masks_NHW[position] = prompt.mask
            else:
                asked[prompt.box is not None, num_points, prompt.mask is not None].append(position)
        if asked:
            with self.turns.click():
                predictor, embedding = self._embedding(view, index, model)
                for positions in asked.values():  # of one form: as many points, with or without box
                    prediction = predictor.predict(embedding, **_stack([prompts[i] for i in positions], predictor))
                    masks_NHW[positions] = prediction.masks_NHW
                    iou_N[positions] = np.asarray(prediction.iou_N, np.float32)
        return SliceAnswer(masks_NHW, iou_N)

    def track(
        self,
        view: View,
        prompts: Sequence[Prompt],
        *,
        model: str | None = None,
        low: int = 0,
        high: int | None = None,
    ) -> Iterator[tuple[float, int, dict[int, NDArray[np.bool_]]]]:
        """Carry every object from its prompted slices through slices low..high-1, both ways.

        Args:
            view: the pixels.
            prompts: any number of slices and objects; at most one for an object and slice.
            model: name of a checkpoint; None for the default.
            low, high: half-open range of slices to fill; None for the last.

        Yields:
            (progress from 0 to 1, slice index, {object id: (H, W) bool}). A slice comes more than once when objects are
            prompted on different slices. Stop iterating to cancel.

        Raises:
            UserError: a prompt that does not fit the view or the range, or an unknown model.
        """
        check_prompts(view.shape, prompts)
        high = view.shape[0] if high is None else min(high, view.shape[0])
        if not all(low <= prompt.slice < high for prompt in prompts):
            raise Refusal(422, f"Every prompt must lie on the slices {low} to {high - 1} that are to be filled.")
        conditioning = self._conditioning(view, prompts, model)
        with self.turns.background():
            predictor = self._predictor(model)
        total, done = len(conditioning) * (high - low), 0
        groups = [masks_by_slice for _, masks_by_slice in conditioning]
        sweep = self._propagate(predictor, view.imgs, groups=groups, low=low, high=high)
        while True:
            with self.turns.background():
                step = next(sweep, None)
            if step is None:
                break
            done += 1
            index, number, masks = step
            yield min(done / total, 1.0), index, dict(zip(conditioning[number][0], masks, strict=True))

    def _conditioning(
        self, view: View, prompts: Sequence[Prompt], model: str | None
    ) -> list[tuple[list[int], dict[int, NDArray[np.bool_]]]]:
        """Prompt masks, batched over the objects that are prompted on the same set of slices."""
        masks: defaultdict[int, dict[int, NDArray[np.bool_]]] = defaultdict(dict)
        for index in sorted({prompt.slice for prompt in prompts}):
            here = [prompt for prompt in prompts if prompt.slice == index]
            answer = self.segment_slice(view, here, model=model)
            for prompt, mask in zip(here, answer.masks_NHW, strict=True):
                masks[prompt.object_id][index] = mask
        batches: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for object_id, by_slice in masks.items():
            batches[tuple(by_slice)].append(object_id)
        return [
            (ids, {index: np.stack([masks[object_id][index] for object_id in ids]) for index in slices})
            for slices, ids in batches.items()
        ]

    def _propagate(self, predictor: Predictor, imgs: NDArray[np.uint8], **options: Any) -> Iterator[Any]:
        if self._sweep is not None:
            return self._sweep(predictor, imgs, **options)
        from medsam2_ft.inference.propagate import propagate_groups

        return propagate_groups(predictor, imgs, **options)

    def _embedding(self, view: View, index: int, model: str | None) -> tuple[Predictor, Embedding]:
        predictor = self._predictor(model)
        key = (*view.key, index, model or self.default)
        embedding = self._embeddings.get(key)
        if embedding is None:
            embedding = predictor.embed(np.ascontiguousarray(view.imgs[index]))
            self._embeddings.put(key, embedding)
        return predictor, embedding

    def _predictor(self, model: str | None) -> Predictor:
        name = model or self.default
        if name not in self.checkpoints:
            raise Refusal(404, f"There is no model '{name}' here{nearest(name, list(self.checkpoints))}.")
        predictor = self._models.get(name)
        if predictor is None:
            predictor = self._open(self.checkpoints[name])
            self._models.put(name, predictor)
        return predictor

    def _open(self, checkpoint: str | Path) -> Predictor:
        if self._open_model is not None:
            return self._open_model(checkpoint, device=self._device)
        from medsam2_ft.inference.predictor import Predictor

        return Predictor.from_checkpoint(checkpoint, device=self._device)


def check_prompts(shape: tuple[int, int, int], prompts: Sequence[Prompt]) -> None:
    """Refuse prompts that do not fit an image of (T, H, W), or two of one object on one slice.

    Raises:
        UserError: in one sentence.
    """
    if not prompts:
        raise Refusal(422, "Nothing is prompted: give a box, clicks or a mask.")
    for prompt in prompts:
        prompt.check(shape)
    if len({(prompt.object_id, prompt.slice) for prompt in prompts}) < len(prompts):
        raise Refusal(422, "An object can have one prompt on a slice; put its box and clicks into one.")


def _stack(prompts: Sequence[Prompt], predictor: Predictor) -> dict[str, Any]:
    """Prompts of one form as the arrays that `Predictor.predict` takes."""
    first = prompts[0]
    arrays: dict[str, Any] = {}
    if first.box is not None:
        arrays["boxes_N4"] = np.array([prompt.box for prompt in prompts], np.float32)
    if first.points is not None and len(first.points):
        arrays["points_NP2"] = np.stack([np.asarray(prompt.points, np.float32) for prompt in prompts])
        arrays["point_labels_NP"] = np.stack([np.asarray(prompt.point_labels, np.int64) for prompt in prompts])
    if first.mask is not None:
        arrays["mask_logits_Nhw"] = _low_res_logits(
            [prompt.mask for prompt in prompts if prompt.mask is not None], predictor
        )
    return arrays


def _low_res_logits(masks: Sequence[NDArray[np.bool_]], predictor: Predictor) -> Tensor:
    """Masks on the slice's grid as the decoder's own low-resolution logits, -10 outside to 10 inside."""
    import cv2
    import torch

    side = predictor.image_size // 4
    shares = [cv2.resize(mask.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA) for mask in masks]
    return torch.from_numpy(np.stack(shares).astype(np.float32) * 20 - 10).to(predictor.device)


def serving_recipe(
    own: IntensityRecipe | None, *, dtype: np.dtype[Any], window: tuple[float, float] | None = None
) -> IntensityRecipe:
    """The window asked for, else nothing for 8-bit data (but percentiles of a checkpoint trained with them), else the
    checkpoint's own recipe, else percentiles.

    Args:
        own: what the checkpoint was trained with.
        dtype: of the raw volume.
        window: (level, width) that the user chose.
    """
    if window is not None:
        return IntensityRecipe("window", windows=(window,))
    is_stretched = own is not None and own.method == "percentile"  # as 8-bit sets are that are dark throughout
    if dtype == np.uint8 and not is_stretched:
        return IntensityRecipe("passthrough")
    return IntensityRecipe("percentile") if own is None or own.method == "passthrough" else own
