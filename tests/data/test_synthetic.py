"""Synthetic scenes: repeatable, never empty, objects where their masks say, boxes round them."""

import numpy as np
import pytest

from medsam2_ft.data.shapes import KINDS, Pose, rasterise
from medsam2_ft.data.synthetic import JoinedDataset, SyntheticDataset, draw_clip
from medsam2_ft.prompts.sampling import tight_boxes


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_shapes_fit_their_disc(kind, rng):
    for _ in range(10):
        pixels = rasterise(kind(rng), Pose(40, 40, 20, 0.3), size=80)
        y, x = np.nonzero(pixels)
        assert len(y)
        assert np.hypot(x - 40, y - 40).max() < 2 * 20


@pytest.mark.parametrize("num_frames", [1, 5])
def test_clips_hold_objects(num_frames, rng):
    kinds = set()
    for _ in range(30):
        images, masks = draw_clip(rng, num_frames=num_frames, size=64)
        assert images.dtype == np.uint8 and images.shape[:3] == (num_frames, 64, 64)
        assert masks.shape[1:] == (num_frames, 64, 64) and masks.any(axis=(1, 2, 3)).all()
        assert images.std() > 1
        kinds.add(images.ndim)
    assert kinds == {3, 4}  # grey and colour


def test_objects_can_be_told_from_what_surrounds_them():
    """Over many objects, the step in brightness across the border is far above the step across a border moved elsewhere."""
    inside, elsewhere = [], []
    for clip in (SyntheticDataset(20, size=96)[i] for i in range(20)):
        image = clip.images[0].astype(float)
        image = image if image.ndim == 2 else image.mean(-1)
        for mask in clip.masks[:, 0]:
            for where, steps in ((mask, inside), (np.roll(mask, (37, 23), (0, 1)), elsewhere)):
                grown = where | np.roll(where, 2, 0) | np.roll(where, -2, 0) | np.roll(where, 2, 1) | np.roll(where, -2, 1)
                steps.append(abs(image[where].mean() - image[grown & ~where].mean()))
    assert np.median(inside) > 2 * np.median(elsewhere)


def test_same_key_same_clip_other_epoch_other_clip():
    first, again = SyntheticDataset(4, size=64, seed=1), SyntheticDataset(4, size=64, seed=1)
    assert np.array_equal(first[0, 2].images, again[0, 2].images)
    assert np.array_equal(first[0, 2].boxes_N4, again[2].boxes_N4)
    assert not np.array_equal(first[0, 2].images, first[1, 2].images)
    assert not np.array_equal(first[0, 2].images, SyntheticDataset(4, size=64, seed=2)[0, 2].images)


def test_boxes_are_tight_on_the_prompted_frame():
    for i in range(10):
        clip = SyntheticDataset(10, num_frames=4, size=64, max_labels=3)[i]
        assert 1 <= len(clip.masks) <= 3
        assert np.array_equal(clip.boxes_N4, tight_boxes(clip.masks[:, clip.prompt_slice]))


def test_joined_datasets_keep_their_keys():
    parts = [SyntheticDataset(2, size=64, seed=1), SyntheticDataset(3, size=64, seed=2)]
    joined = JoinedDataset(parts)
    assert len(joined) == 5
    assert np.array_equal(joined[7, 1].images, parts[0][7, 1].images)
    assert np.array_equal(joined[7, 4].images, parts[1][7, 2].images)
