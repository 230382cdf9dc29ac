"""What one server may be asked for: sizes, counts and times, all in one place so that a deployment can be read off."""

from dataclasses import dataclass

from medsam2_ft.errors import UserError


@dataclass(frozen=True)
class Limits:
    """Upper bounds that keep a server of clinicians' clients small and alive for days."""

    upload_bytes: int = 1 << 30
    """Compressed bytes of one upload."""
    request_bytes: int = 32 << 20
    """Body of any other request."""
    volume_bytes: int = 2 << 30
    """Uncompressed bytes of one volume: a gzip bomb ends here."""
    stored_bytes: int = 16 << 30
    """Uncompressed bytes of all volumes on disk; results, which compress well, come on top."""
    side: int = 4096
    """Longest axis of a volume, in voxels."""
    sessions: int = 128
    volumes_per_session: int = 8
    jobs_per_session: int = 8
    """Jobs kept for one session, finished ones included; the oldest finished one gives way."""
    queued_jobs: int = 32
    """Jobs that wait for the model, over all sessions."""
    waiting_clicks: int = 64
    """Slice requests that wait for the model, over all sessions."""
    session_idle_s: float = 1800.0
    """A session that sends nothing for so long is closed, and its volumes are deleted."""
    job_poll_s: float = 120.0
    """A job whose client has not asked for its status for so long is cancelled: the client is gone."""
    embeddings: int = 24
    """Slice embeddings kept; about 16 MB each at 1024 pixels."""
    prepared_bytes: int = 1 << 30
    """uint8 copies of volumes kept in memory after intensity preparation."""
    loaded_models: int = 2


class Refusal(UserError):
    """A request that is answered with an HTTP status of 400 or above and one sentence.

    Attributes:
        status: the HTTP status code.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
