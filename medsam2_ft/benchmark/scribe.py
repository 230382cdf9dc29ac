"""From an answered prompt to its row: identity, scores and seconds, the same for models and for masks made elsewhere."""

import hashlib
from dataclasses import dataclass

import numpy as np

from medsam2_ft.benchmark.masks import SparseMask, union_window
from medsam2_ft.benchmark.prompting import Target
from medsam2_ft.benchmark.protocol import Protocol
from medsam2_ft.benchmark.rows import OK, Row
from medsam2_ft.data.case import Case
from medsam2_ft.metrics import dsc, hd95, nsd, nsd_legacy
from medsam2_ft.prompts.sampling import Box


@dataclass(frozen=True)
class Pass:
    """One run through a case: a seed, and in sweeps a knob and its value.

    Attributes:
        seed: of the jitter.
        knob: "" outside sweeps.
        value: of the knob.
    """

    seed: int
    knob: str = ""
    value: float = 0.0

    @property
    def variant(self) -> str:
        """`looseness=0.2`, or "" outside sweeps."""
        return f"{self.knob}={self.value:g}" if self.knob else ""

    def generator(self, *identity: object) -> np.random.Generator:
        """A generator that depends on the seed and on what is prompted, not on the order of cases or workers."""
        digest = hashlib.sha256("|".join(map(str, (self.seed, *identity))).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big"))


@dataclass
class Prompted:
    """One target, its prompt, and the mask that answers it so far."""

    target: Target
    t: int
    box: Box
    mask: SparseMask


@dataclass
class Seconds:
    """Where the time of one pass went; slices that an earlier pass encoded and that are still kept cost nothing."""

    encode: float = 0.0
    prompt: float = 0.0
    propagate: float = 0.0


class Scribe:
    """Writes rows of one case and one model.

    Args:
        case: the case.
        model: name of whoever made the masks.
        checkpoint_sha256: of its weights, "" where there are none.
        protocol: for its name and tolerances.
        dataset: its name.
    """

    def __init__(self, case: Case, model: str, checkpoint_sha256: str, protocol: Protocol, dataset: str) -> None:
        self.case, self.model, self.checkpoint_sha256 = case, model, checkpoint_sha256
        self.protocol, self.dataset = protocol, dataset

    def blank(self, *, status: str = OK, reason: str = "") -> Row:
        """A row that only says which case, model and protocol it is about."""
        return Row(
            self.model, self.checkpoint_sha256, self.protocol.name, self.case.modality, self.dataset,
            self.case.name, self.case.patient, status=status, reason=reason,
        )  # fmt: skip

    def row(self, item: Prompted, run: Pass, seconds: Seconds, *, is_slice: bool) -> Row:
        """Score one answered prompt: on its slice as an image, or as a volume."""
        row = self.blank()
        spacing = self.case.spacing_mm
        row.protocol = f"{self.protocol.name}/{run.variant}" if run.variant else self.protocol.name
        row.label, row.instance, row.prompt_slice, row.seed = item.target.region, item.target.instance, item.t, run.seed
        row.box = " ".join(f"{side:g}" for side in np.round(item.box, 2))
        row.voxels = item.target.truth.count()
        row.spacing = "" if spacing is None else " ".join(f"{step:g}" for step in spacing)
        row.encode_s, row.prompt_s, row.propagate_s = seconds.encode, seconds.prompt, seconds.propagate
        return self.score(row, item.mask, item.target.truth, is_slice=is_slice or self.case.num_slices == 1)

    def score(self, row: Row, pred: SparseMask, truth: SparseMask, *, is_slice: bool) -> Row:
        """Fill in the metrics of two masks, of which only one slice is not empty where `is_slice`.

        Slices that nobody annotated are dropped from both, so that those beside them become neighbours.
        """
        spacing = self.case.spacing_mm
        row.tolerance, row.tolerance_unit = self.protocol.tolerance_of(row.label, has_spacing=spacing is not None)
        # Metrics see the common bounding box only: what lies outside it is background in both masks.
        window = union_window(pred, truth) or tuple(slice(0, 1) for _ in range(3))
        one, other = pred.dense(window), truth.dense(window)
        if self.case.labelled is not None:
            one, other = (mask[self.case.labelled[window[0]]] for mask in (one, other))
        if is_slice:
            one, other = np.any(one, axis=0), np.any(other, axis=0)
        step = None if spacing is None else spacing[-one.ndim :]
        row.dsc = dsc(one, other)
        row.nsd = nsd(one, other, spacing_mm=step, tolerance_mm=row.tolerance)
        row.nsd_legacy = nsd_legacy(one, other, spacing_mm=step)
        row.hd95 = hd95(one, other, spacing_mm=step) if self.protocol.hd95 else None
        return row
