"""One case through slices and propagation: scores, encodings, seconds."""

import time

import numpy as np
import pytest

from benchmark.cases import EllipseModel, image_case, volume_case
from medsam2_ft.benchmark.evaluation import evaluate
from medsam2_ft.benchmark.models.adapter import Seed
from medsam2_ft.benchmark.protocol import Jitter, Protocol, load_protocol
from medsam2_ft.benchmark.rows import SKIPPED
from medsam2_ft.benchmark.sweep import EncodedSlices, schedule, slicewise
from medsam2_ft.data.case import Case
from medsam2_ft.errors import DataError
from medsam2_ft.metrics import dsc, nsd


def test_slices_score_each_object_as_an_image_from_one_encoding():
    case, model = volume_case(), EllipseModel()
    outcome = evaluate(case, model, Protocol("p", task="slices", targets="region", min_px=20))
    occupied = case.gts.any(axis=(1, 2)).sum()
    assert model.num_encoded == occupied
    assert {row.label for row in outcome.rows} == {"liver", "kidney"}
    for row in outcome.rows:
        mask = outcome.masks[f"{row.label}|0|{row.prompt_slice}|0"]
        truth = case.region_mask(row.label, row.prompt_slice)
        assert row.dsc == pytest.approx(dsc(mask, truth))
        assert row.nsd == pytest.approx(nsd(mask, truth, spacing_mm=(1, 1), tolerance_mm=2))
        assert row.tolerance_unit == "mm"
        assert row.dsc > 0.9


def test_images_without_spacing_are_scored_in_pixels():
    outcome = evaluate(image_case(), EllipseModel(), Protocol("p", tolerance_px=3, min_px=20))
    assert [(row.tolerance, row.tolerance_unit) for row in outcome.rows] == [(3, "px")] * 2


def test_propagation_scores_volumes_and_encodes_every_slice_once():
    case, model = volume_case(), EllipseModel()
    outcome = evaluate(case, model, Protocol("p", task="propagation", targets="region", margin=0, hd95=True))
    assert model.num_encoded == case.gts.any(axis=(1, 2)).sum()
    for row in outcome.rows:
        truth = case.region_mask(row.label)
        pred = outcome.masks[f"{row.label}|0|{row.prompt_slice}|0"].dense()
        assert row.voxels == truth.sum()
        assert row.dsc == pytest.approx(dsc(pred, truth))
        assert row.nsd == pytest.approx(nsd(pred, truth, spacing_mm=case.spacing_mm, tolerance_mm=2))
        assert row.nsd_legacy == pytest.approx(nsd(pred, truth, spacing_mm=(1, 1, 5), tolerance_mm=2))
        assert not pred[~truth.any(axis=(1, 2))].any()
        assert np.isfinite(row.hd95)


def test_frames_that_nobody_annotated_count_for_nothing():
    labelled = np.arange(10) % 3 == 0
    gts = np.zeros((10, 32, 32), np.uint8)
    gts[labelled, 8:20, 8:20] = 1
    gts[4, 2:6, 2:6] = 1  # left over on a frame that is not annotated
    case = Case("video", gts, gts, kind="video", labels={"a": [1]}, labelled=labelled)

    class Perfect(EllipseModel):
        def masks_from_boxes(self, embedding, *, boxes_N4):
            mask = np.zeros(embedding, bool)
            mask[8:20, 8:20] = True
            return mask[None]

    (row,) = evaluate(case, Perfect(), Protocol("p", targets="region", prompt_slice="first", hd95=True)).rows
    assert (row.dsc, row.nsd, row.nsd_legacy, row.hd95, row.voxels) == (1, 1, 1, 0, 4 * 144)


def test_initial_mask_may_be_the_truth_or_another_models():
    case = volume_case()
    protocol = Protocol("p", task="propagation", targets="region", initial_mask="truth")
    for row in (outcome := evaluate(case, EllipseModel(shrink=0.5), protocol)).rows:
        mask = outcome.masks[f"{row.label}|0|{row.prompt_slice}|0"][row.prompt_slice]
        assert (mask == case.region_mask(row.label, row.prompt_slice)).all()
    other = EllipseModel("other")
    protocol = Protocol("p", task="propagation", targets="region", initial_mask="other")
    evaluate(case, EllipseModel(shrink=0.5), protocol, initial_model=lambda: other)
    assert other.num_encoded > 0


def test_direction_and_z_range_bound_what_is_filled():
    case = volume_case()
    up = evaluate(case, EllipseModel(), Protocol("p", task="propagation", targets="region", direction="up"))
    for row in up.rows:
        mask = up.masks[f"{row.label}|0|{row.prompt_slice}|0"]
        truth = case.region_mask(row.label)[row.prompt_slice :]
        assert min(mask.slices) == row.prompt_slice
        assert row.dsc == pytest.approx(dsc(mask.dense()[row.prompt_slice :], truth))
        assert row.voxels == truth.sum()
    whole = evaluate(case, EllipseModel(), Protocol("p", task="propagation", targets="region", z_range="whole"))
    assert any(mask.slices == list(range(12)) for mask in whole.masks.values())


def test_seeds_repeat_and_sweeps_name_their_pass():
    case = image_case()
    protocol = Protocol("p", jitter=Jitter(max=5), seeds=(0, 1), min_px=20)
    first, second = (evaluate(case, EllipseModel(), protocol).rows for _ in range(2))
    assert [row.box for row in first] == [row.box for row in second]
    assert first[0].box != first[2].box
    rows = evaluate(volume_case(), EllipseModel(), load_protocol("robustness")).rows
    assert {row.protocol for row in rows} >= {"robustness/looseness=0.5", "robustness/slice_offset=0.75"}
    by_pass = {name: np.mean([r.dsc for r in rows if r.protocol == f"robustness/{name}"]) for name in
               ("looseness=0", "looseness=0.5", "slice_offset=0", "slice_offset=0.75")}  # fmt: skip
    assert by_pass["looseness=0"] > by_pass["looseness=0.5"]
    assert by_pass["slice_offset=0"] > by_pass["slice_offset=0.75"]


@pytest.mark.parametrize("task", ["slices", "propagation"])
def test_each_pass_counts_its_own_seconds_of_encoding(task):
    class Slow(EllipseModel):
        def embed(self, image):
            time.sleep(0.002)
            return super().embed(image)

    rows = evaluate(volume_case(), Slow(), Protocol("p", task=task, targets="region", seeds=(0, 1))).rows
    first, second = ({row.encode_s for row in rows if row.seed == seed} for seed in (0, 1))
    assert min(first) > 0 and second == {0}


def test_nothing_to_prompt_is_a_row_and_no_masks_an_error():
    (row,) = evaluate(image_case(), EllipseModel(), Protocol("p", min_px=10_000)).rows
    assert row.status == SKIPPED
    case = volume_case(kept_slices=np.arange(12))
    with pytest.raises(DataError, match="--keep labelled"):
        evaluate(case, EllipseModel(), Protocol("p", task="propagation"))


def test_slicewise_falls_back_to_the_first_box_where_a_mask_vanishes():
    class Forgetful(EllipseModel):
        def masks_from_boxes(self, embedding, *, boxes_N4):
            self.boxes = [*getattr(self, "boxes", []), boxes_N4.copy()]
            return np.zeros((len(boxes_N4), *embedding), bool)

    mask = np.zeros((32, 32), bool)
    mask[10:20, 10:20] = True
    model, images = Forgetful(), np.zeros((5, 32, 32), np.uint8)
    list(slicewise(
        model, [Seed(1, mask, 0, 5)], features=EncodedSlices(model.embed, images),
        first_boxes_N4=np.array([[1, 2, 30, 31]], np.float32), shape_hw=(32, 32), margin=1 / 32,
    ))  # fmt: skip
    assert [box[0].tolist() for box in model.boxes] == [[9, 9, 21, 21], [9, 9, 21, 21], [1, 2, 30, 31], [1, 2, 30, 31]]


def test_twelve_objects_cost_as_many_encodings_as_there_are_slices():
    mask = np.zeros((32, 32), bool)
    mask[8:24, 8:24] = True
    model, images = EllipseModel(), np.zeros((40, 32, 32), np.uint8)
    seeds = [Seed(10 + i, mask, 0, 40) for i in range(12)]
    encoded = EncodedSlices(model.embed, images, capacity=12)
    for seed in seeds:
        encoded[seed.start]
    visited = list(slicewise(
        model, seeds, features=encoded, first_boxes_N4=np.tile(np.float32([[8, 8, 24, 24]]), (12, 1)), shape_hw=(32, 32)
    ))  # fmt: skip
    assert len(visited) == 12 * 39
    assert model.num_encoded == 40
    assert len(set(schedule(seeds))) == len(list(schedule(seeds)))
