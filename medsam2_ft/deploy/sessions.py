"""What one client owns on the server: its volumes and jobs, reachable only through an unguessable session id."""

import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from medsam2_ft.deploy.jobs import Job, JobQueue
from medsam2_ft.deploy.limits import Limits, Refusal
from medsam2_ft.deploy.volume_store import VolumeStore

log = logging.getLogger(__name__)


@dataclass
class Session:
    """One client's belongings; no object of one session can be named from another."""

    id: str
    last_seen: float
    volumes: set[str] = field(default_factory=set)
    jobs: dict[str, Job] = field(default_factory=dict)

    def volume(self, sha256: str) -> str:
        """The same sha256, once this session is known to hold it.

        Raises:
            Refusal: 404.
        """
        if sha256 not in self.volumes:
            raise Refusal(404, "This session holds no such volume; upload it first.")
        return sha256

    def job(self, job_id: str) -> Job:
        """The job, marked as asked about.

        Raises:
            Refusal: 404.
        """
        if job_id not in self.jobs:
            raise Refusal(404, "This session has no such job.")
        job = self.jobs[job_id]
        job.last_poll = time.monotonic()
        return job


class Sessions:
    """All open sessions, and what happens when one ends."""

    def __init__(
        self,
        store: VolumeStore,
        jobs: JobQueue,
        *,
        limits: Limits,
        on_volume_gone: Callable[[str], None] = lambda sha256: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            on_volume_gone: called with the sha256 of a volume that no session holds any more, to drop caches of it.
            clock: seconds; tests replace it.
        """
        self._store = store
        self._jobs = jobs
        self._limits = limits
        self._on_volume_gone = on_volume_gone
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self) -> Session:
        """A new session.

        Raises:
            Refusal: 429, as many as allowed are open.
        """
        with self._lock:
            if len(self._sessions) >= self._limits.sessions:
                raise Refusal(429, "As many sessions as this server allows are open; try again later.")
            session = Session(secrets.token_urlsafe(24), self._clock())
            self._sessions[session.id] = session
            return session

    def get(self, session_id: str) -> Session:
        """The session, marked as seen now.

        Raises:
            Refusal: 404, never opened, closed or expired.
        """
        with self._lock:
            session = self._sessions.get(session_id)
            if session is None:
                raise Refusal(404, "This session does not exist or has expired; open a new one.")
            session.last_seen = self._clock()
            return session

    def add_volume(self, session: Session, upload: Path, *, sha256: str) -> None:
        """Keep an uploaded volume for the session.

        Raises:
            Refusal: as `VolumeStore.add`, or 429 when the session holds as many as allowed.
        """
        if len(session.volumes) >= self._limits.volumes_per_session:
            raise Refusal(429, "This session holds as many volumes as allowed; delete one first.")
        self._store.add(upload, sha256=sha256)
        with self._lock:
            if session.id not in self._sessions or sha256 in session.volumes:
                self._release(sha256)  # closed, or sent twice, while this upload was on its way
            else:
                session.volumes.add(sha256)

    def delete_volume(self, session: Session, sha256: str) -> None:
        """Forget one volume of the session."""
        with self._lock:
            session.volumes.discard(session.volume(sha256))
            self._release(sha256)

    def add_job(self, session: Session, job: Job) -> None:
        """Queue a job for the session; its oldest finished job gives way where there are too many.

        Raises:
            Refusal: 429.
        """
        with self._lock:
            if len(session.jobs) >= self._limits.jobs_per_session:
                finished = next((old for old in session.jobs.values() if old.is_final), None)
                if finished is None:
                    raise Refusal(429, "This session has as many propagations running or waiting as allowed.")
                finished.result.unlink(missing_ok=True)
                del session.jobs[finished.id]
            self._jobs.submit(job)
            session.jobs[job.id] = job

    def close(self, session: Session) -> None:
        """Cancel its jobs, delete its results and volumes, and forget the session."""
        with self._lock:
            if self._sessions.pop(session.id, None) is None:
                return
            for job in session.jobs.values():
                self._jobs.cancel(job)
                job.result.unlink(missing_ok=True)
            for sha256 in session.volumes:
                self._release(sha256)

    def expire(self) -> None:
        """Close the sessions that have been silent for `Limits.session_idle_s` and cancel abandoned jobs."""
        oldest = self._clock() - self._limits.session_idle_s
        with self._lock:
            idle = [s for s in self._sessions.values() if s.last_seen < oldest]
        for session in idle:
            log.info("session %s expired", session.id[:4])
            self.close(session)
        self._jobs.cancel_abandoned()

    def _release(self, sha256: str) -> None:
        if self._store.release(sha256):
            self._on_volume_gone(sha256)
