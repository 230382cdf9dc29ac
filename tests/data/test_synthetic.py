"""Synthetic scenes: repeatable, never empty, objects where their masks say, boxes round them."""

import numpy as np
import pytest

from medsam2_ft.data.datamodule import PromptedDataModule
from medsam2_ft.data.shapes import KINDS, Pose, rasterise
from medsam2_ft.data.synthetic import REGION, JoinedDataset, SyntheticDataset, SyntheticSettings, draw_clip
from medsam2_ft.errors import ConfigError
from medsam2_ft.prompts.sampling import tight_boxes
from tests.blobs import write_blobs


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
                grown = (
                    where | np.roll(where, 2, 0) | np.roll(where, -2, 0) | np.roll(where, 2, 1) | np.roll(where, -2, 1)
                )
                steps.append(abs(image[where].mean() - image[grown & ~where].mean()))
    assert np.median(inside) > 2 * np.median(elsewhere)


def test_same_key_same_clip_other_epoch_other_clip():
    first, again = SyntheticDataset(4, size=64, seed=1), SyntheticDataset(4, size=64, seed=1)
    assert np.array_equal(first[0, 2].images, again[0, 2].images)
    assert np.array_equal(first[0, 2].boxes_N4, again[2].boxes_N4)
    assert not np.array_equal(first[0, 2].images, first[1, 2].images)
    assert not np.array_equal(first[0, 2].images, SyntheticDataset(4, size=64, seed=2)[0, 2].images)


def test_boxes_are_tight_on_the_first_frame():
    for i in range(10):
        clip = SyntheticDataset(10, num_frames=4, size=64, max_labels=3)[i]
        assert 1 <= len(clip.masks) <= 3
        assert np.array_equal(clip.boxes_N4, tight_boxes(clip.masks[:, 0]))


def test_joined_datasets_keep_their_keys():
    parts = [SyntheticDataset(2, size=64, seed=1), SyntheticDataset(3, size=64, seed=2)]
    joined = JoinedDataset(parts)
    assert len(joined) == 5
    assert np.array_equal(joined[7, 1].images, parts[0][7, 1].images)
    assert np.array_equal(joined[7, 4].images, parts[1][7, 2].images)


def test_data_module_without_any_prepared_case():
    data = PromptedDataModule(
        [], synthetic=SyntheticSettings(train_images=6, val_images=2, size=64), batch_size=3, num_workers=0
    )
    data.prepare_data()
    data.setup()
    assert (data.regions, data.labels, data.recipe) == ([REGION], {}, None)
    batches = list(data.train_dataloader())
    assert [len(batch.images) for batch in batches] == [3, 3]
    first, again = next(iter(data.val_dataloader())), next(iter(data.val_dataloader()))
    assert len(first.images) == 1 and np.array_equal(first.images[0], again.images[0])


def test_data_module_joins_prepared_and_synthetic(tmp_path):
    root = write_blobs(tmp_path)
    data = PromptedDataModule(root, synthetic=SyntheticSettings(train_images=5, size=64), num_workers=0)
    data.setup()
    alone = PromptedDataModule(root, num_workers=0)
    alone.setup()
    assert len(data.train_set) == len(alone.train_set) + 5
    assert data.fingerprint != alone.fingerprint
    assert set(data.regions) == {*alone.regions, REGION}


def test_nothing_to_train_on_is_refused():
    with pytest.raises(ConfigError, match="nothing to train on"):
        PromptedDataModule([])
