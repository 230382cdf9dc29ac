"""Every kind of prompt in training: what it asks, what it trains, and that it is what inference does."""

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from medsam2_ft.data.batch import Clip, collate
from medsam2_ft.errors import ConfigError
from medsam2_ft.inference.predictor import Predictor
from medsam2_ft.losses import LossWeights
from medsam2_ft.modeling.adapt import UNSUPERVISED_TOKENS, LoraSettings, trainable_parts
from medsam2_ft.modeling.build import SINGLE_MASK
from medsam2_ft.modeling.rounds import PromptRounds
from medsam2_ft.modeling.segmenter import PromptedSegmenter
from medsam2_ft.prompts.sampling import tight_boxes
from medsam2_ft.prompts.simulator import GIVEN_MASK, KINDS, PromptSettings, PromptSimulator
from medsam2_ft.resources import configs
from medsam2_ft.training.module import FineTuner
from medsam2_ft.training.optim import OptimiserSettings, build_optimiser
from medsam2_ft.training.settings import FinetuneSettings, build_module, choose_trained

META_LOSSES = LossWeights(dice=1, bce=0, focal=20, iou=1, object_score=1)


def squares(num_objects: int = 2, *, num_slices: int = 1, seed: int = 0) -> Clip:
    images = np.random.default_rng(seed).integers(0, 256, (num_slices, 48, 80), dtype=np.uint8)
    masks = np.zeros((num_objects, num_slices, 48, 80), bool)
    for i in range(num_objects):
        masks[i, :, 5 + 9 * i : 20 + 9 * i, 8 + 20 * i : 30 + 20 * i] = True
    return Clip(images, masks, tight_boxes(masks[:, 0]), ("square",) * num_objects, f"squares_{seed}", seed=seed)


def build(segmenter: PromptedSegmenter, *, losses: LossWeights | None = None, **how) -> FineTuner:
    module = FineTuner(segmenter, losses=losses or LossWeights(), optim=OptimiserSettings(lr=1e-3), **how)
    module.log = lambda *args, **kwargs: None
    module._kind = sorted(module.prompts.active)[0]
    return module


def several_masks(spec) -> PromptedSegmenter:
    torch.manual_seed(0)
    return PromptedSegmenter(spec.without_overrides(SINGLE_MASK))


@pytest.mark.parametrize("multimask", [False, True])
def test_rounds_are_what_the_predictor_answers_to_the_same_prompts(tiny_spec, multimask):
    segmenter = several_masks(tiny_spec) if multimask else PromptedSegmenter(tiny_spec)
    tiny_predictor = Predictor(segmenter, precision="fp32")
    batch = collate([squares()])
    image, truth = batch.images[0][0].numpy(), batch.masks[0][:, 0]
    embedding = tiny_predictor.embed(image)
    sizes = batch.sizes_hw_N2
    prompts = {"boxes_N4": batch.boxes_N4.numpy()}
    with torch.no_grad():
        carried = segmenter.without_memory(embedding.features.pick(batch.image_index_N).embedding_BChw)
        high_res = embedding.features.pick(batch.image_index_N).high_res
        rounds = PromptRounds("box_clicks", batch.boxes_N4, sizes, PromptSimulator([truth], [3]), num_clicks=2)
        answers = rounds.decode(segmenter, carried, high_res)
        point = PromptRounds("point", batch.boxes_N4, sizes, PromptSimulator([truth], [3])).decode(
            segmenter, carried, high_res
        )
        fed_back = PromptRounds("mask", batch.boxes_N4, sizes, PromptSimulator([truth], [3])).decode(
            segmenter, carried, high_res
        )
    first = tiny_predictor.predict(embedding, **prompts)
    torch.testing.assert_close(answers[0].logits_N1hw[:, 0], first.logits_Nhw)
    simulator, points, labels, expected = PromptSimulator([truth], [3]), [], [], first
    for answer in answers[1:]:
        clicks, signs = simulator.click_errors([torch.from_numpy(expected.masks_NHW)])
        points, labels = [*points, clicks], [*labels, signs]
        expected = tiny_predictor.predict(
            embedding, **prompts, points_NP2=torch.cat(points, 1).numpy(), point_labels_NP=torch.cat(labels, 1).numpy(),
            mask_logits_Nhw=expected.logits_Nhw,
        )  # fmt: skip
        torch.testing.assert_close(answer.logits_N1hw[:, 0], expected.logits_Nhw)
    clicks, signs = PromptSimulator([truth], [3]).click_objects()
    assert point[0].logits_NMhw.shape[1] == (3 if multimask else 1)
    expected = tiny_predictor.predict(embedding, points_NP2=clicks.numpy(), point_labels_NP=signs.numpy())
    torch.testing.assert_close(point[0].logits_N1hw[:, 0], expected.logits_Nhw)
    expected = tiny_predictor.predict(embedding, **prompts, mask_logits_Nhw=first.logits_Nhw)
    torch.testing.assert_close(fed_back[1].logits_N1hw[:, 0], expected.logits_Nhw)


@pytest.mark.parametrize(("kind", "num_answers"), [("box", 1), ("point", 1), ("box_clicks", 4), ("mask", 2)])
@pytest.mark.parametrize("num_slices", [1, 3])
def test_one_encoder_pass_a_slice_serves_all_rounds(tiny_segmenter, kind, num_answers, num_slices):
    passes = []
    tiny_segmenter.sam2.image_encoder.trunk.register_forward_hook(lambda *args: passes.append(1))
    module = build(tiny_segmenter, prompts=PromptSettings(kinds={kind: 1.0}))
    batch = collate([squares(num_slices=num_slices), squares(1, num_slices=num_slices, seed=1)])
    total, count, last = module._step(batch, "train")
    assert len(passes) == num_slices
    assert count == 3 * (num_answers + num_slices - 1)
    assert [t for t, _ in last] == list(range(num_slices))
    total.backward()
    assert tiny_segmenter.sam2.image_encoder.trunk.patch_embed.proj.weight.grad.abs().sum() > 0
    only_last = build(tiny_segmenter, prompts=PromptSettings(kinds={kind: 1.0}, rounds="last"))
    assert only_last._step(batch, "train")[1] == 3 * num_slices


def test_the_answer_fed_back_carries_a_gradient_for_clicks_and_none_for_mask(tiny_segmenter):
    batch = collate([squares()])
    for kind, expected in (("box_clicks", True), ("mask", False)):
        answers = build(tiny_segmenter)(batch, kind=kind)
        (gradient,) = torch.autograd.grad(answers[1][1].logits_NMhw.sum(), answers[0][1].logits_NMhw, allow_unused=True)
        assert (gradient is not None and bool(gradient.abs().sum() > 0)) is expected


def test_clicks_do_not_depend_on_the_batch(tiny_segmenter):
    """An image gets the same clicks alone and beside others, so ranks and batch sizes do not change what is learned."""
    tiny_segmenter.eval()
    module = build(tiny_segmenter)
    with torch.no_grad():
        alone = module(collate([squares(seed=4)]), kind="box_clicks")
        beside = module(collate([squares(3, seed=9), squares(seed=4)]), kind="box_clicks")
    for (_, one), (_, both) in zip(alone, beside, strict=True):
        torch.testing.assert_close(both.logits_N1hw[3:], one.logits_N1hw, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("multimask", [False, True])
def test_multimask_trains_its_tokens_and_the_iou_head_and_single_mask_leaves_them(tiny_spec, multimask):
    segmenter = several_masks(tiny_spec) if multimask else PromptedSegmenter(tiny_spec)
    losses = META_LOSSES if multimask else LossWeights()
    prompts = PromptSettings(kinds={"point": 1.0, "box": 1.0})
    finetune = FinetuneSettings(["decoder"], losses=losses, multimask=multimask)
    choose_trained(segmenter, finetune, prompts)
    module = build(segmenter, losses=losses, prompts=prompts)
    module._kind = "point"
    before = {name: p.detach().clone() for name, p in segmenter.sam2.named_parameters()}
    optimiser, _ = build_optimiser(segmenter, OptimiserSettings(lr=1e-2, weight_decay=0.5, warmup=0.0), total_steps=2)
    total, _, answers = module._step(collate([squares()]), "train")
    assert answers[0][1].logits_NMhw.shape[1] == (3 if multimask else 1)
    total.backward()
    optimiser.step()
    now = dict(segmenter.sam2.named_parameters())
    alternatives = [name for name in now if name.startswith(UNSUPERVISED_TOKENS)]
    judged = [name for name in now if "iou_prediction_head" in name]
    for name in [*alternatives, *judged]:
        reached = now[name].grad is not None and bool(now[name].grad.abs().sum() > 0)
        if name in judged or not multimask:
            assert reached == multimask, name
        assert multimask or torch.equal(now[name], before[name]), f"{name} moved without a loss"
    if multimask:  # of three masks an object the best is trained, so with two objects at most two tokens' weights
        touched = {name.split(".")[2] for name in alternatives if now[name].grad.abs().sum() > 0}
        assert 1 <= len(touched) <= 2
        assert not any(now[name].grad.abs().sum() for name in now if "output_hypernetworks_mlps.0." in name)


def test_what_a_step_does_not_show_is_not_decayed(tiny_segmenter):
    """A box alone supervises mask token 0 and the corners: rows of other tokens and prompts stay as they are."""
    losses, prompts = LossWeights(iou=1.0), PromptSettings(kinds={"point": 1.0, "box": 1.0})
    choose_trained(tiny_segmenter, FinetuneSettings(["decoder", "prompt_encoder"], losses=losses), prompts)
    module = build(tiny_segmenter, losses=losses, prompts=prompts)
    module._kind = "box"
    now = dict(tiny_segmenter.sam2.named_parameters())
    before = {name: p.detach().clone() for name, p in now.items()}
    optimiser, _ = build_optimiser(
        tiny_segmenter, OptimiserSettings(lr=1e-2, weight_decay=0.5, warmup=0.0), total_steps=2
    )
    module._step(collate([squares()]), "train")[0].backward()
    optimiser.step()
    row = "sam_mask_decoder.iou_prediction_head.layers.2.weight"
    assert not torch.equal(now[row][0], before[row][0])
    assert torch.equal(now[row][1:], before[row][1:])
    click = "sam_prompt_encoder.point_embeddings.1.weight"
    assert now[click].requires_grad
    assert torch.equal(now[click], before[click])


@pytest.mark.parametrize(
    ("finetune", "kinds", "sentence"),
    [
        ({"losses": LossWeights()}, {"point": 1, "box": 1}, "finetune.multimask needs finetune.losses.iou"),
        ({"losses": META_LOSSES}, {"box": 1}, "needs a share for point and one for another kind"),
        ({"losses": META_LOSSES}, {"point": 1}, "needs a share for point and one for another kind"),
    ],
)
def test_multimask_that_would_leave_tokens_untrained_is_refused(tiny_spec, finetune, kinds, sentence):
    with pytest.raises(ConfigError, match=sentence):
        choose_trained(
            several_masks(tiny_spec),
            FinetuneSettings(["decoder"], multimask=True, **finetune),
            PromptSettings(kinds=kinds),
        )


def test_of_the_prompt_encoder_only_what_the_kinds_use_trains(tiny_segmenter):
    for kinds, expected in [({"box"}, {"2", "3"}), ({"point"}, {"1"}), ({"box_clicks"}, {"0", "1", "2", "3"})]:
        names = trainable_parts(tiny_segmenter.sam2, ["prompt_encoder"], losses=LossWeights(), kinds=kinds)
        assert {name.split(".")[2] for name in names if "point_embeddings" in name} == expected
        assert any("mask_downscaling" in name for name in names) == ("box_clicks" in kinds)


@pytest.mark.parametrize("kind", [*KINDS, GIVEN_MASK])
@pytest.mark.parametrize("num_slices", [1, 3])
def test_no_objects_give_a_loss_of_zero(tiny_segmenter, kind, num_slices):
    if kind == GIVEN_MASK and num_slices == 1:
        pytest.skip("given masks are for clips")
    module = build(tiny_segmenter, losses=META_LOSSES, loss_stride=2)
    module._kind = kind
    empty = collate([squares(0, num_slices=num_slices)] * 2)
    assert empty.num_objects == 0
    total, count, _ = module._step(empty, "train")
    assert (float(total), count) == (0.0, 0)
    partly = collate([squares(0, num_slices=num_slices), squares(2, num_slices=num_slices)])
    total, count, _ = module._step(partly, "train")
    assert torch.isfinite(total) and total > 0 and count >= 2 * num_slices


@pytest.mark.parametrize("kind", [*KINDS, GIVEN_MASK])
def test_every_kind_trains_in_bfloat16(tiny_spec, kind):
    segmenter = several_masks(tiny_spec)
    module = build(segmenter, losses=META_LOSSES)
    module._kind = kind
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _, _ = module._step(collate([squares(num_slices=2)]), "train")
    assert total.dtype == torch.float32
    total.backward()
    gradients = [p.grad for p in segmenter.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_empty_batches_leave_the_weights_without_decay_alone(tiny_segmenter):
    """A batch without objects must give every trained weight a zero, not nothing, or ranks would wait for each other."""

    class OneRank:
        world_size = accumulate_grad_batches = 1

    trained = trainable_parts(tiny_segmenter.sam2, ["encoder", "decoder", "no_memory"], losses=LossWeights())
    module = build(tiny_segmenter)
    module._trainer, module._batch_dsc = OneRank(), lambda *args: torch.tensor(0.0)
    module.training_step(collate([squares(0)]), 0).backward()
    weights = dict(tiny_segmenter.sam2.named_parameters())
    assert all(weights[name].grad is not None and not weights[name].grad.any() for name in trained)


def test_adapters_of_memory_need_clips(tiny_segmenter):
    lora = LoraSettings(targets=["memory"])
    with pytest.raises(ConfigError, match=r"clip_length=1 does not go with .* LoRA on \['memory'\]"):
        choose_trained(tiny_segmenter, FinetuneSettings([], lora=lora), PromptSettings())
    choose_trained(tiny_segmenter, FinetuneSettings([], lora=lora, clip_length=3), PromptSettings())
    trained = [name for name, p in tiny_segmenter.named_parameters() if p.requires_grad]
    assert trained
    assert all("memory_attention" in name and "lora" in name for name in trained)


def test_three_masks_of_a_one_mask_model_need_its_decoder():
    with initialize_config_dir(str(configs()), version_base="1.3"):
        cfg = compose("train", ["finetune=memory", "finetune.multimask=true", "finetune.losses.iou=1"])
    with pytest.raises(ConfigError, match=r"sam2.1_nano has trained one mask token only"):
        build_module(cfg, None)
