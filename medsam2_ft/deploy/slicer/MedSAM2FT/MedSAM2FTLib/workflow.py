"""The steps that the module's buttons take, without Qt and MRML: choose a volume, prompt a slice, carry on, cancel."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .client import Client, ServerError, decode_mask, name_of
from .prompts import ObjectPrompt

EXPIRED = 404
POLL_S = 0.2


SENT_TYPES = ("u1", "i1", "u2", "i2", "i4", "u4", "f4", "f8")


def sendable(array: np.ndarray) -> np.ndarray:
    """The volume in a number type that the server takes, with NaN and infinities at the lowest finite value.

    Scanners and resampling leave NaN outside the field of view; the array that was given stays as it is.
    """
    if array.dtype.str[1:] not in SENT_TYPES:
        array = array.astype(np.float32)
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return array
    finite = array[np.isfinite(array)]
    return np.where(np.isfinite(array), array, finite.min() if finite.size else 0).astype(array.dtype)


class Cancelled(Exception):
    """The user cancelled; nothing was changed."""


class Workflow:
    """One volume at a time on one server; the volume is uploaded once and never changed."""

    def __init__(self, client: Client, *, model: str | None = None) -> None:
        """
        Args:
            client: where the server is.
            model: name of the checkpoint; None for the server's default.
        """
        self.client = client
        self.model = model
        self._session: str | None = None
        self._sha256 = ""
        self._array: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the chosen volume's array, [k, j, i]."""
        if self._array is None:
            raise ServerError("Choose a volume first.")
        return self._array.shape

    def choose_volume(self, array: np.ndarray) -> None:
        """Work on this volume from now on; it is sent with the first request that needs it, and the one before is deleted."""
        if array.ndim != 3:
            raise ServerError("This volume has several components a voxel; choose a scalar volume.")
        self._array = sendable(array)
        before, self._sha256 = self._sha256, name_of(self._array)
        if before not in ("", self._sha256) and self._session is not None:
            with contextlib.suppress(ServerError):  # never sent, or gone with its session
                self.client.delete_volume(self._session, before)

    def segment_slice(
        self, prompts: Sequence[ObjectPrompt], *, axis: int, window: tuple[float, float] | None = None
    ) -> dict[int, np.ndarray]:
        """Masks (H, W) of the prompted objects, all on one slice, by object.

        Raises:
            ServerError: the server's sentence.
        """
        answer = self._on_volume("masks", prompts=[p.to_json() for p in prompts], axis=axis, window=window)
        height, width = answer["height"], answer["width"]
        return {found["object"]: decode_mask(found["mask"], height, width) for found in answer["masks"]}

    def look_at(self, index: int, *, axis: int, window: tuple[float, float] | None = None, wait: bool = True) -> None:
        """Let the server read a slice ahead of the first click on it; without `wait` it does so while the user draws."""
        self._on_volume("embeddings", slice=index, axis=axis, window=window, wait=wait)

    def propagate(
        self,
        prompts: Sequence[ObjectPrompt],
        *,
        axis: int,
        window: tuple[float, float] | None = None,
        first: int = 0,
        last: int | None = None,
        on_progress: Callable[[float], bool] = lambda progress: True,
    ) -> np.ndarray:
        """Carry objects from their prompted slices through `first`..`last`, both ways.

        Args:
            prompts: on any slices along `axis`.
            axis: array axis of the slices.
            window: (level, width), or None for the checkpoint's own recipe.
            first, last: slices to fill, inclusive; None for the end.
            on_progress: called with 0..1 a few times a second; returning False cancels.

        Returns:
            The label map, uint8, of the volume's shape.

        Raises:
            Cancelled: `on_progress` returned False.
            ServerError: the server's sentence.
        """
        body = {"prompts": [p.to_json() for p in prompts], "axis": axis, "window": window, "first": first, "last": last}
        job = self._on_volume("jobs", **body)["job"]
        path = f"/sessions/{self._session}/jobs/{job}"
        while True:
            state = self.client.ask("GET", path)
            if state["status"] == "done":
                return self.client.labels(str(self._session), job)
            if state["status"] == "failed":
                raise ServerError(state["message"])
            if state["status"] == "cancelled":
                raise Cancelled
            if not on_progress(state["progress"]):
                self.client.ask("DELETE", path)
                raise Cancelled
            time.sleep(POLL_S)

    def close(self) -> None:
        """Delete what the server holds of ours; quiet where the server is gone already."""
        if self._session is not None:
            with contextlib.suppress(ServerError):  # an unreachable server deletes it when the session expires
                self.client.close_session(self._session)
            self._session = None

    def _on_volume(self, what: str, **body: Any) -> dict:
        """Ask about the chosen volume; a session that expired in a lunch break is opened again without a word."""
        self.shape  # noqa: B018 - raises where no volume was chosen
        for is_last_try in (False, True):
            is_new = self._session is None
            if is_new:
                self._session = self.client.open_session()
            try:
                self.client.upload(str(self._session), self._array, sha256=self._sha256)
                request = {"volume": self._sha256, "model": self.model, **body}
                return self.client.ask("POST", f"/sessions/{self._session}/{what}", body=request)
            except ServerError as error:
                if error.status != EXPIRED or is_new or is_last_try:
                    raise
                self._session = None
        raise AssertionError("unreachable")
