"""Who may use the model now: one caller at a time, clicks before background work."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from medsam2_ft.deploy.limits import Refusal


class Turns:
    """A lock around the model that lets a click in between two slices of a running propagation."""

    def __init__(self, *, waiting_clicks: int = 64, patience_s: float = 1.0) -> None:
        """
        Args:
            waiting_clicks: clicks that may wait; one more is refused with 429 instead of piling up.
            patience_s: background work stands back for clicks at most this long, so that it always advances.
        """
        self._condition = threading.Condition()
        self._is_busy = False
        self._waiting = 0
        self._max_waiting = waiting_clicks
        self._patience_s = patience_s

    @contextmanager
    def click(self) -> Iterator[None]:
        """Hold the model for an answer that a person waits for.

        Raises:
            Refusal: 429, too many clicks wait already.
        """
        with self._condition:
            if self._waiting >= self._max_waiting:
                raise Refusal(429, "The model is busy with many requests; try again in a moment.")
            self._waiting += 1
            try:
                self._condition.wait_for(lambda: not self._is_busy)
            finally:
                self._waiting -= 1
            self._is_busy = True
        yield from self._release()

    @contextmanager
    def background(self) -> Iterator[None]:
        """Hold the model for one step of long work, after the clicks that wait."""
        with self._condition:
            self._condition.wait_for(lambda: not self._is_busy and not self._waiting, timeout=self._patience_s)
            self._condition.wait_for(lambda: not self._is_busy)
            self._is_busy = True
        yield from self._release()

    def _release(self) -> Iterator[None]:
        try:
            yield
        finally:
            with self._condition:
                self._is_busy = False
                self._condition.notify_all()
