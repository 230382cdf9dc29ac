"""Which prompt a step takes, and where the simulated user clicks."""

from collections import Counter

import numpy as np
import pytest
import torch

from medsam2_ft.errors import ConfigError
from medsam2_ft.prompts.simulator import GIVEN_MASK, PromptSettings, PromptSimulator


def test_kinds_come_by_their_shares():
    prompts = PromptSettings(kinds={"box": 3, "point": 1, "mask": 0})
    draws = Counter(prompts.draw_kind(np.random.default_rng((7, i))) for i in range(2000))
    assert draws.keys() == {"box", "point"}
    assert 1400 < draws["box"] < 1600
    given = [prompts.draw_kind(np.random.default_rng((7, i)), given_masks=0.5) for i in range(200)]
    assert 70 < given.count(GIVEN_MASK) < 130
    assert prompts.draw_kind(np.random.default_rng(0), given_masks=1.0) == GIVEN_MASK


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kinds": {"pont": 1.0}}, "prompts.kinds names 'pont'; did you mean 'point'?"),
        ({"kinds": {"box": 1.0, "point": -1}}, "prompts.kinds.point=-1 must not be below 0"),
        ({"kinds": {"box": 0.0}}, "prompts.kinds are all 0"),
        ({"clicks": 0}, "prompts.clicks=0 must be at least 1"),
    ],
)
def test_wrong_shares_are_told_in_a_sentence(settings, sentence):
    with pytest.raises(ConfigError) as caught:
        PromptSettings(**settings)
    assert sentence in str(caught.value)


def masks() -> list[torch.Tensor]:
    first, second = torch.zeros(2, 20, 30, dtype=torch.bool), torch.zeros(1, 9, 9, dtype=torch.bool)
    first[0, 3:6, 4:20], first[1, 10:18, 2:9], second[0, 2:4, 5:8] = True, True, True
    return [first, second]


def test_clicks_hit_objects_and_errors_and_depend_on_the_seed_of_their_image_alone():
    truths = masks()
    clicks, labels = PromptSimulator(truths, [11, 12]).click_objects()
    for mask, (x, y) in zip([*truths[0], *truths[1]], clicks[:, 0].long().tolist(), strict=True):
        assert mask[y, x]
    assert labels.flatten().tolist() == [1, 1, 1]
    alone, _ = PromptSimulator(truths[1:], [12]).click_objects()
    assert torch.equal(clicks[2:], alone)

    preds = [truths[0].clone(), truths[1].clone()]
    preds[0][0, 3, 4] = False  # one pixel missed, one too many, one answer without a fault
    preds[0][1, 0, 29] = True
    simulator = PromptSimulator(truths, [11, 12])
    clicks, labels = simulator.click_errors(preds)
    assert clicks[:2, 0].tolist() == [[4, 3], [29, 0]]
    assert labels[:2, 0].tolist() == [1, 0]
    x, y = clicks[2, 0].long().tolist()
    assert labels[2, 0] == truths[1][0, y, x]
    draws = torch.stack([simulator.click_objects()[0] for _ in range(20)])
    assert len(draws[:, 0].unique(dim=0)) > 5, "every call clicks anew"


def test_images_without_objects_get_no_clicks():
    clicks, labels = PromptSimulator([torch.zeros(0, 8, 8, dtype=torch.bool)], [0]).click_objects()
    assert clicks.shape == (0, 1, 2) and labels.shape == (0, 1)
