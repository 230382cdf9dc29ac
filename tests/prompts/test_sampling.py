"""Prompts are pure functions of a mask and a generator, and never leave the image or become empty."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsam2_ft.errors import ConfigError, UserError
from medsam2_ft.prompts.prompt import Prompt
from medsam2_ft.prompts.sampling import BoxJitter, jitter_box, sample_points, tight_box


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
    kind=st.sampled_from(["outward", "shift", "tight"]),
    unit=st.sampled_from(["image", "box"]),
    amount=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_jittered_boxes_stay_in_the_image_and_open(x, y, kind, unit, amount, seed):
    jitter = BoxJitter(kind, unit, amount)
    box = (float(x[0]), float(y[0]), float(x[1]), float(y[1]))
    x0, y0, x1, y1 = jitter_box(box, np.random.default_rng(seed), jitter=jitter, shape_hw=(48, 64))
    assert 0 <= x0 < x1 <= 64
    assert 0 <= y0 < y1 <= 48
    if kind == "outward":
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


def test_clicks_lie_on_the_mask(rng):
    mask = np.zeros((20, 30), bool)
    mask[5:8, 10:20] = True
    points, labels = sample_points(mask, rng, count=50)
    assert mask[points[:, 1].astype(int), points[:, 0].astype(int)].all()
    assert (labels == 1).all()


def test_wrong_settings_and_prompts_are_told_in_a_sentence():
    with pytest.raises(ConfigError, match="fraction of a side"):
        BoxJitter(amount=5)
    with pytest.raises(ConfigError, match="kind is outward, shift or tight"):
        BoxJitter(kind="inward")
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
