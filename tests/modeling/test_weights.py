"""A checkpoint loads fully or is refused with the likely reason, whoever wrapped it."""

import pytest
import torch

from medsam2_ft.errors import CheckpointError, ConfigError
from medsam2_ft.inference.predictor import Predictor
from medsam2_ft.modeling.build import build_sam2
from medsam2_ft.modeling.segmenter import PromptedSegmenter
from medsam2_ft.modeling.weights import (
    export_checkpoint,
    export_meta,
    load_weights,
    read_checkpoint,
    recognise,
)
from medsam2_ft.modeling.zoo import ZOO, fetch_weights, zoo_entry


@pytest.fixture
def export(tiny_segmenter, tmp_path):
    return export_checkpoint(
        tiny_segmenter.sam2.state_dict(),
        tmp_path / "model.pt",
        meta=export_meta(tiny_segmenter.spec, labels={"a": [1]}),
    )


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_round_trip_is_exact_and_knows_itself(tiny_segmenter, tmp_path, ending):
    meta = export_meta(tiny_segmenter.spec, labels={"liver": [1]})
    path = export_checkpoint(tiny_segmenter.sam2.state_dict(), tmp_path / f"model{ending}", meta=meta)
    checkpoint = read_checkpoint(path)
    assert checkpoint.spec() == tiny_segmenter.spec
    assert checkpoint.meta == meta
    other = PromptedSegmenter(tiny_segmenter.spec)
    assert load_weights(other.sam2, checkpoint) == len(tiny_segmenter.sam2.state_dict())
    for name, tensor in tiny_segmenter.sam2.state_dict().items():
        assert torch.equal(other.sam2.state_dict()[name], tensor)
    assert not list(tmp_path.glob(".*")), "nothing half-written is left"


@pytest.mark.parametrize(
    "prefix", ["sam2_model.", "module.", "_orig_mod.", "segmenter.sam2.", "model.module._orig_mod."]
)
def test_prefixes_of_wrappers_are_stripped(tiny_segmenter, tmp_path, prefix):
    state = {prefix + name: tensor for name, tensor in tiny_segmenter.sam2.state_dict().items()}
    torch.save({"model": state}, tmp_path / "wrapped.pth")
    assert load_weights(tiny_segmenter.sam2, read_checkpoint(tmp_path / "wrapped.pth")) == len(state)


def test_half_precision_is_cast_up(tiny_segmenter, tmp_path):
    meta = export_meta(tiny_segmenter.spec)
    path = export_checkpoint(tiny_segmenter.sam2.state_dict(), tmp_path / "half.pt", meta=meta, dtype=torch.float16)
    predictor = Predictor.from_checkpoint(path, device="cpu")
    assert {p.dtype for p in predictor.segmenter.parameters()} == {torch.float32}


def test_missing_keys_are_refused(export, tiny_segmenter, tmp_path):
    content = torch.load(export, weights_only=True)
    del content["model"]["no_mem_embed"]
    torch.save(content, tmp_path / "short.pt")
    total = len(tiny_segmenter.sam2.state_dict())
    with pytest.raises(CheckpointError, match=f"{total - 1} of {total} weights match.*no_mem_embed among them"):
        load_weights(tiny_segmenter.sam2, read_checkpoint(tmp_path / "short.pt"))


def test_another_size_is_refused_with_its_name(tmp_path):
    torch.save({"model": build_sam2(ZOO["sam2_tiny"].spec).state_dict()}, tmp_path / "t.pt")
    checkpoint = read_checkpoint(tmp_path / "t.pt")
    assert recognise(checkpoint.state) == "sam2_tiny"
    assert checkpoint.spec() == ZOO["sam2_tiny"].spec
    with pytest.raises(CheckpointError, match="its weights look like model=sam2_tiny"):
        load_weights(build_sam2(ZOO["sam2.1_nano"].spec), checkpoint)


@pytest.mark.parametrize("name", ["sam2.1_tiny", "sam2.1_base_plus", "sam2_small", "sam2.1_nano"])
def test_bare_weights_are_recognised(name):
    assert recognise(build_sam2(ZOO[name].spec).state_dict()) == name


def test_damaged_foreign_and_dangerous_files_get_a_sentence(export, tmp_path):
    (tmp_path / "cut.pt").write_bytes(export.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="may be truncated"):
        read_checkpoint(tmp_path / "cut.pt")
    torch.save({"model": {"layer.weight": torch.zeros(2)}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="holds no SAM2 weights"):
        read_checkpoint(tmp_path / "other.pt")
    torch.save({"model": {}, "code": zoo_entry}, tmp_path / "code.pt")
    with pytest.raises(CheckpointError, match="more than weights and plain values"):
        read_checkpoint(tmp_path / "code.pt")
    with pytest.raises(CheckpointError, match="there is no checkpoint at"):
        read_checkpoint(tmp_path / "nowhere.pt")


def test_unknown_names_and_offline_hub(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean 'sam2.1_tiny'"):
        zoo_entry("sam2.1_tinny")
    assert zoo_entry("sam2.1_hiera_tiny") is ZOO["sam2.1_tiny"]
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"facebook/sam2.1-hiera-large cannot be reached"):
        fetch_weights("sam2.1_large")
