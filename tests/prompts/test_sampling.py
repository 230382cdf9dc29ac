"""Prompts are pure functions of a mask and a generator, and never leave the image or become empty."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medsam2_ft.errors import ConfigError, UserError
from medsam2_ft.prompts.prompt import Prompt
from medsam2_ft.prompts.sampling import BoxJitter, jitter_box, sample_clicks, tight_box


def test_tight_box_is_half_open():
    mask = np.zeros((10, 12), bool)
    mask[2:5, 3:9] = True
    assert tight_box(mask) == (3, 2, 9, 5)
    assert tight_box(np.zeros((4, 4), bool)) is None
    one = np.zeros((4, 4), bool)
    one[3, 0] = True
    assert tight_box(one) == (0, 3, 1, 4)


@given(
    x=st.tuples(st.integers(0, 63), st.integers(1, 64)).filter(lambda v: v[0] < v[1]),
    y=st.tuples(st.integers(0, 47), st.integers(1, 48)).filter(lambda v: v[0] < v[1]),
    kind=st.sampled_from(["outward", "shift", "loose", "tight"]),
    unit=st.sampled_from(["image", "box"]),
    amount=st.floats(0, 1),
    steps=st.sampled_from([None, 1, 5]),
    seed=st.integers(0, 2**32),
)
def test_jittered_boxes_stay_in_the_image_and_open(x, y, kind, unit, amount, steps, seed):
    jitter = BoxJitter(kind, unit, amount, steps)
    box = (float(x[0]), float(y[0]), float(x[1]), float(y[1]))
    x0, y0, x1, y1 = jitter_box(box, np.random.default_rng(seed), jitter=jitter, shape_hw=(48, 64))
    assert 0 <= x0 < x1 <= 64
    assert 0 <= y0 < y1 <= 48
    if kind in ("outward", "loose"):
        assert x0 <= box[0] and y0 <= box[1] and x1 >= box[2] and y1 >= box[3]
        assert max(box[0] - x0, x1 - box[2]) <= amount * (64 if unit == "image" else box[2] - box[0]) + 1e-9
    if kind == "tight":
        assert (x0, y0, x1, y1) == box
    again = jitter_box(box, np.random.default_rng(seed), jitter=jitter, shape_hw=(48, 64))
    assert again == (x0, y0, x1, y1)


def test_jitter_reaches_as_far_as_the_paper_and_no_farther():
    rng = np.random.default_rng(0)
    boxes = np.array(
        [jitter_box((100, 100, 150, 150), rng, jitter=BoxJitter(), shape_hw=(256, 256)) for _ in range(500)]
    )
    moved = np.abs(boxes - [100, 100, 150, 150])
    assert 4.5 < moved.max() <= 5
    assert 2.2 < moved.mean() < 2.8


def test_steps_are_whole_pixels_of_the_papers_grid():
    rng = np.random.default_rng(0)
    jitter = BoxJitter(steps=5)
    boxes = np.array([jitter_box((100, 100, 150, 150), rng, jitter=jitter, shape_hw=(256, 256)) for _ in range(300)])
    moved = np.abs(boxes - [100, 100, 150, 150])
    assert sorted(set(moved.flatten())) == [0, 1, 2, 3, 4, 5]
    both = BoxJitter("shift", "image", 2 / 256, 2)
    boxes = np.array([jitter_box((100, 100, 150, 150), rng, jitter=both, shape_hw=(256, 256)) for _ in range(300)])
    assert sorted(set((boxes - [100, 100, 150, 150]).flatten())) == [-2, -1, 0, 1, 2]


def test_loose_boxes_keep_their_centre():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x0, y0, x1, y1 = jitter_box(
            (100, 80, 150, 200), rng, jitter=BoxJitter("loose", "box", 0.3), shape_hw=(400, 400)
        )
        assert (x0 + x1, y0 + y1) == pytest.approx((250, 280))
        assert (x1 - x0) / (y1 - y0) == pytest.approx(50 / 120)


@given(shape=st.tuples(st.integers(0, 4), st.integers(1, 12), st.integers(1, 9)), seed=st.integers(0, 2**32))
def test_clicks_lie_in_their_region_and_tell_the_truth(shape, seed):
    rng = np.random.default_rng(seed)
    region, truth = torch.from_numpy(rng.random(shape) < 0.2), torch.from_numpy(rng.random(shape) < 0.5)
    clicks, labels = sample_clicks(region, truth, np.random.default_rng(seed))
    assert clicks.shape == (shape[0], 1, 2) and labels.shape == (shape[0], 1)
    for where, true, click, label in zip(region, truth, clicks[:, 0].long(), labels[:, 0], strict=True):
        assert where[click[1], click[0]] or not where.any()
        assert label == true[click[1], click[0]]
    again, _ = sample_clicks(region, truth, np.random.default_rng(seed))
    assert torch.equal(again, clicks)


def test_clicks_reach_every_pixel_of_the_region_alike():
    region = torch.zeros(6000, 5, 7, dtype=torch.bool)
    region[:, 1:3, 2:4] = True
    clicks, _ = sample_clicks(region, region, np.random.default_rng(0))
    _, counts = clicks[:, 0].unique(dim=0, return_counts=True)
    assert len(counts) == 4
    assert counts.min() > 1350


def test_wrong_settings_and_prompts_are_told_in_a_sentence():
    with pytest.raises(ConfigError, match="fraction of a side"):
        BoxJitter(amount=5)
    with pytest.raises(ConfigError, match="kind is outward, shift, loose or tight"):
        BoxJitter(kind="inward")
    with pytest.raises(ConfigError, match="steps=0 must be at least 1"):
        BoxJitter(steps=0)
    shape = (3, 20, 30)
    for prompt, sentence in [
        (Prompt(0, 0, box=(1, 1, 2, 2)), "object ids start at 1"),
        (Prompt(1, 3, box=(1, 1, 2, 2)), "slices 0 to 2"),
        (Prompt(1, 0), "neither a box nor clicks nor a mask"),
        (Prompt(1, 0, box=(5, 5, 5, 9)), "is empty"),
        (Prompt(1, 0, box=(40, 5, 50, 9)), "outside the slice of 30 x 20"),
        (Prompt(1, 0, mask=np.zeros((4, 4), bool)), "the slice is"),
    ]:
        with pytest.raises(UserError, match=sentence):
            prompt.check(shape)
