"""Label maps of several objects."""

import numpy as np

from medsam2_ft.prompts.prompt import Prompt


def everything(predictor, images, *, conditioning, low, high, features):
    """A propagation whose objects fill every slice."""
    masks = next(iter(conditioning.values()))
    return ((t, np.ones_like(masks)) for t in range(low, high))


def test_objects_stay_in_their_own_depth_and_take_nothing_from_others_beyond_it(tiny_predictor, monkeypatch):
    monkeypatch.setattr("medsam2_ft.inference.propagate.propagate", everything)
    images = np.zeros((10, 32, 32), np.uint8)
    liver, lesion = Prompt(5, 4, box=(2, 2, 30, 30)), Prompt(2, 4, box=(8, 8, 16, 16))
    labels = tiny_predictor.segment(images, [liver, lesion], z_range=(0, 8), depths={5: (0, 6), 2: (3, 8)})
    assert [np.unique(plane).tolist() for plane in labels] == [[5]] * 3 + [[2]] * 5 + [[0]] * 2


def test_the_object_given_later_is_on_top_whatever_slices_others_share(tiny_predictor, monkeypatch):
    monkeypatch.setattr("medsam2_ft.inference.propagate.propagate", everything)
    prompts = [Prompt(number, t, box=(2, 2, 30, 30)) for number, t in ((1, 0), (2, 1), (3, 0))]
    labels = tiny_predictor.segment(np.zeros((2, 32, 32), np.uint8), prompts)
    assert (labels == 3).all()
