"""One case, one model, one protocol: prompts answered, masks scored, seconds taken.

All objects of a slice are answered from one encoding; all objects of a volume are carried in one upward and one
downward sweep.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medsam2_ft.benchmark.masks import SparseMask, union_window
from medsam2_ft.benchmark.models.adapter import Adapter, Propagator, Seed
from medsam2_ft.benchmark.prompting import (
    Target,
    disturb,
    find_targets,
    loosen,
    prompt_slice,
    prompted_slices,
    tight_prompt,
)  # fmt: skip
from medsam2_ft.benchmark.protocol import Protocol
from medsam2_ft.benchmark.rows import OK, SKIPPED, Row
from medsam2_ft.benchmark.sweep import EncodedSlices, now, slicewise
from medsam2_ft.data.case import Case
from medsam2_ft.errors import ConfigError, DataError
from medsam2_ft.metrics import dsc, hd95, nsd, nsd_legacy
from medsam2_ft.prompts.sampling import Box

OpenModel = Callable[[], Adapter] | None


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
class Outcome:
    """What came of a case: its rows, and its predicted masks by the key that `mask_key` gives a row."""

    rows: list[Row] = field(default_factory=list)
    masks: dict[str, SparseMask | NDArray[np.bool_]] = field(default_factory=dict)


@dataclass
class Prompted:
    """One target, its prompt, and the mask that answers it so far."""

    target: Target
    t: int
    box: Box
    mask: SparseMask


@dataclass
class Seconds:
    """Where the time of one pass went."""

    encode: float = 0.0
    prompt: float = 0.0
    propagate: float = 0.0


def passes_of(protocol: Protocol, task: str) -> Iterator[Pass]:
    """Every pass that a protocol makes through a case."""
    for seed in protocol.seeds:
        if not protocol.sweep:
            yield Pass(seed)
        for knob, values in protocol.sweep.items():
            if knob != "slice_offset" or task == "propagation":
                yield from (Pass(seed, knob, value) for value in values)


def evaluate(
    case: Case,
    model: Adapter,
    protocol: Protocol,
    *,
    dataset: str = "",
    initial_model: OpenModel = None,
) -> Outcome:
    """Run a protocol on one case.

    Args:
        case: with masks.
        model: under test.
        protocol: what to prompt and how.
        dataset: name for the rows.
        initial_model: gives the model that draws the first mask, where the protocol names another one.

    Raises:
        DataError: if the case has no masks, or stores only its labelled slices and the protocol wants whole volumes.
    """
    if case.gts is None and case.gts_layers is None:
        raise DataError(f"{case.name} has no masks to score against")
    task = protocol.task_of(case.kind)
    if task == "propagation" and case.kept_slices is not None:
        raise DataError(f"{case.name} stores only its labelled slices; prepare it without --keep labelled to propagate")
    outcome = Outcome()
    encoded = EncodedSlices(model.embed, case.imgs)
    scribe = Scribe(case, model.name, model.checkpoint_sha256, protocol, dataset)
    for run in passes_of(protocol, task):
        run_pass = _slices_pass if task == "slices" else _propagation_pass
        prompted, seconds = run_pass(case, model, protocol, run, encoded, initial_model)
        for item in prompted:
            row = scribe.row(item, run, seconds, is_slice=task == "slices")
            outcome.rows.append(row)
            if protocol.keep_masks:
                outcome.masks[mask_key(row, run)] = item.mask[item.t] if task == "slices" else item.mask
    if not outcome.rows:
        outcome.rows.append(scribe.blank(status=SKIPPED, reason=f"no object of at least {protocol.min_px} px"))
    return outcome


def mask_key(row: Row, run: Pass) -> str:
    """The name of a row's mask in `masks/MODEL/CASE.npz`."""
    key = f"{row.label}|{row.instance}|{row.prompt_slice}|{row.seed}"
    return f"{key}|{run.variant}" if run.variant else key


def _slices_pass(
    case: Case, model: Adapter, protocol: Protocol, run: Pass, encoded: EncodedSlices, _: OpenModel
) -> tuple[list[Prompted], Seconds]:
    prompted, prompt_s = [], 0.0
    for t in prompted_slices(case, protocol):
        targets = find_targets(case, protocol, t=t)
        items = [_prompt(case, protocol, run, target, t) for target in targets]
        if not items:
            continue
        embedding = encoded[t]
        started = now()
        masks = model.masks_from_boxes(embedding, boxes_N4=np.array([item.box for item in items], np.float32))
        prompt_s += now() - started
        for item, mask in zip(items, masks, strict=True):
            item.mask[t] = mask
        prompted += items
    return prompted, Seconds(encoded.seconds, prompt_s)


def _propagation_pass(
    case: Case, model: Adapter, protocol: Protocol, run: Pass, encoded: EncodedSlices, initial_model: OpenModel
) -> tuple[list[Prompted], Seconds]:
    items = []
    for target in find_targets(case, protocol):
        rng = run.generator(case.name, target.region, target.instance, "offset")
        sign = 1 if rng.random() < 0.5 else -1
        offset = sign * run.value if run.knob == "slice_offset" else 0.0
        t = prompt_slice(target.truth, protocol, offset=offset)
        items.append(_prompt(case, protocol, run, target, t))
    if not items:
        return [], Seconds()
    started, encoded_before = now(), encoded.seconds
    _initial_masks(items, case, model, protocol, encoded, initial_model)
    prompt_s = now() - started - (encoded.seconds - encoded_before)
    started, encoded_before = now(), encoded.seconds
    for t, index, mask in _carried(items, case, model, protocol, encoded):
        items[index].mask[t] = mask
    propagate_s = now() - started - (encoded.seconds - encoded_before)
    return items, Seconds(encoded.seconds, prompt_s, propagate_s)


def _prompt(case: Case, protocol: Protocol, run: Pass, target: Target, t: int) -> Prompted:
    shape_hw = case.shape[1:]
    rng = run.generator(case.name, target.region, target.instance, t)
    box = loosen(tight_prompt(target.truth, t, protocol), rng, jitter=protocol.jitter, shape_hw=shape_hw)
    if run.knob:
        box = disturb(box, rng, knob=run.knob, value=run.value, shape_hw=shape_hw)
    return Prompted(target, t, box, SparseMask(case.shape))


def _initial_masks(
    items: list[Prompted],
    case: Case,
    model: Adapter,
    protocol: Protocol,
    encoded: EncodedSlices,
    initial_model: OpenModel,
) -> None:
    """Put the first mask of each item on its prompt slice, all items of a slice from one encoding."""
    if protocol.initial_mask == "truth":
        for item in items:
            item.mask[item.t] = item.target.truth[item.t]
        return
    if protocol.initial_mask != "own":
        if initial_model is None:
            raise ConfigError(f"protocol {protocol.name} takes its first mask from {protocol.initial_mask}, not opened")
        model = initial_model()
        encoded = EncodedSlices(model.embed, case.imgs, capacity=1)
    for t in sorted({item.t for item in items}):
        here = [item for item in items if item.t == t]
        boxes = np.array([item.box for item in here], np.float32)
        for item, mask in zip(here, model.masks_from_boxes(encoded[t], boxes_N4=boxes), strict=True):
            item.mask[t] = mask


def _carried(
    items: list[Prompted], case: Case, model: Adapter, protocol: Protocol, encoded: EncodedSlices
) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
    seeds = []
    for item in items:
        slices = item.target.truth.slices
        low, high = (slices[0], slices[-1] + 1) if protocol.z_range == "truth" else (0, case.num_slices)
        seeds.append(Seed(item.t, item.mask[item.t], low, high))
    has_memory = isinstance(model, Propagator)
    if protocol.propagation == "memory" and not has_memory:
        raise ConfigError(f"{model.name} has no memory, which protocol {protocol.name} asks for")
    if has_memory and protocol.propagation != "slicewise":
        assert isinstance(model, Propagator)
        return model.propagate(case.imgs, seeds, features=encoded, directions=protocol.directions)
    return slicewise(
        model,
        seeds,
        features=encoded,
        first_boxes_N4=np.array([item.box for item in items], np.float32),
        shape_hw=case.shape[1:],
        margin=protocol.margin,
        directions=protocol.directions,
    )


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
        """Fill in the metrics of two masks, of which only one slice is not empty where `is_slice`."""
        spacing = self.case.spacing_mm
        row.tolerance, row.tolerance_unit = self.protocol.tolerance_of(row.label, has_spacing=spacing is not None)
        # Metrics see the common bounding box only: what lies outside it is background in both masks.
        window = union_window(pred, truth) or tuple(slice(0, 1) for _ in range(3))
        one, other = pred.dense(window), truth.dense(window)
        if is_slice:
            one, other = np.any(one, axis=0), np.any(other, axis=0)
        step = None if spacing is None else spacing[-one.ndim :]
        row.dsc = dsc(one, other)
        row.nsd = nsd(one, other, spacing_mm=step, tolerance_mm=row.tolerance)
        row.nsd_legacy = nsd_legacy(one, other, spacing_mm=step)
        row.hd95 = hd95(one, other, spacing_mm=step) if self.protocol.hd95 else None
        return row
