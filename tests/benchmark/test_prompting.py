"""What gets a box, and where the box lies."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from benchmark.cases import image_case, volume_case
from medsam2_ft.benchmark.masks import SparseMask
from medsam2_ft.benchmark.prompting import disturb, find_targets, loosen, prompt_slice, prompted_slices, tight_prompt
from medsam2_ft.benchmark.protocol import Jitter, Protocol, load_protocol
from medsam2_ft.data.case import Case


def names(targets):
    return [(target.region, target.instance) for target in targets]


def test_components_are_numbered_by_size_and_specks_are_left_out():
    case = image_case()
    found = find_targets(case, Protocol("p", targets="component", min_px=20), t=0)
    assert names(found) == [("polyp", 1), ("polyp", 2)]
    assert found[0].truth.count() > found[1].truth.count() > 20
    assert names(find_targets(case, Protocol("p", targets="component", max_per_mask=1), t=0)) == [("polyp", 1)]


@pytest.mark.parametrize("targets", ["region", "component"])
def test_the_objects_of_a_long_volume_take_less_memory_than_its_masks(targets):
    gts = np.zeros((64, 256, 256), np.uint8)
    gts[:, 10:40, 10:40] = 1
    gts[:, 90:120, 90:120] = 2
    case = Case("long", gts, gts, labels={"a": [1], "b": [2]})
    tracemalloc.start()
    found = find_targets(case, Protocol("p", targets=targets))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [target.truth.count() for target in found] == [64 * 30 * 30] * 2
    assert peak < gts.nbytes


def test_regions_instances_and_nested_regions():
    case = volume_case(labels={"both": [1, 2], "kidney": [2]})
    found = find_targets(case, Protocol("p", targets="region"))
    assert names(found) == [("both", 0), ("kidney", 0)]
    assert found[0].truth.count() == np.count_nonzero(case.gts)
    cells = volume_case(labels={"cell": [1, 2]}, instances=True)
    assert names(find_targets(cells, Protocol("p", targets="auto"))) == [("cell", 1), ("cell", 2)]
    assert names(find_targets(cells, Protocol("p", targets="region"))) == [("cell", 0)]


def test_the_first_objects_of_an_image_are_kept():
    cells = volume_case(labels={"cell": [2, 1]}, instances=True)
    assert names(find_targets(cells, Protocol("p", max_per_image=1), t=4)) == [("cell", 2)]


def test_slice_step_counts_labelled_slices_only():
    labelled = np.ones(12, bool)
    labelled[:3] = False
    case = volume_case(labelled=labelled)
    assert prompted_slices(case, Protocol("p")) == [3, 4, 5, 6, 7, 8, 9, 10]
    assert prompted_slices(case, Protocol("p", slice_step={"volume": 4})) == [3, 7]


def test_prompt_slice_and_box_sources():
    mask = np.zeros((10, 32, 32), bool)
    for t, half in ((2, 3), (3, 6), (4, 4), (8, 2)):
        mask[t, 16 - half : 16 + half, 10 - half : 10 + half] = True
    truth = SparseMask.from_dense(mask)
    assert prompt_slice(truth, Protocol("p", prompt_slice="largest")) == 3
    assert prompt_slice(truth, Protocol("p", prompt_slice="first")) == 2
    assert prompt_slice(truth, Protocol("p")) == 4  # 5 is the middle of 2..8 and shows nothing
    assert prompt_slice(truth, Protocol("p"), offset=1.0) == 8
    assert tight_prompt(truth, 8, Protocol("p", box="slice")) == (8, 14, 12, 18)
    assert tight_prompt(truth, 8, Protocol("p", box="union")) == (4, 10, 16, 22)
    assert tight_prompt(truth, 8, Protocol("p", box="largest")) == (4, 10, 16, 22)


def test_the_first_box_of_flare22_has_its_margin_clipped_to_the_image():
    mask = np.zeros((3, 64, 64), bool)
    mask[0, 0:12, 20:31] = True  # the larger box, but at the border the smaller one once both have grown
    mask[1, 20:31, 20:31] = True
    truth, protocol = SparseMask.from_dense(mask), load_protocol("flare22_slicewise")
    assert tight_prompt(truth, 0, protocol) == (15, 15, 36, 36)
    assert tight_prompt(truth, 0, replace(protocol, box="slice")) == (15, 0, 36, 17)


def test_jitter_moves_sides_outwards_in_steps_of_the_grid():
    rng = np.random.default_rng(0)
    moves = []
    for _ in range(200):
        x0, y0, x1, y1 = loosen(
            (200, 200, 300, 300), rng, jitter=Jitter(max=2.5, step=0.5, grid=256), shape_hw=(256, 512)
        )
        moves += [200 - x0, x1 - 300]
        assert 0 <= y0 <= 200 <= y1 <= 256
    assert set(moves) == {0.0, 1.0, 2.0, 3.0, 4.0, 5.0}
    assert loosen((3, 4, 5, 6), rng, jitter=Jitter(), shape_hw=(8, 8)) == (3, 4, 5, 6)


def test_sweeps_disturb_in_shares_of_the_box():
    rng = np.random.default_rng(0)
    assert disturb((20, 20, 40, 30), rng, knob="looseness", value=0.1, shape_hw=(64, 64)) == (18, 19, 42, 31)
    x0, y0, x1, y1 = disturb((20, 20, 40, 40), rng, knob="shift", value=0.25, shape_hw=(64, 64))
    assert np.hypot(x0 - 20, y0 - 20) == pytest.approx(5)
    assert (x1 - x0, y1 - y0) == pytest.approx((20, 20))


def test_sparse_masks_return_what_they_were_given():
    mask = np.random.default_rng(0).random((5, 17, 23)) > 0.9
    sparse = SparseMask.from_dense(mask)
    assert (sparse.dense() == mask).all()
    assert sparse.count() == mask.sum()
    assert (sparse.dense(sparse.window()) == mask[sparse.window()]).all()
    assert SparseMask((2, 3, 4)).window() is None
