import numpy as np
import pytest

from medsam2_ft.data.intensity import WINDOWS, IntensityRecipe, default_recipe, parse_windows
from medsam2_ft.errors import DataError


def test_window_is_scaled_by_its_own_bounds_not_by_the_image():
    recipe = IntensityRecipe("window", windows=((40.0, 400.0),))
    narrow = np.array([[[-160.0, 40.0, 240.0]]])
    wide = np.array([[[-1000.0, 40.0, 3000.0]]])
    assert recipe.apply(narrow).tolist() == [[[0, 128, 255]]]
    assert recipe.apply(wide)[0, 0, 1] == 128
    # Nothing in this image reaches the window's ends; the same tissue still gets the same grey.
    assert recipe.apply(np.array([[[40.0, 50.0]]]))[0, 0, 0] == 128


def test_percentiles_come_from_the_foreground():
    values = np.zeros((4, 50, 50), np.float32)
    values[:, 10:40, 10:40] = np.random.default_rng(0).uniform(100, 200, (4, 30, 30))
    values[0, 10, 10] = 1e6
    out = IntensityRecipe("percentile").apply(values)
    assert out[0, 0, 0] == 0 and out[0, 10, 10] == 255
    assert 100 < np.median(out[:, 10:40, 10:40]) < 155


def test_percentiles_of_nothing_and_of_a_constant():
    assert IntensityRecipe("percentile").apply(np.zeros((1, 4, 4))).max() == 0
    assert IntensityRecipe("percentile").apply(np.full((1, 4, 4), 7.0)).shape == (1, 4, 4)


def test_three_windows_become_channels():
    recipe = default_recipe("CT", windows=parse_windows(["lung", "soft_tissue", "bone"]), eight_bit=False)
    out = recipe.apply(np.full((2, 4, 5), 40.0))
    assert out.shape == (2, 4, 5, 3)
    assert out[0, 0, 0, 1] == 128


def test_passthrough_keeps_bytes_and_refuses_more():
    recipe = IntensityRecipe("passthrough")
    image = np.random.default_rng(0).integers(0, 256, (1, 5, 5, 3), dtype=np.uint8)
    assert recipe.apply(image) is image
    assert recipe.apply(image.astype(np.uint16)).dtype == np.uint8
    with pytest.raises(DataError, match="passthrough"):
        recipe.apply(np.array([[[300]]]))


@pytest.mark.parametrize(
    "recipe", [IntensityRecipe("percentile", percentiles=(1, 99)), IntensityRecipe("window", windows=((40.0, 80.0),))]
)
def test_recipes_travel_as_plain_dicts(recipe: IntensityRecipe):
    import json

    assert IntensityRecipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_defaults_follow_the_modality():
    assert default_recipe("CT", eight_bit=False).windows == (WINDOWS["soft tissue"],)
    assert default_recipe("MR", eight_bit=False).method == "percentile"
    assert default_recipe("Endoscopy", eight_bit=True).method == "passthrough"


@pytest.mark.parametrize(
    ("words", "sentence"), [(["lnug"], "did you mean 'lung'"), (["40"], "without a width"), (["40", "0"], "positive")]
)
def test_windows_that_make_no_sense(words, sentence):
    with pytest.raises(DataError, match=sentence):
        default_recipe("CT", windows=parse_windows(words), eight_bit=False)
