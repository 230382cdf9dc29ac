"""One case, one model, one protocol: prompts answered, masks scored, seconds taken.

All objects of a slice are answered from one encoding; all objects of a volume are carried in one upward and one
downward sweep.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from medsam2_ft.benchmark.masks import SparseMask, mask_key
from medsam2_ft.benchmark.models.adapter import Adapter, Propagator, Seed
from medsam2_ft.benchmark.prompting import (
    Target,
    disturb,
    find_targets,
    loosen,
    prompt_slice,
    prompted_slices,
    tight_prompt,
    visited,
)  # fmt: skip
from medsam2_ft.benchmark.protocol import Protocol
from medsam2_ft.benchmark.rows import SKIPPED, Row
from medsam2_ft.benchmark.scribe import Pass, Prompted, Scribe, Seconds
from medsam2_ft.benchmark.sweep import EncodedSlices, now, slicewise
from medsam2_ft.data.case import Case
from medsam2_ft.errors import ConfigError, DataError

OpenModel = Callable[[], Adapter] | None


@dataclass
class Outcome:
    """What came of a case: its rows, and its predicted masks by the key that `mask_key` gives a row."""

    rows: list[Row] = field(default_factory=list)
    masks: dict[str, SparseMask | NDArray[np.bool_]] = field(default_factory=dict)


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
                outcome.masks[mask_key(row)] = item.mask[item.t] if task == "slices" else item.mask
    if not outcome.rows:
        outcome.rows.append(scribe.blank(status=SKIPPED, reason=f"no object of at least {protocol.min_px} px"))
    return outcome


def _slices_pass(
    case: Case, model: Adapter, protocol: Protocol, run: Pass, encoded: EncodedSlices, _: OpenModel
) -> tuple[list[Prompted], Seconds]:
    prompted, prompt_s, encoded_before = [], 0.0, encoded.seconds
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
    return prompted, Seconds(encoded.seconds - encoded_before, prompt_s)


def _propagation_pass(
    case: Case, model: Adapter, protocol: Protocol, run: Pass, encoded: EncodedSlices, initial_model: OpenModel
) -> tuple[list[Prompted], Seconds]:
    items = []
    for target in find_targets(case, protocol):
        rng = run.generator(case.name, target.region, target.instance, "offset")
        sign = 1 if rng.random() < 0.5 else -1
        offset = sign * run.value if run.knob == "slice_offset" else 0.0
        t = prompt_slice(target.truth, protocol, offset=offset)
        item = _prompt(case, protocol, run, target, t)
        item.target = replace(target, truth=visited(target.truth, t, protocol.direction))
        items.append(item)
    if not items:
        return [], Seconds()
    started, encoded_before = now(), encoded.seconds
    _initial_masks(items, case, model, protocol, encoded, initial_model)
    prompted, encoded_between = now(), encoded.seconds
    for t, index, mask in _carried(items, case, model, protocol, encoded):
        items[index].mask[t] = mask
    finished, encoded_after = now(), encoded.seconds
    return items, Seconds(
        encode=encoded_after - encoded_before,
        prompt=prompted - started - (encoded_between - encoded_before),
        propagate=finished - prompted - (encoded_after - encoded_between),
    )


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
