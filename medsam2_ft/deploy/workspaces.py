"""Who has what open in the app: one workspace for each browser session and tab, nothing shared, nothing left behind."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from medsam2_ft.deploy.engine import Engine
from medsam2_ft.deploy.workspace import Workspace
from medsam2_ft.errors import UserError
from medsam2_ft.io.volume import Volume

MAX_OPEN = 64
MAX_BYTES = 8 << 30
"""Raw pixels of all open files together, in memory."""
IDLE_S = 3600.0
JANITOR_S = 60.0
"""Idle files are looked for this often."""


@dataclass
class Opened:
    """A workspace, its folder for downloads and when it was last used."""

    workspace: Workspace
    folder: Path
    last_used: float = field(default_factory=time.monotonic)


class Workspaces:
    """All open workspaces by (session, tab); those of closed pages and idle ones go, with their files."""

    def __init__(self, engine: Engine, *, max_open: int = MAX_OPEN, idle_s: float = IDLE_S) -> None:
        self.engine = engine
        self._max_open = max_open
        self._idle_s = idle_s
        self._opened: dict[tuple[str, str], Opened] = {}
        self._lock = threading.RLock()
        self._ended = threading.Event()
        threading.Thread(target=self._keep_clean, name="app-janitor", daemon=True).start()

    def __len__(self) -> int:
        return len(self._opened)

    def open(self, session: str, tab: str, volume: Volume) -> Workspace:
        """Start on a file; what the session had open in this tab is closed.

        Raises:
            UserError: too many files are open in the app.
        """
        with self._lock:
            self.close(session, tab)
            self.expire()
            held = sum(opened.workspace.volume.array.nbytes for opened in self._opened.values())
            if len(self._opened) >= self._max_open or held + volume.array.nbytes > MAX_BYTES:
                raise UserError("The app has as many files open as it can hold; try again later.")
            workspace = Workspace(self.engine, volume, key=secrets.token_hex(16))
            folder = Path(tempfile.mkdtemp(prefix="medsam2_ft-app-"))
            self._opened[session, tab] = Opened(workspace, folder)
            return workspace

    def get(self, session: str, tab: str) -> Workspace:
        """What the session has open in this tab.

        Raises:
            UserError: nothing, or it was closed for being idle.
        """
        return self._find(session, tab).workspace

    def folder(self, session: str, tab: str) -> Path:
        """A folder for the downloads of this workspace; it goes when the workspace goes."""
        return self._find(session, tab).folder

    def close(self, session: str, tab: str | None = None) -> None:
        """Close what the session has open, in one tab or all."""
        with self._lock:
            for key in [key for key in self._opened if key[0] == session and tab in (None, key[1])]:
                opened = self._opened.pop(key)
                opened.workspace.close()
                shutil.rmtree(opened.folder, ignore_errors=True)

    def expire(self) -> None:
        """Close what nobody used for a while."""
        oldest = time.monotonic() - self._idle_s
        with self._lock:
            for (session, tab), opened in list(self._opened.items()):
                if opened.last_used < oldest:
                    self.close(session, tab)

    def close_all(self) -> None:
        """Close everything; the app is ending."""
        self._ended.set()
        with self._lock:
            for session, tab in list(self._opened):
                self.close(session, tab)

    def _keep_clean(self) -> None:
        while not self._ended.wait(JANITOR_S):
            self.expire()

    def _find(self, session: str, tab: str) -> Opened:
        with self._lock:
            self.expire()
            opened = self._opened.get((session, tab))
            if opened is None:
                raise UserError("Open a file first (a file that nobody used for an hour is closed).")
            opened.last_used = time.monotonic()
            return opened
