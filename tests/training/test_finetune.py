"""Every way to tune: what gets a gradient, what stays, and that the exports are the networks that were trained."""

import lightning as L
import numpy as np
import pytest
import torch
from blobs import write_blobs

from medsam2_ft.data.augment import PRESETS, ClipAugmentation
from medsam2_ft.data.batch import collate
from medsam2_ft.data.datamodule import PromptedDataModule
from medsam2_ft.inference.predictor import Predictor
from medsam2_ft.losses import LossWeights
from medsam2_ft.modeling.adapt import LoraSettings, add_lora, trainable_parts
from medsam2_ft.modeling.build import SINGLE_MASK
from medsam2_ft.modeling.segmenter import PromptedSegmenter
from medsam2_ft.modeling.weights import merge_lora
from medsam2_ft.training.callbacks import ValidationOverlays
from medsam2_ft.training.module import FineTuner
from medsam2_ft.training.optim import OptimiserSettings

MEMORY_LOSSES = LossWeights(object_score=1.0)


def fit(segmenter, root, *, clip_length=1, losses=None, steps=2, batch_size=2, accumulate=1, **how):
    module = FineTuner(segmenter, losses=losses or LossWeights(), optim=OptimiserSettings(lr=1e-3), **how)
    data = PromptedDataModule(root, batch_size=batch_size, num_workers=0, clip_length=clip_length)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, default_root_dir=root, accumulate_grad_batches=accumulate,
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return module, trainer


@pytest.fixture
def root(tmp_path):
    return write_blobs(tmp_path, splits="train train val", num_slices=5)


@pytest.mark.parametrize(
    ("parts", "clip_length"),
    [
        (["encoder", "decoder", "no_memory"], 1),
        (["decoder", "no_memory"], 1),
        (["memory"], 3),
        (["memory", "decoder", "encoder"], 3),
    ],
)
@pytest.mark.parametrize("given_masks", [0.0, 1.0])
def test_all_that_trains_gets_a_gradient_and_nothing_else_moves(tiny_segmenter, root, parts, clip_length, given_masks):
    losses = MEMORY_LOSSES if clip_length > 1 else LossWeights()
    trained = trainable_parts(tiny_segmenter.sam2, parts, losses=losses)
    before = {name: p.detach().clone() for name, p in tiny_segmenter.sam2.named_parameters()}
    fit(tiny_segmenter, root, clip_length=clip_length, losses=losses, steps=1, given_masks=given_masks)
    after = dict(tiny_segmenter.sam2.named_parameters())
    assert {name for name, p in after.items() if p.grad is not None} <= set(trained)
    for name in set(after) - set(trained):
        assert torch.equal(after[name], before[name]), f"{name} moved"
    if clip_length == 1:
        assert all(not torch.equal(after[name], before[name]) for name in trained if after[name].ndim > 1)


def test_accumulated_gradients_are_those_of_one_large_batch(tiny_spec, root):
    """Slices hold one or two objects, so micro-batches differ in number."""
    gradients = []
    for batch_size, accumulate in ((4, 1), (2, 2), (1, 4)):
        torch.manual_seed(0)
        segmenter = PromptedSegmenter(tiny_spec)
        trainable_parts(segmenter.sam2, ["encoder", "decoder", "no_memory"], losses=LossWeights())
        fit(segmenter, root, steps=1, batch_size=batch_size, accumulate=accumulate)
        gradients.append({name: p.grad for name, p in segmenter.named_parameters() if p.grad is not None})
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, atol=1e-5, rtol=1e-3)


def test_lora_starts_as_the_base_and_merges_to_the_adapted(tiny_segmenter, root, rng):
    image = torch.from_numpy(rng.integers(0, 256, (64, 64), dtype=np.uint8))
    ask = ([image], torch.tensor([[5.0, 5, 40, 40]]), torch.zeros(1, dtype=torch.long))
    tiny_segmenter.eval()
    base = tiny_segmenter(*ask).logits_N1hw
    add_lora(tiny_segmenter.sam2, LoraSettings(rank=4, alpha=8))
    torch.testing.assert_close(tiny_segmenter(*ask).logits_N1hw, base, atol=0, rtol=0)
    fit(tiny_segmenter, root, steps=3)
    tiny_segmenter.eval()
    adapted = tiny_segmenter(*ask).logits_N1hw
    assert (adapted - base).abs().max() > 1e-3
    merged = PromptedSegmenter(tiny_segmenter.spec).eval()
    merged.sam2.load_state_dict(merge_lora(tiny_segmenter.sam2.state_dict(), scale=2.0))
    torch.testing.assert_close(merged(*ask).logits_N1hw, adapted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("multimask", [False, True])
def test_clip_forward_is_what_propagation_does(tiny_spec, rng, multimask):
    """With the true masks given on the first slice, training sees the logits that inference thresholds."""
    from medsam2_ft.inference.propagate import propagate

    torch.manual_seed(0)
    segmenter = PromptedSegmenter(tiny_spec.without_overrides(SINGLE_MASK) if multimask else tiny_spec)
    tiny_predictor = Predictor(segmenter, precision="fp32")
    segmenter.sam2.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.data.fill_(5)
    images = rng.integers(0, 256, (4, 8, 8), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    masks = np.zeros((2, 64, 64), bool)
    masks[0, 10:30, 12:40], masks[1, 35:60, 20:50] = True, True
    from medsam2_ft.modeling.clips import track_clips

    with torch.no_grad():
        features = [segmenter.encode(segmenter.normalise([torch.from_numpy(frame)])) for frame in images]
        answers = track_clips(
            segmenter,
            features,
            image_index_N=torch.zeros(2, dtype=torch.long),
            masks_N1SS=torch.from_numpy(masks).float()[:, None],
        )
    assert [answer.logits_NMhw.shape[1] for _, answer in answers] == [1, *[3 if multimask else 1] * 3]
    tracked = dict(propagate(tiny_predictor, images, conditioning={0: masks}))
    for t in range(1, 4):
        logits = torch.nn.functional.interpolate(dict(answers)[t].logits_N1hw, (64, 64), mode="bilinear")[:, 0]
        assert ((logits > 0).numpy() != tracked[t]).mean() < 2e-3  # inference keeps its memory in bfloat16


def test_overlays_of_clips_show_the_prompted_slice(tiny_segmenter, root, tmp_path):
    trainable_parts(tiny_segmenter.sam2, ["memory"], losses=MEMORY_LOSSES)
    module = FineTuner(tiny_segmenter, losses=MEMORY_LOSSES, optim=OptimiserSettings())
    data = PromptedDataModule(root, num_workers=0, clip_length=3)
    overlays = ValidationOverlays(tmp_path / "overlays", count=2)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[overlays],
        use_distributed_sampler=False, default_root_dir=root,
    )  # fmt: skip
    trainer.validate(module, datamodule=data, verbose=False)
    assert (tmp_path / "overlays" / "val_0.png").is_file()


def test_a_loss_that_is_no_number_stops_with_a_sentence(tiny_segmenter, root, tmp_path):
    trainable_parts(tiny_segmenter.sam2, ["decoder"], losses=LossWeights())
    tiny_segmenter.sam2.sam_mask_decoder.mask_tokens.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"step 0: the loss is nan on blob_.*the batch is kept in"):
        fit(tiny_segmenter, root)


@pytest.mark.parametrize("preset", PRESETS)
def test_augmentation_is_one_draw_for_the_clip_and_repeats_from_its_generator(preset):
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[20:40, 10:50] = True
    augment = ClipAugmentation(preset)
    images, masks = augment(np.stack([frame] * 3), np.stack([mask] * 3)[None], np.random.default_rng(5))
    again = ClipAugmentation(preset)(np.stack([frame] * 3), np.stack([mask] * 3)[None], np.random.default_rng(5))
    np.testing.assert_array_equal(images, again[0])
    np.testing.assert_array_equal(masks, again[1])
    assert masks.shape == (1, 3, 64, 64)
    for t in (1, 2):
        np.testing.assert_array_equal(masks[0, t], masks[0, 0])


def test_unlabelled_slices_do_not_count(tiny_segmenter, root):
    trainable_parts(tiny_segmenter.sam2, ["memory"], losses=MEMORY_LOSSES)
    module = FineTuner(tiny_segmenter, losses=MEMORY_LOSSES, optim=OptimiserSettings())
    data = PromptedDataModule(root, num_workers=0, clip_length=3)
    data.prepare_data()
    data.setup()
    clip = data.val_set[0]
    known = collate([clip])
    object.__setattr__(clip, "labelled_T", np.array([True, False, True]))
    partly = collate([clip])
    partly.masks[0][:, 1] = ~partly.masks[0][:, 1]  # whatever stands there
    module.log = lambda *args, **kwargs: None
    torch.manual_seed(0)
    tiny_segmenter.eval()
    whole, some = (module._step(batch, "val")[0] for batch in (known, partly))
    assert some < whole
