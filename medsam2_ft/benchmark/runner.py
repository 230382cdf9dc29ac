"""Runs a protocol over datasets and models, case by case: resumable, atomic, shared out over processes and GPUs.

OUT/run.json                          protocol, models, versions, hardware: where the numbers come from
OUT/parts/MODEL/DATASET/CASE.csv      rows of one case, written once it is done; what is there is not done again
OUT/masks/MODEL/DATASET/CASE.npz      predicted masks, see `masks.py`
OUT/rows.csv                          all parts together
"""

import multiprocessing
import os
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from medsam2_ft.benchmark.evaluation import evaluate
from medsam2_ft.benchmark.masks import masks_path, save_masks
from medsam2_ft.benchmark.models.adapter import Adapter
from medsam2_ft.benchmark.models.catalogue import open_model, split_spec
from medsam2_ft.benchmark.protocol import Protocol
from medsam2_ft.benchmark.provenance import ModelRecord, Run, dataset_name
from medsam2_ft.benchmark.rows import COLUMNS, FAILED, SKIPPED, Row, read_rows, write_rows
from medsam2_ft.data.case import Case
from medsam2_ft.data.manifest import Record, read_manifest
from medsam2_ft.errors import CheckpointError, ConfigError, DataError, UserError


@dataclass(frozen=True)
class Job:
    """One model on one case.

    Attributes:
        model: as written after `--models`.
        root: dataset folder.
        record: the case's row in its manifest.
        protocol: what to do.
        out: folder of the run.
    """

    model: str
    root: Path
    record: Record
    protocol: Protocol
    out: Path

    @property
    def label(self) -> str:
        """The model's name in rows and folders."""
        return split_spec(self.model)[0]

    @property
    def dataset(self) -> str:
        """The dataset's name in rows and folders."""
        return dataset_name(self.root)

    @property
    def part(self) -> Path:
        """Where the case's rows go."""
        return part_path(self.out, model=self.label, dataset=self.dataset, case=self.record.case)

    def __str__(self) -> str:
        return f"{self.label} {self.dataset}/{self.record.case}"


def run_benchmark(
    protocol: Protocol,
    *,
    roots: Sequence[Path],
    models: Sequence[str],
    out: Path,
    split: str = "test",
    limit: int = 0,
    devices: Sequence[str] = ("auto",),
    workers: int = 1,
) -> pd.DataFrame:
    """Run every model on every case that is not done yet, and write `rows.csv`.

    Args:
        protocol: what to prompt and how.
        roots: prepared dataset folders.
        models: as written after `--models`.
        out: folder of the run; an earlier run of the same protocol and split is continued, also with more datasets or
            models.
        split: train, val, test or all.
        limit: take the first so many cases of each dataset; 0 takes all.
        devices: shared out over the workers in turn.
        workers: processes; 1 works in this one.

    Returns:
        The rows.

    Raises:
        DataError: if no case takes part.
        CheckpointError: if no model at all could be opened.
        ConfigError: for an unknown model, datasets of one name, or if `out` holds a run of another protocol or split.
    """
    labels = [split_spec(model)[0] for model in models]
    if twice := [label for label, count in Counter(labels).items() if count > 1]:
        raise UserError(f"two models are called '{twice[0]}': name them apart, as LABEL=PATH")
    cases = _cases(roots, split, limit)
    run = Run.open(out, protocol, roots=roots, split=split)
    jobs: list[Job] = []
    opened = 0
    for model in models:
        record = _try_model(model, devices[0], keep_open=workers == 1)
        run.add(record)
        if record.reason:
            tqdm.write(f"{record.name}: left out, {record.reason}")
            continue
        opened += 1
        wanted = [Job(model, root, case, protocol, out) for root, case in cases]
        jobs += [job for job in wanted if not _is_done(job, record.checkpoint_sha256)]
    try:
        _work(jobs, devices, workers)
    finally:
        table = collect(out, run)
    run.close(table)
    if not opened:
        raise CheckpointError(f"none of the models could be opened, so nothing was measured: {', '.join(models)}")
    return table


def part_path(out: Path, *, model: str, dataset: str, case: str) -> Path:
    """Where a run keeps a model's rows of a case."""
    return out / "parts" / model / dataset / f"{case}.csv"


def collect(out: Path, run: Run) -> pd.DataFrame:
    """Put all parts of a run together into `rows.csv`, with a row for each model that could not be opened."""
    parts = [read_rows(path) for path in sorted((out / "parts").glob("*/*/*.csv"))]
    lost = [
        Row(model.name, "", run.protocol["name"], "", "", "", "", status=FAILED, reason=model.reason)
        for model in run.models
        if model.reason
    ]
    if lost:
        parts.append(pd.DataFrame([vars(row) for row in lost]))
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)
    write_rows(out / "rows.csv", table)
    return read_rows(out / "rows.csv")


def _cases(roots: Sequence[Path], split: str, limit: int) -> list[tuple[Path, Record]]:
    chosen: list[tuple[Path, Record]] = []
    for root in roots:
        records = [record for record in read_manifest(root) if split in ("all", record.split)]
        chosen += [(root, record) for record in records[: limit or None]]
    if not chosen:
        raise DataError(f"no case of the split '{split}' in {', '.join(map(str, roots))}: try --split all")
    return chosen


def _try_model(model: str, device: str, *, keep_open: bool) -> ModelRecord:
    """Open a model to learn what it is; one that cannot be opened is recorded, so that the others still run."""
    label = split_spec(model)[0]
    try:
        adapter = _opened(model, device) if keep_open else open_model(model, device=device)
    except ConfigError:  # a device that is not there, which is no model's fault
        raise
    except Exception as error:
        return ModelRecord(label, model, reason=_told(error))
    return ModelRecord(label, model, adapter.checkpoint_sha256, adapter.num_parameters, adapter.licence)


def _is_done(job: Job, checkpoint_sha256: str) -> bool:
    """Whether a part exists that belongs to these weights and this version of the case, and did not fail."""
    case_file = job.root / job.record.file
    if not job.part.is_file() or (case_file.is_file() and case_file.stat().st_mtime > job.part.stat().st_mtime):
        return False
    rows = read_rows(job.part)
    return bool((rows["checkpoint_sha256"] == checkpoint_sha256).all() and (rows["status"] != FAILED).all())


def _work(jobs: Sequence[Job], devices: Sequence[str], workers: int) -> None:
    with tqdm(total=len(jobs), unit="case", disable=not jobs, desc="benchmark") as bar:
        for label, reason in _finished(jobs, devices, workers):
            bar.set_postfix_str(label)
            bar.update()
            if reason:
                tqdm.write(f"{label}: {reason}")


def _finished(jobs: Sequence[Job], devices: Sequence[str], workers: int) -> Iterable[tuple[str, str]]:
    if workers <= 1:
        yield from (_do(job, devices[0]) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    queue = context.Queue()
    for number in range(workers):
        queue.put(devices[number % len(devices)])
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_join, initargs=(queue, threads)) as pool:
        futures = [pool.submit(_do, job) for job in jobs]
        yield from (future.result() for future in as_completed(futures))


_device = "auto"


def _join(queue: "multiprocessing.Queue[str]", threads: int) -> None:
    """Start a worker: take a device, and no more threads than its share."""
    import torch

    global _device
    _device = queue.get()
    torch.set_num_threads(threads)
    if _device.startswith("cuda:"):
        torch.cuda.set_device(_device)


@lru_cache(maxsize=2)  # the model under test, and the one that draws its first masks
def _opened(model: str, device: str) -> Adapter:
    return open_model(model, device=device)


def _do(job: Job, device: str | None = None) -> tuple[str, str]:
    """Run one job and write its part and masks; whatever goes wrong becomes a row. Returns (what, reason or "")."""
    where, checkpoint_sha256 = device or _device, ""
    try:
        adapter = _opened(job.model, where)
        checkpoint_sha256 = adapter.checkpoint_sha256
        case = Case.load(job.root / job.record.file)
        if case.kind not in job.protocol.kinds:
            reason = f"{case.kind}s take no part in {job.protocol.name}"
            return str(job), _give_up(job, checkpoint_sha256, SKIPPED, reason)
        outcome = evaluate(
            case,
            adapter,
            job.protocol,
            dataset=job.dataset,
            initial_model=lambda: _opened(job.protocol.initial_mask, where),
        )
    except Exception as error:
        return str(job), _give_up(job, checkpoint_sha256, FAILED, _told(error))
    for row in outcome.rows:
        row.case, row.patient, row.modality = job.record.case, job.record.patient, job.record.modality or row.modality
    if outcome.masks:
        save_masks(masks_path(job.out, model=job.label, dataset=job.dataset, case=job.record.case), outcome.masks)
    write_rows(job.part, outcome.rows)
    return str(job), ""


def _told(error: Exception) -> str:
    """An error in one line; one that no user can mend also with its type and place."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UserError):
        return reason
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {reason} ({Path(frame.filename).name}:{frame.lineno})"


def _give_up(job: Job, checkpoint_sha256: str, status: str, reason: str) -> str:
    row = Row(
        job.label, checkpoint_sha256, job.protocol.name, job.record.modality, job.dataset, job.record.case,
        job.record.patient, status=status, reason=reason,
    )  # fmt: skip
    write_rows(job.part, [row])
    return reason if status == FAILED else ""
