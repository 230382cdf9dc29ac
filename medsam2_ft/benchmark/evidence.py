"""What stands behind a row of rows.csv: the mask that was kept, and the truth it was scored against.

Rows are taken as `read_rows(...).itertuples()` gives them.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam2_ft.benchmark.masks import SparseMask, mask_key, masks_path
from medsam2_ft.benchmark.prompting import find_targets, visited
from medsam2_ft.benchmark.protocol import Protocol, protocol_from
from medsam2_ft.benchmark.provenance import Run
from medsam2_ft.benchmark.rows import OK
from medsam2_ft.data.case import Case
from medsam2_ft.errors import DataError


def prediction_and_truth(run_folder: Path | str, row: Any, case: Case) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The two masks that a row compares; their Dice is the row's.

    Args:
        run_folder: OUT of `benchmark` or `score`.
        row: of its rows.csv.
        case: the row's case, loaded from its dataset.

    Returns:
        Both bool, (H, W) where a slice or image was prompted on its own, otherwise (T, H, W) without the slices that nobody
        annotated.

    Raises:
        DataError: if the row has no score, its mask was not kept, or the case does not hold its object.
    """
    prediction = kept_mask(Path(run_folder), row)
    truth = true_mask(row, case, protocol_from(Run.read(Path(run_folder)).protocol))
    if prediction.ndim == 2:
        return prediction, truth[int(row.prompt_slice)]
    labelled = slice(None) if case.labelled is None else case.labelled
    return prediction[labelled], truth.dense()[labelled]


def kept_mask(run_folder: Path, row: Any) -> NDArray[np.bool_]:
    """The predicted mask of a row, (H, W) or (T, H, W).

    Raises:
        DataError: if the row has no score or its mask was not kept.
    """
    if row.status != OK:
        raise DataError(f"{row.model} has no mask of {row.dataset}/{row.case}, which {row.status}: {row.reason}")
    path = masks_path(run_folder, model=row.model, dataset=row.dataset, case=row.case)
    key = mask_key(row)
    if path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            if key in stored:
                return np.asarray(stored[key], bool)
    raise DataError(f"{path} holds no mask {key}: run with a protocol that keeps masks, and without --no-masks")


def true_mask(row: Any, case: Case, protocol: Protocol) -> SparseMask:
    """The object of a row in its case, empty where the protocol does not go: other slices, or one side of the prompt.

    Raises:
        DataError: if the case does not hold it.
    """
    is_slices = protocol.task_of(case.kind) == "slices"
    for target in find_targets(case, protocol, t=int(row.prompt_slice) if is_slices else None):
        if (target.region, target.instance) == (row.label, int(row.instance)):
            return target.truth if is_slices else visited(target.truth, int(row.prompt_slice), protocol.direction)
    if not row.voxels:  # a region that only the prediction has, see `score.py`
        return SparseMask(case.shape)
    raise DataError(f"{case.name} holds no {row.label} {int(row.instance)}: is it the case that the row is about?")
