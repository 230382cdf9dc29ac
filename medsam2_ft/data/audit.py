"""Is a prepared dataset fit for training? Every case is opened, measured, and compared with the others.

Errors make a dataset unusable: training refuses it. Warnings are for a person to look at; `card.py` shows them.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import joblib
import numpy as np
from numpy.typing import NDArray

from medsam2_ft.data.case import Case
from medsam2_ft.data.manifest import MANIFEST, Record, read_manifest
from medsam2_ft.data.splits import check_leaks
from medsam2_ft.errors import DataError

VERDICT = "audit.json"
_TRAINING_SIZE = 256
"""Masks are compared at this size in the reference's loss; what is not visible there cannot be learnt from it."""
_OUTLIER = 6.0
"""Robust standard deviations (1.4826 MAD) from which a case counts as an outlier."""
_FEW = 5


@dataclass(frozen=True)
class Finding:
    """Something wrong or odd: `level` is "error" or "warning", `case` is "" for the dataset as a whole."""

    level: str
    case: str
    message: str


@dataclass(frozen=True)
class RegionSize:
    """One region in one case: pixels of its largest slice, voxels, and ml (mm^2 in 2D), nan when spacing is unknown."""

    largest_area_px: int
    voxels: int
    measure: float
    is_visible: bool


@dataclass(frozen=True)
class Measured:
    """What is kept of a case after it was opened."""

    record: Record
    findings: tuple[Finding, ...] = ()
    mean: float = float("nan")
    std: float = float("nan")
    histogram: tuple[int, ...] = ()
    content: str = ""
    regions: dict[str, RegionSize] = field(default_factory=dict)
    thumbnail: bytes = b""


@dataclass(frozen=True)
class Audit:
    """All findings and measures of a dataset."""

    root: Path
    cases: list[Measured]
    findings: list[Finding]

    @property
    def errors(self) -> list[Finding]:
        """The findings that forbid training."""
        return [finding for finding in self.findings if finding.level == "error"]


def audit_dataset(
    root: Path | str, *, workers: int = -1, progress: Callable[[Iterable[Any]], Iterable[Any]] = iter
) -> Audit:
    """Open and check every case, and write the verdict to `audit.json`.

    Args:
        root: dataset folder.
        workers: parallel threads; -1 for one a core.
        progress: wraps the stream of cases, for a progress bar.

    Raises:
        DataError: if there is no dataset.
    """
    root = Path(root)
    records = read_manifest(root)
    jobs = (joblib.delayed(measure_case)(root, record) for record in records)
    # Unpacking and hashing release the interpreter lock, so threads do, and share what is imported.
    stream = joblib.Parallel(n_jobs=workers, prefer="threads", return_as="generator")(jobs)
    cases: list[Measured] = list(progress(stream))
    findings = [finding for case in cases for finding in case.findings]
    findings += _across(cases, root)
    findings.sort(key=lambda finding: (finding.level != "error", finding.case))
    audit = Audit(root=root, cases=cases, findings=findings)
    if (root / MANIFEST).is_file():
        verdict = {"manifest": _manifest_hash(root), "findings": [asdict(finding) for finding in findings]}
        draft = root / f".{VERDICT}.{os.getpid()}"
        draft.write_text(json.dumps(verdict, indent=1), encoding="utf-8")
        draft.replace(root / VERDICT)
    return audit


def require_sound(root: Path | str) -> None:
    """Refuse a dataset with errors; a verdict of an earlier audit of the same manifest is trusted.

    Raises:
        DataError: naming the first error and how to see them all.
    """
    root = Path(root)
    findings = _earlier_findings(root)
    if findings is None:
        findings = audit_dataset(root).findings
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        first = errors[0]
        where = f"case '{first.case}': " if first.case else ""
        raise DataError(
            f"{root} has {len(errors)} error(s), the first: {where}{first.message} See them all with: "
            f"python -m data_prep audit {root}"
        )


def measure_case(root: Path, record: Record) -> Measured:
    """Open one case and check it on its own."""
    findings: list[Finding] = []

    def note(level: str, message: str) -> None:
        findings.append(Finding(level, record.case, message))

    try:
        case = Case.load(root / record.file)
    except DataError as error:
        return Measured(record, (Finding("error", record.case, str(error)),))
    for message in _geometry_faults(case):
        note("error", message)
    low, high = int(case.imgs.min()), int(case.imgs.max())
    if low == high:
        note("error", f"The image is constant: every value is {low}.")
    elif high - low < 32:
        note("warning", f"The image hardly varies: values go from {low} to {high}.")
    regions = _region_sizes(case)
    if case.gts is None and case.gts_layers is None:
        note("warning", "There is no mask.")
    else:
        unnamed = _unnamed_ids(case)
        if unnamed:
            note("error", f"The mask holds ids that no label names: {', '.join(map(str, unnamed[:_FEW]))}.")
        if not regions:
            note("warning", "The mask is empty.")
    for name, size in regions.items():
        if not size.is_visible:
            note(
                "warning",
                f"'{name}' vanishes at {_TRAINING_SIZE} px: its largest slice has {size.largest_area_px} of "
                f"{case.shape[1]}x{case.shape[2]} pixels.",
            )
    counts = np.bincount(case.imgs.reshape(-1), minlength=256)
    return Measured(
        record=record,
        findings=tuple(findings),
        mean=float(case.imgs.mean()),
        std=float(case.imgs.std()),
        histogram=tuple(int(n) for n in counts.reshape(64, 4).sum(axis=1)),
        content=hashlib.blake2b(np.ascontiguousarray(case.imgs).data, digest_size=16).hexdigest(),
        regions=regions,
        thumbnail=thumbnail(case),
    )


def thumbnail(case: Case, *, size: int = 160) -> bytes:
    """PNG of the slice with the most foreground, regions outlined in colours."""
    masks = [(name, case.region_mask(name)) for name in case.region_names] if _has_masks(case) else []
    area = np.zeros(case.num_slices, int)
    for _, mask in masks:
        area += mask.sum(axis=(1, 2))
    t = int(area.argmax()) if area.any() else case.num_slices // 2
    picture = case.imgs[t] if case.imgs.ndim == 4 else np.repeat(case.imgs[t][..., None], 3, axis=-1)
    scale = size / max(picture.shape[:2])
    shape = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    canvas = np.ascontiguousarray(cv2.resize(picture, shape, interpolation=cv2.INTER_AREA))
    for number, (_, mask) in enumerate(masks):
        small = cv2.resize(mask[t].astype(np.uint8), shape, interpolation=cv2.INTER_NEAREST)
        outlines, _ = cv2.findContours(small, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outlines, -1, PALETTE[number % len(PALETTE)], 1)
    encoded: bytes = cv2.imencode(".png", canvas[..., ::-1])[1].tobytes()
    return encoded


PALETTE = ((230, 60, 60), (70, 200, 90), (80, 140, 255), (245, 200, 50), (210, 90, 220), (60, 210, 210), (250, 140, 60))


def _has_masks(case: Case) -> bool:
    return case.gts is not None or case.gts_layers is not None


def _geometry_faults(case: Case) -> list[str]:
    faults = []
    if case.spacing_mm is not None and not all(np.isfinite(step) and step > 0 for step in case.spacing_mm):
        faults.append(f"The spacing {case.spacing_mm} is not positive.")
    if case.affine is not None:
        if not np.all(np.isfinite(case.affine)) or abs(np.linalg.det(case.affine[:3, :3])) < 1e-9:
            faults.append("The affine is singular or not finite.")
        elif case.spacing_mm is not None:
            steps = np.linalg.norm(case.affine[:3, :3], axis=0)
            if not np.allclose(steps, case.spacing_mm, rtol=1e-3):
                faults.append(f"The spacing {case.spacing_mm} contradicts the affine, which says {steps.round(3)}.")
    return faults


def _unnamed_ids(case: Case) -> list[int]:
    stack = case.gts_layers if case.gts_layers is not None else case.gts
    assert stack is not None
    named = {i for ids in case.labels.values() for i in ids}
    return [int(i) for i in np.flatnonzero(np.bincount(stack.reshape(-1))) if i and int(i) not in named]


def _region_sizes(case: Case) -> dict[str, RegionSize]:
    """Sizes of the regions that are present."""
    sizes: dict[str, RegionSize] = {}
    unit = float("nan") if case.spacing_mm is None else float(np.prod(case.spacing_mm))
    for name in case.region_names if _has_masks(case) else []:
        mask = case.region_mask(name)
        areas = mask.sum(axis=(1, 2))
        if not areas.any():
            continue
        largest = mask[int(areas.argmax())]
        sizes[name] = RegionSize(
            largest_area_px=int(areas.max()),
            voxels=int(areas.sum()),
            measure=float(areas.sum()) * unit / (1.0 if case.is_2d else 1000.0),
            is_visible=_survives(largest),
        )
    return sizes


def _survives(mask: NDArray[np.bool_]) -> bool:
    small = cv2.resize(mask.astype(np.uint8), (_TRAINING_SIZE, _TRAINING_SIZE), interpolation=cv2.INTER_NEAREST)
    return bool(small.any())


def _across(cases: Sequence[Measured], root: Path) -> list[Finding]:
    """What shows only when cases are compared."""
    findings = []
    records = [case.record for case in cases]
    try:
        check_leaks(records)
    except DataError as error:
        findings.append(Finding("error", "", str(error)))
    by_content: dict[str, list[Record]] = defaultdict(list)
    for case in cases:
        if case.content:
            by_content[case.content].append(case.record)
    for twins in by_content.values():
        if len(twins) > 1:
            names = ", ".join(f"{twin.case} ({twin.split})" for twin in twins[:_FEW])
            level = "error" if len({twin.split for twin in twins}) > 1 else "warning"
            findings.append(Finding(level, twins[1].case, f"The same image is here {len(twins)} times: {names}."))
    for split in ("train", "val", "test"):
        if not any(record.split == split for record in records):
            findings.append(Finding("warning", "", f"No case is in the {split} split."))
    known = {record.file for record in records}
    strays = [path for path in (root / "cases").glob("*.npz") if path.relative_to(root).as_posix() not in known]
    if strays:
        findings.append(Finding("warning", "", f"{len(strays)} file(s) in cases/ are not in the manifest."))
    return findings + _outliers(cases)


def _outliers(cases: Sequence[Measured]) -> list[Finding]:
    findings = []
    groups: dict[str, list[Measured]] = defaultdict(list)
    for case in cases:
        if case.content:
            groups[case.record.modality].append(case)
    for group in groups.values():
        for what in ("mean", "std"):
            values = np.array([getattr(case, what) for case in group])
            middle = float(np.median(values))
            # A floor of two grey levels, so that very even sets do not flag everything.
            spread = max(1.4826 * float(np.median(np.abs(values - middle))), 2.0)
            for case, value in zip(group, values, strict=True):
                if abs(value - middle) > _OUTLIER * spread:
                    message = f"Unusual intensity: its {what} is {value:.0f}, the usual is {middle:.0f}."
                    findings.append(Finding("warning", case.record.case, message))
    return findings


def _manifest_hash(root: Path) -> str:
    """Changes with the manifest, and with any case file that was rewritten since."""
    digest = hashlib.sha256((root / MANIFEST).read_bytes())
    for path in sorted((root / "cases").glob("*.npz")):
        state = path.stat()
        digest.update(f"{path.name}:{state.st_size}:{state.st_mtime_ns}".encode())
    return digest.hexdigest()


def _earlier_findings(root: Path) -> list[Finding] | None:
    path = root / VERDICT
    if not path.is_file() or not (root / MANIFEST).is_file():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["manifest"] != _manifest_hash(root):
            return None
        return [Finding(**finding) for finding in stored["findings"]]
    except (json.JSONDecodeError, KeyError, TypeError):
        return None
