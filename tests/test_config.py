"""Configuration mistakes are told with the full key and the nearest valid one."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from medsam2_ft.config import check_overrides, typed
from medsam2_ft.errors import ConfigError
from medsam2_ft.training.optim import OptimiserSettings

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
GROUPS = [path.relative_to(CONFIGS) for path in sorted(CONFIGS.glob("*/*.yaml")) if path.parent.name != "benchmark"]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optim.lrr=1", "there is no setting 'optim.lrr'; did you mean 'optim.lr'?"),
        ("modle=sam2_tiny", "modle"),
        ("model=sam2.1_tinny", "there is no model=sam2.1_tinny; did you mean 'sam2.1_tiny'?"),
        ("prompts.kinds.pont=1", "there is no setting 'prompts.kinds.pont'; did you mean 'prompts.kinds.point'?"),
        ("trainer.devises=4", "did you mean 'trainer.devices'?"),
        ("optim.lr=[1", "cannot read 'optim.lr=[1'"),
    ],
)
def test_wrong_overrides(override, sentence):
    with pytest.raises(ConfigError, match=".*") as caught:
        check_overrides([override], config_dir=CONFIGS, config_name="train")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_right_overrides_and_sweeps_pass():
    check_overrides(
        ["-m", "optim.lr=1e-3,1e-4", "model=sam2.1_tiny,sam2.1_nano", "hydra.run.dir=x"],
        config_dir=CONFIGS,
        config_name="train",
    )


@pytest.mark.parametrize("path", GROUPS, ids=str)
def test_every_shipped_yaml_composes(path):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        assert compose("train", [f"{path.parent}={path.stem}"])


def test_wrong_values_name_their_key():
    with pytest.raises(ConfigError, match=r"optim\.lr='abc': Input should be a valid number"):
        typed(OptimiserSettings, {"lr": "abc"}, key="optim")
    with pytest.raises(ConfigError, match="there is no setting 'optim.lrr'; did you mean 'lr'"):
        typed(OptimiserSettings, {"lrr": 1}, key="optim")
