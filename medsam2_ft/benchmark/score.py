"""Scores masks that another program wrote: one label map a case, in the stored grid or in the geometry of the source volume.

`CASE.nii.gz` and the like (nnU-Net's output), `CASE.npz` with `segs`, `gts` or `masks`, or `CASE.png`. The ids of a label map
are those of the case's `labels`. A region that is in the mask but not in the case has DSC and NSD 0; one that is in neither
has no row. A mask that is missing or does not fit is a failed row, and the others are scored.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from medsam2_ft.benchmark.masks import SparseMask, mask_key, masks_path, save_masks
from medsam2_ft.benchmark.prompting import Target, find_targets, prompt_slice
from medsam2_ft.benchmark.protocol import Protocol
from medsam2_ft.benchmark.provenance import ModelRecord, Run, dataset_name
from medsam2_ft.benchmark.rows import FAILED, SKIPPED, Row, write_rows
from medsam2_ft.benchmark.runner import collect, part_path
from medsam2_ft.benchmark.scribe import Pass, Prompted, Scribe, Seconds
from medsam2_ft.data.case import Case
from medsam2_ft.data.manifest import Record, read_manifest
from medsam2_ft.errors import DataError

SUFFIXES = (".npz", ".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".png", ".tif", ".tiff", ".bmp")
NPZ_KEYS = ("segs", "gts", "masks", "pred", "mask")


def score_folder(
    pred: Path, *, root: Path, out: Path, name: str, split: str = "test", tolerance_mm: float = 2.0
) -> pd.DataFrame:
    """Score a folder of label maps against a prepared dataset.

    Args:
        pred: folder of label maps, named like the cases or their source images.
        root: dataset folder.
        out: where rows.csv, masks and later the report go; folders of masks of several names and datasets may be
            scored into one.
        name: what the report calls whoever made the masks.
        split: train, val, test or all.
        tolerance_mm: of the NSD.

    Returns:
        The rows of all that was scored into `out`.

    Raises:
        DataError: if no case of the split has a mask in the folder.
        ConfigError: if `out` holds scores of another tolerance, split or dataset of this name.
    """
    protocol = Protocol(
        "score", description="Label maps made elsewhere, scored region by region; images as images, volumes as volumes.",
        targets="region", tolerance_mm=tolerance_mm,
    )  # fmt: skip
    records = [record for record in read_manifest(root) if split in ("all", record.split)]
    files = {record.case: find_mask(pred, record) for record in records}
    if not any(files.values()):
        example = records[0].case if records else "CASE"
        raise DataError(
            f"{pred} holds no mask for any '{split}' case of {root}; looked for {example}.nii.gz, .npz, .png"
        )
    run = Run.open(out, protocol, roots=[root], split=split)
    run.add(ModelRecord(name, str(pred), licence="made elsewhere"))
    for record in tqdm(records, unit="case", desc="score"):
        rows = _score_case(files[record.case], record, root=root, out=out, name=name, protocol=protocol)
        write_rows(part_path(out, model=name, dataset=dataset_name(root), case=record.case), rows)
    table = collect(out, run)
    run.close(table)
    return table


def find_mask(folder: Path, record: Record) -> Path | None:
    """The file in a folder that belongs to a case: named like it, or like its source image with or without `_0000`."""
    source = Path(record.source).name
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        source = source.removesuffix(suffix)
    stems = dict.fromkeys((record.case, source, source.removesuffix("_0000")))
    return next((path for stem in stems if stem for s in SUFFIXES if (path := folder / f"{stem}{s}").is_file()), None)


def read_label_map(path: Path, case: Case) -> NDArray[np.int64]:
    """A label map (T, H, W) on the grid of a case.

    Args:
        path: npz and pictures hold the stored grid itself; volumes are brought onto it by their own geometry.
        case: whose grid it must fit.

    Raises:
        DataError: if it does not.
    """
    if path.suffix == ".npz":
        labels: NDArray[Any] = _from_npz(path)
    elif path.suffix in (".png", ".tif", ".tiff", ".bmp"):
        from medsam2_ft.io.image import read_mask_image

        labels = read_mask_image(path)
    else:
        labels = _from_volume(path, case)
    labels = labels[None] if labels.ndim == 2 else labels
    if labels.shape != case.shape:
        raise DataError(f"{path} has shape {labels.shape}, but {case.name} has {case.shape}")
    whole: NDArray[np.int64] = np.rint(labels).astype(np.int64)
    return whole


def _score_case(
    path: Path | None, record: Record, *, root: Path, out: Path, name: str, protocol: Protocol
) -> list[Row]:
    dataset = dataset_name(root)
    blank = Row(name, "", protocol.name, record.modality, dataset, record.case, record.patient)
    if path is None:
        blank.status, blank.reason = FAILED, "there is no mask of this case"
        return [blank]
    try:
        case = Case.load(root / record.file)
        if case.gts is None and case.gts_layers is None:
            raise DataError(f"{case.name} has no masks to score against")
        labels = read_label_map(path, case)
    except DataError as error:
        blank.status, blank.reason = FAILED, str(error)
        return [blank]
    scribe, run = Scribe(case, name, "", protocol, dataset), Pass(0)
    rows, masks = [], {}
    truths = {target.region: target.truth for target in find_targets(case, protocol)}
    for region, ids in case.labels.items():
        truth, found = truths.get(region, SparseMask(case.shape)), SparseMask.from_dense(np.isin(labels, ids))
        shown = truth if truth.slices else found
        if not set(shown.slices).intersection(case.labelled_slices):
            continue
        item = Prompted(Target(region, 0, truth), prompt_slice(shown, protocol), (0, 0, 0, 0), found)
        row = scribe.row(item, run, Seconds(), is_slice=case.is_2d)
        row.case, row.patient, row.modality, row.box = record.case, record.patient, record.modality, ""
        row.encode_s = row.prompt_s = row.propagate_s = None
        rows.append(row)
        masks[mask_key(row)] = found[item.t] if case.is_2d else found
    if not rows:
        blank.status, blank.reason = SKIPPED, "neither the case nor the mask holds a labelled region"
        return [blank]
    save_masks(masks_path(out, model=name, dataset=dataset, case=record.case), masks)
    return rows


def _from_npz(path: Path) -> NDArray[Any]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            key = next((key for key in NPZ_KEYS if key in stored), None)
            if key is None:
                raise DataError(f"{path} holds none of {', '.join(NPZ_KEYS)}")
            labels: NDArray[Any] = stored[key]
            return labels
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not a readable npz file ({error})") from None


def _from_volume(path: Path, case: Case) -> NDArray[np.float32]:
    """Read a volume in the plane in which its affine is the case's."""
    from medsam2_ft.io.volume import PLANES, read_volume

    kept = slice(None) if case.kept_slices is None else case.kept_slices
    for plane in PLANES:
        volume = read_volume(path, plane=plane)
        assert volume.affine is not None, "read_volume knows where its voxels lie"
        fits = case.affine is None or np.allclose(volume.affine, case.affine, atol=1e-2)
        if fits and volume.array[kept].shape == case.shape:
            array: NDArray[np.float32] = volume.array[kept]
            return array
    raise DataError(f"{path} lies on another grid than {case.name}: resample it onto the source image first")
