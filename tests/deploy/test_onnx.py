"""The exported image path in onnxruntime equals torch."""

import json

import numpy as np
import pytest
import torch

from medsam2_ft.modeling.build import SINGLE_MASK
from medsam2_ft.modeling.onnx import write_onnx
from medsam2_ft.modeling.segmenter import Points, PromptedSegmenter
from medsam2_ft.modeling.zoo import zoo_entry

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
TOLERANCE = 1e-3


def check(segmenter: PromptedSegmenter, folder) -> None:
    encoder = ort.InferenceSession(folder / "encoder.onnx", providers=["CPUExecutionProvider"])
    decoder = ort.InferenceSession(folder / "decoder.onnx", providers=["CPUExecutionProvider"])
    side = segmenter.image_size
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(1, 3, side, side, generator=generator) * 255
    with torch.inference_mode():
        features = segmenter.encode(segmenter.normalise([image[0].permute(1, 2, 0)]))
    names = ("embedding", "high_res_0", "high_res_1")
    found = dict(zip(names, encoder.run(None, {"image": image.numpy()}), strict=True))
    for name, tensor in zip(names, (features.embedding_BChw, *features.high_res), strict=True):
        np.testing.assert_allclose(found[name], tensor.numpy(), atol=TOLERANCE, rtol=TOLERANCE)
    for num_prompts, num_points, with_mask in ((1, 2, False), (3, 4, False), (2, 1, True)):
        coords = torch.rand(num_prompts, num_points, 2, generator=generator) * side
        labels = torch.randint(-1, 4, (num_prompts, num_points), generator=generator)
        prior = torch.randn(num_prompts, 1, side // 4, side // 4, generator=generator) * 5
        with torch.inference_mode():
            expected = segmenter.decode(
                features,
                image_index_N=torch.zeros(num_prompts, dtype=torch.long),
                points=Points(coords, labels),
                mask_logits_N1hw=prior if with_mask else None,
            )
        prompts = {
            "points": coords.numpy(),
            "labels": labels.numpy(),
            "mask_logits": prior.numpy(),
            "has_mask": np.full(num_prompts, float(with_mask), np.float32),
        }
        logits, iou, score = decoder.run(None, {**found, **prompts})
        np.testing.assert_allclose(logits, expected.logits_N1hw.numpy(), atol=TOLERANCE, rtol=TOLERANCE)
        np.testing.assert_allclose(iou, expected.iou_N.numpy(), atol=TOLERANCE)
        np.testing.assert_allclose(score, expected.object_score_N.numpy(), atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("multimask", [False, True])
def test_nano_equals_torch(tmp_path, multimask):
    torch.manual_seed(0)
    spec = zoo_entry("sam2.1_nano").spec.resized(128)
    segmenter = PromptedSegmenter(spec.without_overrides(SINGLE_MASK) if multimask else spec)
    write_onnx(segmenter, tmp_path, meta={"image_size": 128})
    check(segmenter, tmp_path)
    assert json.loads((tmp_path / "meta.json").read_text()) == {"image_size": 128}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sam2_tiny", "sam2.1_tiny"])
def test_official_architectures_equal_torch(tmp_path, name):
    torch.manual_seed(0)
    segmenter = PromptedSegmenter(zoo_entry(name).spec.resized(512))
    write_onnx(segmenter, tmp_path, meta={})
    check(segmenter, tmp_path)
