"""Rates and decay of every weight, and their schedule."""

import pytest

from medsam2_ft.errors import ConfigError
from medsam2_ft.losses import LossWeights
from medsam2_ft.modeling.adapt import LoraSettings, add_lora, trainable_parts
from medsam2_ft.training.optim import OptimiserSettings, build_optimiser, parameter_groups


def rates_by_name(segmenter, settings):
    names = {id(parameter): name for name, parameter in segmenter.named_parameters()}
    groups = parameter_groups(segmenter, settings)
    assert len({group["name"] for group in groups}) == len(groups), "names tell the groups apart"
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_layer_decay_lowers_rates_towards_the_image(tiny_segmenter):
    trained = trainable_parts(tiny_segmenter.sam2, ["encoder", "decoder"], losses=LossWeights())
    settings = OptimiserSettings(lr=1e-3, encoder_lr=1e-2, layer_decay=0.5)
    rates = rates_by_name(tiny_segmenter, settings)
    assert rates.keys() == {f"sam2.{name}" for name in trained}
    trunk = "sam2.image_encoder.trunk."
    for block in range(5):  # of five: the last has one factor, the first five, the patch embedding six
        assert rates[f"{trunk}blocks.{block}.attn.qkv.weight"][0] == pytest.approx(1e-2 * 0.5 ** (5 - block))
    for name in ("patch_embed.proj.weight", "pos_embed", "pos_embed_window"):
        assert rates[trunk + name][0] == pytest.approx(1e-2 * 0.5**6)
    assert rates["sam2.image_encoder.neck.convs.0.conv.weight"][0] == 1e-2
    assert rates["sam2.sam_mask_decoder.iou_token.weight"][0] == 1e-3
    assert rates[f"{trunk}blocks.0.norm1.weight"] == (pytest.approx(1e-2 * 0.5**5), 0.0)
    assert rates[f"{trunk}blocks.0.attn.qkv.weight"][1] == settings.weight_decay
    flat = rates_by_name(tiny_segmenter, OptimiserSettings(lr=1e-3, encoder_lr=1e-2))
    assert {rate for name, (rate, _) in flat.items() if "image_encoder" in name} == {1e-2}


def test_memory_has_its_own_rate(tiny_segmenter):
    trainable_parts(tiny_segmenter.sam2, ["memory", "decoder"], losses=LossWeights())
    rates = rates_by_name(tiny_segmenter, OptimiserSettings(lr=1e-3, memory_lr=1e-2))
    assert rates["sam2.memory_attention.layers.0.linear1.weight"][0] == 1e-2
    assert rates["sam2.maskmem_tpos_enc"][0] == 1e-2
    assert rates["sam2.sam_mask_decoder.iou_token.weight"][0] == 1e-3


def test_layer_decay_reaches_adapters(tiny_segmenter):
    trainable_parts(tiny_segmenter.sam2, [], losses=LossWeights())
    add_lora(tiny_segmenter.sam2, LoraSettings(targets=["encoder"]))
    rates = rates_by_name(tiny_segmenter, OptimiserSettings(lr=1e-3, layer_decay=0.5))
    assert {rate for name, (rate, _) in rates.items() if "blocks.4." in name} == {5e-4}


def test_rates_rise_and_fall(tiny_segmenter):
    trainable_parts(tiny_segmenter.sam2, ["decoder"], losses=LossWeights())
    settings = OptimiserSettings(lr=1.0, warmup=0.2, final_ratio=0.1)
    optimiser, schedule = build_optimiser(tiny_segmenter, settings, total_steps=10)
    rates = []
    for _ in range(11):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[10] == pytest.approx(0.1)


def test_wrong_layer_decay_is_told_in_a_sentence():
    with pytest.raises(ConfigError, match="optim.layer_decay=1.5 must be above 0 and at most 1"):
        OptimiserSettings(layer_decay=1.5)
