"""Propagation equals stock SAM2's video predictor, but batches the objects and forgets what it no longer needs."""

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image

from medsam2_ft.errors import UserError
from medsam2_ft.inference.propagate import FeatureCache, _Tracker, propagate, propagate_groups
from medsam2_ft.modeling.build import resolve_config


@pytest.fixture
def frames(rng):
    coarse = rng.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


@pytest.fixture
def masks():
    masks = np.zeros((2, 64, 64), bool)
    masks[0, 10:30, 12:40], masks[1, 35:60, 20:50] = True, True
    return masks


def stock_video_masks(predictor, folder, masks, start):
    config = resolve_config(predictor.segmenter.spec)
    config.model._target_ = "sam2.sam2_video_predictor.SAM2VideoPredictor"
    stock = instantiate(config.model, _recursive_=True).eval()
    stock.load_state_dict(predictor.segmenter.sam2.state_dict())
    answers = {}
    for reverse in (False, True):
        state = stock.init_state(str(folder))
        for i, mask in enumerate(masks):
            stock.add_new_mask(state, start, i + 1, mask)
        for t, _, logits in stock.propagate_in_video(state, start_frame_idx=start, reverse=reverse):
            answers[t] = logits
    return answers


def test_masks_equal_stock_video_predictor(tiny_predictor, frames, masks, tmp_path, monkeypatch):
    for t, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{t:03}.jpg", quality=95)
    frames = np.stack([np.asarray(Image.open(tmp_path / f"{t:03}.jpg")) for t in range(len(frames))])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    tiny_predictor.segmenter.sam2.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.data.fill_(
        5
    )  # no frame is "empty"
    expected = stock_video_masks(tiny_predictor, tmp_path, masks, start=4)
    ours = dict(propagate(tiny_predictor, frames, conditioning={4: masks}))
    assert sorted(ours) == list(range(9))
    assert 0.01 < np.mean([ours[t] for t in ours if t != 4]) < 0.99
    for t in range(9):
        if t != 4:
            np.testing.assert_array_equal(ours[t], (expected[t][:, 0] > 0).numpy(), err_msg=f"frame {t}")


def test_conditioning_masks_come_back_unchanged(tiny_predictor, frames, masks):
    ours = dict(propagate(tiny_predictor, frames, conditioning={3: masks, 6: masks[:, ::-1]}))
    np.testing.assert_array_equal(ours[3], masks)
    np.testing.assert_array_equal(ours[6], masks[:, ::-1])


def test_objects_do_not_depend_on_their_batch(tiny_predictor, frames, masks):
    together = dict(propagate(tiny_predictor, frames, conditioning={4: masks}))
    alone = dict(propagate(tiny_predictor, frames, conditioning={4: masks[1:]}))
    for t in range(9):
        assert (together[t][1] != alone[t][0]).mean() < 1e-3


def test_every_slice_once_and_only_the_range(tiny_predictor, frames, masks):
    order = [t for t, _ in propagate(tiny_predictor, frames, conditioning={4: masks}, low=2, high=8)]
    assert order == [4, 5, 6, 7, 3, 2]
    down = [t for t, _ in propagate(tiny_predictor, frames, conditioning={4: masks}, directions=("down",))]
    assert sorted(down) == [0, 1, 2, 3, 4]


def test_groups_answer_as_alone_and_share_encodings(tiny_predictor, frames, masks, monkeypatch):
    groups = [{2: masks[:1]}, {6: masks[1:], 7: masks[1:]}]
    alone = [dict(propagate(tiny_predictor, frames, conditioning=group, low=1)) for group in groups]
    calls, embed = [], tiny_predictor.embed
    monkeypatch.setattr(tiny_predictor, "embed", lambda image: calls.append(1) or embed(image))
    steps = list(propagate_groups(tiny_predictor, frames, groups=groups, low=1))
    assert len(calls) == 8
    assert sorted((t, number) for t, number, _ in steps) == [(t, n) for t in range(1, 9) for n in (0, 1)]
    for t, number, found in steps:
        np.testing.assert_array_equal(found, alone[number][t])


def test_memory_stays_bounded(tiny_predictor, rng, masks):
    images = rng.integers(0, 256, (40, 64, 64), dtype=np.uint8)
    cache = FeatureCache(tiny_predictor, images, budget_bytes=1)
    tracker = _Tracker(tiny_predictor, cache, 0, 40)
    tracker.condition(0, masks)
    for t in range(1, 40):
        tracker.step(t, reverse=False)
    tracked = tracker.outputs["non_cond_frame_outputs"]
    assert len(tracked) <= 16
    assert sum(output["maskmem_features"] is not None for output in tracked.values()) <= 7
    assert len(cache._kept) == 1


def test_bad_calls_are_told_in_a_sentence(tiny_predictor, frames, masks):
    with pytest.raises(UserError, match="at least one slice"):
        next(propagate(tiny_predictor, frames, conditioning={}))
    with pytest.raises(UserError, match="outside the z-range"):
        next(propagate(tiny_predictor, frames, conditioning={8: masks}, high=5))
