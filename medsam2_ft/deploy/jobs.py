"""Long work in the background: one worker, first come first served, with status, progress and cancel."""

import logging
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path

from medsam2_ft.deploy.limits import Limits, Refusal
from medsam2_ft.errors import UserError

log = logging.getLogger(__name__)


class JobStatus(str, Enum):
    """Where a job stands; the last three are final."""

    queued = "queued"
    running = "running"
    done = "done"
    failed = "failed"
    cancelled = "cancelled"


class JobCancelled(Exception):
    """Raised inside a job's work at its next report once somebody cancelled it."""


@dataclass
class Job:
    """One piece of background work and the file that it leaves."""

    work: "Callable[[Job], None]"
    result: Path
    """Where `work` writes its answer; exists once the status is done."""
    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    status: JobStatus = JobStatus.queued
    progress: float = 0.0
    """0 to 1."""
    message: str = ""
    """Why it failed, in one sentence."""
    is_cancel_asked: bool = False
    last_poll: float = field(default_factory=time.monotonic)

    @property
    def is_final(self) -> bool:
        """True once nothing more will happen to this job."""
        return self.status in (JobStatus.done, JobStatus.failed, JobStatus.cancelled)

    def run(self) -> None:
        """Do the work."""
        self.status = JobStatus.running
        self.report(0.0)
        self.work(self)
        self.report(1.0)

    def report(self, progress: float) -> None:
        """Called by the work between steps.

        Raises:
            JobCancelled: somebody asked for the work to end.
        """
        self.progress = min(max(progress, 0.0), 1.0)
        if self.is_cancel_asked:
            raise JobCancelled

    def settle(self, future: "Future[None]") -> None:
        """Take the final status from how the work ended; only a done job leaves a result."""
        error = None if future.cancelled() else future.exception()
        if future.cancelled() or isinstance(error, JobCancelled):
            self.status = JobStatus.cancelled
        elif error is None:
            self.status = JobStatus.done
            return
        else:
            self.message = "The server failed on this job; its log has the details."
            if isinstance(error, UserError):
                self.message = str(error)
            else:
                log.error("job failed", exc_info=error)
            self.status = JobStatus.failed
        self.result.unlink(missing_ok=True)


class JobQueue:
    """Runs jobs one after another in one thread: there is one model, and its clicks go first anyway."""

    def __init__(self, *, limits: Limits) -> None:
        self._limits = limits
        self._pending: dict[str, tuple[Job, Future[None]]] = {}
        self._lock = threading.RLock()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="jobs")

    def submit(self, job: Job) -> None:
        """Queue the job.

        Raises:
            Refusal: 429, the queue is full.
        """
        with self._lock:
            if len(self._pending) > self._limits.queued_jobs:
                raise Refusal(429, "Too many propagations are waiting; try again when one has finished.")
            future = self._executor.submit(job.run)
            self._pending[job.id] = (job, future)
        future.add_done_callback(partial(self._settle, job))

    def cancel(self, job: Job) -> None:
        """End the job at its next report, or at once where it has not started; final jobs stay as they are."""
        job.is_cancel_asked = True
        _, future = self._pending.get(job.id, (job, None))
        if future is not None:
            future.cancel()

    def cancel_abandoned(self) -> None:
        """Cancel the jobs that nobody has asked about for `Limits.job_poll_s`."""
        oldest = time.monotonic() - self._limits.job_poll_s
        for job in self._jobs():
            if job.last_poll < oldest:
                log.info("job %s is cancelled: its client stopped asking", job.id[:4])
                self.cancel(job)

    def close(self) -> None:
        """Cancel everything and wait for the worker to end."""
        for job in self._jobs():
            self.cancel(job)
        self._executor.shutdown()

    def __len__(self) -> int:
        return len(self._pending)

    def _jobs(self) -> list[Job]:
        with self._lock:
            return [job for job, _ in self._pending.values()]

    def _settle(self, job: Job, future: "Future[None]") -> None:
        job.settle(future)
        with self._lock:
            self._pending.pop(job.id, None)
