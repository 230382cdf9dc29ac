"""Shared fixtures: a tiny SAM2, a seeded generator, Hydra's global state left clean."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("WANDB_MODE", "offline")


@pytest.fixture(autouse=True)
def _clean_hydra() -> Iterator[None]:
    """Importing sam2 occupies Hydra's global state; no test may inherit it."""
    yield
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def tiny_spec():
    """SAM2.1 shrunk to 64 px and 32 channels: every path of the real one in a hundredth of the time."""
    from medsam2_ft.modeling.build import SAM2Spec
    from medsam2_ft.modeling.zoo import ZOO

    narrow = [
        override.replace("=32", "=16").replace("=256", "=32").replace("[256,128,64,32]", "[128,64,32,16]")
        for override in ZOO["sam2.1_nano"].spec.overrides
    ]
    narrow += ["++model.image_encoder.trunk.stages=[1,1,2,1]", "++model.image_encoder.trunk.global_att_blocks=[3]"]
    narrow += ["++model.memory_attention.num_layers=2", "++model.memory_encoder.out_dim=16"]
    narrow += ["++model.memory_encoder.position_encoding.num_pos_feats=16"]
    narrow += ["++model.memory_attention.layer.cross_attention.kv_in_dim=16"]
    return SAM2Spec("configs/sam2.1/sam2.1_hiera_t.yaml", tuple(narrow), image_size=64)


@pytest.fixture
def tiny_segmenter(tiny_spec):
    from medsam2_ft.modeling.segmenter import PromptedSegmenter

    torch.manual_seed(0)
    return PromptedSegmenter(tiny_spec)


@pytest.fixture
def tiny_predictor(tiny_segmenter):
    from medsam2_ft.inference.predictor import Predictor

    return Predictor(tiny_segmenter, name="tiny", precision="fp32")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real samples for development; tests that need them skip where they are absent."""
    folder = Path(os.environ.get("MEDSAM2_FT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not (folder / "MANIFEST.tsv").is_file():
        pytest.skip(f"real samples are not here: no {folder}/MANIFEST.tsv (set MEDSAM2_FT_DATA)")
    return folder
