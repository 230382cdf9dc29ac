"""Our forward is stock SAM2's image predictor, batched and differentiable."""

import numpy as np
import pytest
import torch
from sam2.sam2_image_predictor import SAM2ImagePredictor

from medsam2_ft.modeling.build import SAM2Spec
from medsam2_ft.modeling.segmenter import PromptedSegmenter
from medsam2_ft.modeling.zoo import ZOO


def stock_logits(segmenter: PromptedSegmenter, image: np.ndarray, boxes: np.ndarray) -> torch.Tensor:
    stock = SAM2ImagePredictor(segmenter.sam2)
    side = segmenter.image_size
    stock._bb_feat_sizes = [(side // 4, side // 4), (side // 8, side // 8), (side // 16, side // 16)]
    stock.set_image(image)
    rows = [stock.predict(box=box, multimask_output=False, return_logits=True)[2] for box in boxes]
    return torch.from_numpy(np.stack(rows))


@pytest.mark.parametrize(
    ("name", "image_size"),
    [
        ("sam2.1_nano", 256),
        ("sam2.1_tiny", 256),
        ("sam2_tiny", 512),
        pytest.param("sam2.1_tiny", 1024, marks=pytest.mark.slow),
    ],
)
def test_logits_equal_stock_predictor(name, image_size, rng):
    torch.manual_seed(0)
    segmenter = PromptedSegmenter(ZOO[name].spec.resized(image_size)).eval()
    image = rng.integers(0, 256, (300, 411, 3), dtype=np.uint8)
    boxes = np.array([[10, 20, 200, 150], [100.5, 30, 402, 299]], np.float32)
    with torch.no_grad():
        decoded = segmenter([torch.from_numpy(image)], torch.from_numpy(boxes), torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(
        decoded.logits_N1hw.clamp(-32, 32), stock_logits(segmenter, image, boxes), atol=1e-4, rtol=0
    )


def test_logits_equal_stock_predictor_at_1024_unmodified(tiny_spec, rng):
    segmenter = PromptedSegmenter(tiny_spec.resized(1024)).eval()
    image = rng.integers(0, 256, (256, 300, 3), dtype=np.uint8)
    stock = SAM2ImagePredictor(segmenter.sam2)
    stock.set_image(image)
    box = np.array([30, 40, 200, 220], np.float32)
    expected = torch.from_numpy(stock.predict(box=box, multimask_output=False)[2])
    with torch.no_grad():
        ours = segmenter([torch.from_numpy(image)], torch.from_numpy(box)[None], torch.zeros(1, dtype=torch.long))
    torch.testing.assert_close(ours.logits_N1hw[0].clamp(-32, 32), expected, atol=1e-4, rtol=0)


def test_mixed_sizes_equal_one_at_a_time(tiny_segmenter, rng):
    images = [
        torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8)) for shape in ((50, 70), (64, 64, 3), (90, 31))
    ]
    tiny_segmenter.eval()
    boxes = torch.tensor([[5.0, 5, 30, 40], [1, 2, 60, 50], [3, 3, 20, 80]])
    with torch.no_grad():
        together = tiny_segmenter(images, boxes, torch.tensor([0, 1, 2])).logits_N1hw
        alone = [
            tiny_segmenter([image], box[None], torch.tensor([0])).logits_N1hw
            for image, box in zip(images, boxes, strict=True)
        ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)


def test_grey_equals_the_same_grey_in_rgb(tiny_segmenter, rng):
    grey = torch.from_numpy(rng.integers(0, 256, (40, 40), dtype=np.uint8))
    torch.testing.assert_close(
        tiny_segmenter.normalise([grey]),
        tiny_segmenter.normalise([grey[..., None].expand(-1, -1, 3)]),
        atol=1e-6,
        rtol=0,
    )


def test_image_size_must_fit_the_trunk():
    with pytest.raises(ValueError, match="multiple of 32.*nearest is 512"):
        SAM2Spec("configs/sam2.1/sam2.1_hiera_t.yaml", image_size=500)
