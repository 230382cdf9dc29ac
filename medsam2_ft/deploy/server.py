"""The local HTTP server: volumes are uploaded once, clicks are small requests, propagations are jobs.

Every refusal is a proper status code with `{"detail": "one sentence"}`. Arrays go up and down as gzip-compressed .npy
bytes; masks of one slice travel inside JSON (`messages.encode_mask`). Nothing a client sends is ever used as a path.
"""

import asyncio
import contextlib
import gzip
import logging
import secrets
import tempfile
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from anyio import to_thread
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from starlette.requests import ClientDisconnect

from medsam2_ft import __version__
from medsam2_ft.deploy import messages as m
from medsam2_ft.deploy.access import BodyLimit, guard
from medsam2_ft.deploy.engine import Engine, View, check_prompts, serving_recipe
from medsam2_ft.deploy.jobs import Job, JobQueue, JobStatus
from medsam2_ft.deploy.limits import Limits, Refusal
from medsam2_ft.deploy.sessions import Session, Sessions
from medsam2_ft.deploy.volume_store import VolumeStore
from medsam2_ft.errors import UserError

log = logging.getLogger(__name__)

ARRAY_TYPE = "application/gzip"
JANITOR_S = 5.0
SPARE_THREADS = 32
PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": m.Problem} for code in (400, 401, 404, 409, 411, 413, 415, 421, 422, 429)
}
router = APIRouter(responses=PROBLEMS)


class Desk:
    """What the request handlers work with: the engine and everything that clients own."""

    def __init__(self, engine: Engine, folder: Path, limits: Limits) -> None:
        self.engine = engine
        self.folder = folder
        self.limits = limits
        self.store = VolumeStore(folder, limits=limits)
        self.jobs = JobQueue(limits=limits)
        self.sessions = Sessions(self.store, self.jobs, limits=limits, on_volume_gone=engine.forget)

    def shape(self, session: Session, request: m.SliceRequest) -> tuple[int, int, int]:
        """(T, H, W) of the slices that a request is about."""
        axes = list(self.store.open(session.volume(request.volume)).shape[:3])
        num_slices = axes.pop(request.axis)
        return num_slices, axes[0], axes[1]

    def view(self, session: Session, request: m.SliceRequest) -> View:
        """The pixels that a request is about, prepared as the checkpoint wants them."""
        sha256 = session.volume(request.volume)
        array = self.store.open(sha256)
        recipe = serving_recipe(self.engine.recipe(request.model), dtype=array.dtype, window=request.window)
        return self.engine.prepare(array, key=sha256, recipe=recipe, axis=request.axis)


def create_app(
    engine: Engine, *, limits: Limits | None = None, api_key: str | None = None, is_local: bool = True
) -> FastAPI:
    """The application; `commands.serve` runs it under uvicorn.

    Args:
        engine: the model.
        limits: sizes, counts and times.
        api_key: what clients must send as `X-API-Key`; None for none.
        is_local: the server is bound to loopback, so that other host names are refused.
    """
    limits = limits or Limits()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with tempfile.TemporaryDirectory(prefix="medsam2_ft-", ignore_cleanup_errors=True) as folder:
            app.state.desk = desk = Desk(engine, Path(folder), limits)
            # Clicks that wait for the model hold a thread each; uploads, polls and cancels must not wait behind them.
            to_thread.current_default_thread_limiter().total_tokens = limits.waiting_clicks + SPARE_THREADS
            janitor = asyncio.create_task(_keep_clean(desk))
            yield
            janitor.cancel()
            await run_in_threadpool(desk.jobs.close)

    app = FastAPI(title="medsam2_ft", version=__version__, description=__doc__, lifespan=lifespan)
    app.include_router(router)
    app.add_exception_handler(UserError, _tell_user_error)
    app.add_exception_handler(RequestValidationError, _tell_validation_error)
    app.add_exception_handler(ClientDisconnect, _tell_nobody)
    app.add_middleware(BodyLimit, limit=limits.request_bytes)
    guard(app, api_key=api_key, is_local=is_local)
    return app


async def _keep_clean(desk: Desk) -> None:
    while True:
        await asyncio.sleep(JANITOR_S)
        await run_in_threadpool(desk.sessions.expire)


async def _tell_user_error(request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, Refusal) else 422
    return JSONResponse({"detail": str(error)}, status_code=status)


async def _tell_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return JSONResponse({"detail": f"The request's {where or 'body'} is wrong: {first['msg']}."}, status_code=422)


async def _tell_nobody(request: Request, error: Exception) -> Response:
    """A client that hangs up in the middle of an upload is no fault of the server's, and fills no log."""
    return Response(status_code=400)


async def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


async def _session(session: str, desk: Annotated[Desk, Depends(_desk)]) -> Session:
    return desk.sessions.get(session)


DeskOf = Annotated[Desk, Depends(_desk)]
SessionOf = Annotated[Session, Depends(_session)]


@router.get("/healthz")
async def healthz(desk: DeskOf) -> m.Health:
    """That the server lives, and how busy it is; needs no key."""
    return m.Health(
        status="ok",
        version=__version__,
        sessions=len(desk.sessions),
        jobs=len(desk.jobs),
        stored_mib=desk.store.stored_bytes >> 20,
    )


@router.get("/models")
def models(desk: DeskOf) -> m.Models:
    """The checkpoints to choose from."""
    return m.Models(models=list(desk.engine.checkpoints), default=desk.engine.default)


@router.post("/sessions", status_code=201)
def open_session(desk: DeskOf) -> m.SessionOpened:
    """Open a session; everything a client sends or makes belongs to one."""
    return m.SessionOpened(session=desk.sessions.open().id, idle_seconds=desk.limits.session_idle_s)


@router.delete("/sessions/{session}", status_code=204)
def close_session(desk: DeskOf, session: SessionOf) -> None:
    """Close the session: its jobs are cancelled, its volumes and results deleted."""
    desk.sessions.close(session)


@router.put(
    "/sessions/{session}/volumes/{volume}",
    status_code=201,
    openapi_extra={
        "requestBody": {"required": True, "content": {ARRAY_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
    },
)
async def upload_volume(desk: DeskOf, session: SessionOf, volume: m.Sha256, request: Request) -> m.VolumeKept:
    """Upload a volume once: gzip of .npy bytes, whose sha256 is the name; sent again it is kept once."""
    if volume not in session.volumes:
        upload = desk.folder / f"{secrets.token_hex(16)}.upload"
        try:
            await _receive(request, upload, limit=desk.limits.upload_bytes)
            await run_in_threadpool(desk.sessions.add_volume, session, upload, sha256=volume)
        finally:
            upload.unlink(missing_ok=True)
    return get_volume(desk, session, volume)


async def _receive(request: Request, target: Path, *, limit: int) -> None:
    """Write the body to disk as it comes, and stop at the limit whatever its headers said."""
    too_large = Refusal(413, f"The upload is larger than {limit >> 20} MiB compressed.")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    total = 0
    with target.open("wb") as sink:
        async for chunk in request.stream():
            total += len(chunk)
            if total > limit:
                raise too_large
            await run_in_threadpool(sink.write, chunk)


@router.get("/sessions/{session}/volumes/{volume}")
def get_volume(desk: DeskOf, session: SessionOf, volume: m.Sha256) -> m.VolumeKept:
    """Whether the session holds this volume, so that it need not be sent again."""
    array = desk.store.open(session.volume(volume))
    return m.VolumeKept(volume=volume, shape=list(array.shape), dtype=str(array.dtype))


@router.delete("/sessions/{session}/volumes/{volume}", status_code=204)
def delete_volume(desk: DeskOf, session: SessionOf, volume: m.Sha256) -> None:
    """Forget one volume."""
    desk.sessions.delete_volume(session, volume)


@router.post("/sessions/{session}/embeddings", status_code=204)
def embed(desk: DeskOf, session: SessionOf, body: m.EmbedRequest) -> None:
    """Compute the slice that the user looks at ahead of the first click; without `wait` only if nothing else is read ahead."""
    num_slices = desk.shape(session, body)[0]
    if body.slice >= num_slices:
        raise Refusal(422, f"Slice {body.slice} does not exist; this axis has slices 0 to {num_slices - 1}.")
    if body.wait:
        desk.engine.embed(desk.view(session, body), body.slice, model=body.model)
    else:
        desk.engine.embed_soon(partial(desk.view, session, body), body.slice, model=body.model)


@router.post("/sessions/{session}/masks")
def segment_slice(desk: DeskOf, session: SessionOf, body: m.MasksRequest) -> m.Masks:
    """Masks of all prompted objects of one slice, at once."""
    if len({prompt.slice for prompt in body.prompts}) > 1:
        raise Refusal(422, "All prompts of this request must lie on one slice; use a job for several.")
    view = desk.view(session, body)
    _, height, width = view.shape
    prompts = [prompt.to_prompt(height, width) for prompt in body.prompts]
    answer = desk.engine.segment_slice(view, prompts, model=body.model)
    masks = [
        m.ObjectMask(object=prompt.object_id, iou=float(iou), mask=m.encode_mask(mask))
        for prompt, iou, mask in zip(prompts, answer.iou_N, answer.masks_NHW, strict=True)
    ]
    return m.Masks(height=height, width=width, masks=masks)


@router.post("/sessions/{session}/jobs", status_code=202)
def start_job(desk: DeskOf, session: SessionOf, body: m.JobRequest) -> m.JobState:
    """Carry the prompted objects through the volume, both ways; ask for its status, then fetch its labels."""
    # A queued job holds its prompts, not its pixels: those are prepared when its turn comes.
    shape = desk.shape(session, body)
    prompts = [prompt.to_prompt(*shape[1:]) for prompt in body.prompts]
    check_prompts(shape, prompts)
    high = shape[0] if body.last is None else body.last + 1

    def work(job: Job) -> None:
        view = desk.view(session, body)
        labels = np.zeros(shape, np.uint8)
        for progress, index, masks in desk.engine.track(view, prompts, model=body.model, low=body.first, high=high):
            for object_id, mask in masks.items():
                labels[index][mask] = object_id
            job.report(progress)
        with gzip.open(job.result, "wb", compresslevel=1) as sink:
            np.save(sink, np.moveaxis(labels, 0, body.axis), allow_pickle=False)

    job = Job(work, desk.folder / f"{secrets.token_hex(16)}.labels.npy.gz")
    desk.sessions.add_job(session, job)
    return _state(job)


@router.get("/sessions/{session}/jobs/{job}")
def job_state(session: SessionOf, job: str) -> m.JobState:
    """Status and progress; a job that nobody asks about for a while is cancelled."""
    return _state(session.job(job))


@router.delete("/sessions/{session}/jobs/{job}", status_code=202)
def cancel_job(desk: DeskOf, session: SessionOf, job: str) -> m.JobState:
    """Ask the job to end; it does so after the slice in hand."""
    found = session.job(job)
    desk.jobs.cancel(found)
    return _state(found)


@router.get("/sessions/{session}/jobs/{job}/labels", response_class=FileResponse)
def job_labels(session: SessionOf, job: str) -> FileResponse:
    """The label map of a finished job: gzip of .npy bytes, uint8, on the grid and axis order of the uploaded volume."""
    found = session.job(job)
    if found.status is not JobStatus.done:
        raise Refusal(
            409, f"The job is {found.status.value}; only a job that is done has labels. {found.message}".strip()
        )
    return FileResponse(found.result, media_type=ARRAY_TYPE)


def _state(job: Job) -> m.JobState:
    return m.JobState(job=job.id, status=job.status.value, progress=job.progress, message=job.message)
