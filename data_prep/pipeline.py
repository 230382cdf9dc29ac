"""Runs a preparation over all sources: in parallel, resumable, one bad file at a time."""

import argparse
import csv
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import joblib
from tqdm import tqdm

from data_prep.pairing import Pairs, Source
from medsam2_ft.data.case import Case
from medsam2_ft.data.fingerprint import fingerprint_of, sha256_of
from medsam2_ft.data.manifest import MANIFEST, Record, normalise_modality, read_manifest, write_manifest
from medsam2_ft.data.npz import read_arrays
from medsam2_ft.data.splits import PatientRule, assign_splits, check_leaks, parse_split
from medsam2_ft.errors import DataError, UserError

Settings = dict[str, Any]
"""Everything that decides what cases look like, in json-ready types: it crosses process borders and is hashed."""
Prepare = Callable[[Source, Settings], Case]
BACKENDS = ("auto", "threading", "loky", "dask", "ray")
_FEW_CASES = 200
"""Up to here threads are faster than processes, each of which has to import torch and MONAI first."""
_RULE = "split.json"
"""Beside the manifest: the rule that made its split."""
VERSION = 1
"""Raised when the same settings start to give other cases."""


@dataclass(frozen=True)
class Outcome:
    """What became of one source."""

    name: str
    source: str
    record: Record | None = None
    reason: str = ""
    is_new: bool = True
    notes: tuple[str, ...] = field(default=())


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that all preparing commands share."""
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--masks", type=Path, required=True, help="folder of masks, named like the images")
    parser.add_argument("--out", type=Path, required=True, help="dataset folder to make or extend")
    parser.add_argument("--modality", required=True, help="CT MR PET Ultrasound X-ray Dermoscopy Endoscopy Fundus ...")
    parser.add_argument("--image-suffix", help="what follows the case name in image names, as in _0000.nii.gz")
    parser.add_argument("--mask-suffix", help="what follows the case name in mask names, as in _seg.nii.gz")
    parser.add_argument("--prefix", default="", help="put before case names, to tell datasets in one folder apart")
    parser.add_argument("--split", nargs="+", default=["0.8", "0.1", "0.1"], help="shares of train val test, or a csv")
    parser.add_argument("--group-by", help="patient of a case: regex on its name (first group), or FILE.csv:COLUMN")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split")
    parser.add_argument("--workers", type=int, default=-1, help="parallel workers; -1 for one a core")
    parser.add_argument("--backend", default="auto", choices=BACKENDS, help="joblib engine; auto picks threads or loky")
    parser.add_argument("--force", action="store_true", help="redo cases that are done already")


def base_settings(args: argparse.Namespace) -> Settings:
    """The shared options that change what a case looks like."""
    return {"version": VERSION, "modality": normalise_modality(args.modality)}


def run(args: argparse.Namespace, pairs: Pairs, prepare: Prepare, settings: Settings) -> int:
    """Prepare all sources and write manifest, rejections and summary.

    Args:
        args: the shared options.
        pairs: what to do, and what was left aside.
        prepare: makes one case; a module-level function, because it is sent to workers.
        settings: sent along, and part of each case's fingerprint.

    Returns:
        0, or 1 when something was rejected.

    Raises:
        DataError: if nothing came through, or the split leaks.
    """
    start = time.perf_counter()
    patient_of = PatientRule(args.group_by)
    split = parse_split(args.split)
    sources = [
        replace(source, name=args.prefix + source.name, patient=patient_of(source.name)) for source in pairs.sources
    ]
    _check_names(args.out, sources)
    outcomes = list(_outcomes(args, sources, prepare, settings))
    outcomes.sort(key=lambda outcome: outcome.name)
    rejected = [outcome for outcome in outcomes if outcome.record is None]
    done = [outcome.record for outcome in outcomes if outcome.record is not None]
    _write_rejected(args.out, rejected)
    if not done:
        raise DataError(f"All {len(rejected)} cases were rejected; the first, {rejected[0].name}: {rejected[0].reason}")
    records = _place(_other_records(args.out, {source.name for source in sources}) + done, split, args)
    check_leaks(records)
    write_manifest(args.out, records)
    _summarise(args.out, pairs, outcomes, records, seconds=time.perf_counter() - start)
    return 1 if rejected else 0


def _outcomes(
    args: argparse.Namespace, sources: list[Source], prepare: Prepare, settings: Settings
) -> Iterator[Outcome]:
    jobs = [joblib.delayed(prepare_one)(prepare, source, settings, args.out, args.force) for source in sources]
    backend = args.backend if args.backend != "auto" else "threading" if len(jobs) <= _FEW_CASES else "loky"
    with _engine(backend):
        # Dask and Ray bring their own workers and hand back whole batches.
        is_local = backend in ("threading", "loky")
        run_all = joblib.Parallel(
            n_jobs=args.workers if is_local else -1, return_as="generator_unordered" if is_local else "list"
        )
        yield from tqdm(run_all(jobs), total=len(jobs), desc="prepare", unit="case")


def _engine(backend: str) -> Any:
    if backend == "dask":
        try:
            from dask.distributed import Client, get_client
        except ImportError:
            raise DataError("--backend dask needs: pip install 'medsam2-ft[dask]'.") from None
        try:
            get_client()
        except ValueError:
            # Reads DASK_SCHEDULER_ADDRESS, so the same command runs on an existing cluster.
            Client(set_as_default=True)
    if backend == "ray":
        try:
            from ray.util.joblib import register_ray
        except ImportError:
            raise DataError("--backend ray needs: pip install ray.") from None
        register_ray()
    return joblib.parallel_config(backend=backend)


def prepare_one(prepare: Prepare, source: Source, settings: Settings, out: Path, force: bool) -> Outcome:
    """Make one case, or find it made already; a bad input becomes an `Outcome` with a reason."""
    file = Path("cases") / f"{source.name}.npz"
    try:
        image_hash = sha256_of(source.image)
        masks = [f"{region}={sha256_of(path)}" for path, region in source.masks]
        fingerprint = fingerprint_of([image_hash, *masks, source.patient], settings)
        if not force and _is_done(out / file, fingerprint):
            return _accept(Case.load(out / file), source, file, is_new=False)
        case = prepare(source, settings)
        case = replace(
            case,
            name=source.name,
            patient=source.patient,
            modality=settings["modality"],
            source=str(source.image),
            source_sha256=image_hash,
            fingerprint=fingerprint,
        )
        case.save(out / file)
        return _accept(case, source, file, is_new=True)
    except (UserError, OSError) as error:
        # OSError: a file that may not be read, or a disk that is full.
        return Outcome(name=source.name, source=str(source.image), reason=str(error))


def _is_done(path: Path, fingerprint: str) -> bool:
    if not path.is_file():
        return False
    try:
        stored = read_arrays(path, only=("fingerprint",)).get("fingerprint")
    except DataError:
        return False
    return stored is not None and str(stored) == fingerprint


def _accept(case: Case, source: Source, file: Path, *, is_new: bool) -> Outcome:
    present = {name for name, _ in case.objects()}
    notes = () if present else ("masks are empty",)
    record = Record(
        case=case.name,
        file=file.as_posix(),
        modality=case.modality,
        split="",
        patient=case.patient,
        labels={name: ids for name, ids in case.labels.items() if name in present},
        shape=case.shape,
        spacing=case.spacing_mm,
        source=case.source,
        sha256=case.source_sha256,
    )
    return Outcome(name=case.name, source=str(source.image), record=record, is_new=is_new, notes=notes)


def _check_names(out: Path, sources: list[Source]) -> None:
    """Two datasets in one folder must not overwrite each other's cases."""
    if not (out / MANIFEST).is_file():
        return
    known = {record.case: record.source for record in read_manifest(out)}
    for source in sources:
        if source.name in known and known[source.name] != str(source.image):
            raise DataError(
                f"{out} already has a case '{source.name}', made from {known[source.name]}; "
                "give this dataset a --prefix or another --out."
            )


def _other_records(out: Path, names: set[str]) -> list[Record]:
    if not (out / MANIFEST).is_file():
        return []
    return [record for record in read_manifest(out) if record.case not in names and (out / record.file).is_file()]


def _place(records: list[Record], split: list[float] | dict[str, str], args: argparse.Namespace) -> list[Record]:
    """Give every record its split; who was placed by the same rule before stays there."""
    records = sorted(records, key=lambda record: record.case)
    if isinstance(split, dict):
        missing = [record.case for record in records if record.case not in split and record.patient not in split]
        if missing:
            raise DataError(f"The split's csv says nothing of case '{missing[0]}' (and {len(missing) - 1} more).")
        return [replace(record, split=split.get(record.case) or split[record.patient]) for record in records]
    rule = {"shares": split, "seed": args.seed, "group_by": args.group_by}
    chosen = assign_splits(
        (record.patient for record in records),
        fractions=split,
        seed=args.seed,
        existing=_earlier_places(args.out, rule),
    )
    (args.out / _RULE).write_text(json.dumps(rule) + "\n", encoding="utf-8")
    return [replace(record, split=chosen[record.patient]) for record in records]


def _earlier_places(out: Path, rule: dict[str, Any]) -> dict[str, str]:
    """Patient -> split of the last run, if it split by the same rule."""
    stored = out / _RULE
    if not stored.is_file() or not (out / MANIFEST).is_file():
        return {}
    try:
        if json.loads(stored.read_text(encoding="utf-8")) != rule:
            return {}
    except json.JSONDecodeError:
        return {}
    return {record.patient: record.split for record in read_manifest(out)}


def _write_rejected(out: Path, rejected: list[Outcome]) -> None:
    path = out / "rejected.csv"
    path.unlink(missing_ok=True)
    if rejected:
        out.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(("case", "source", "reason"))
            writer.writerows((outcome.name, outcome.source, outcome.reason) for outcome in rejected)


def _summarise(out: Path, pairs: Pairs, outcomes: list[Outcome], records: list[Record], *, seconds: float) -> None:
    done = [outcome for outcome in outcomes if outcome.record is not None]
    mine = [outcome.record for outcome in done if outcome.record is not None]
    slices = sum(record.shape[0] for record in mine)
    kept = sum(not outcome.is_new for outcome in done)
    counts = Counter(name for record in mine for name in record.labels)
    splits = Counter(record.split for record in records)
    print(f"{len(mine)} cases, {slices} slices in {seconds:.1f} s" + (f" ({kept} were done already)" if kept else ""))
    print("labels (cases): " + (", ".join(f"{name} {number}" for name, number in sorted(counts.items())) or "none"))
    print(
        "split: " + ", ".join(f"{name} {splits[name]}" for name in ("train", "val", "test")) + f" -> {out / MANIFEST}"
    )
    for reason, names in pairs.skipped.items():
        print(f"skipped, {reason}: {len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})")
    for note, number in Counter(note for outcome in done for note in outcome.notes).items():
        print(f"note, {note}: {number} cases")
    rejected = [outcome for outcome in outcomes if outcome.record is None]
    for outcome in rejected[:5]:
        print(f"rejected {outcome.name}: {outcome.reason}")
    if rejected:
        print(f"{len(rejected)} rejected, all listed in {out / 'rejected.csv'}")
