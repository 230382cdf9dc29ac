"""What SAM's decoder brings into SAM2's: all of it but the IoU head's last layer, and nothing that does not fit."""

import pytest
import torch

from medsam2_ft.errors import CheckpointError
from medsam2_ft.modeling.transplant import transplant


@pytest.fixture
def sam_state(tiny_segmenter):
    """SAM's keys with values of their own, for a decoder of the same width."""
    back = {"sam_prompt_encoder.": "prompt_encoder.", "sam_mask_decoder.": "mask_decoder."}
    state = {}
    for key, value in tiny_segmenter.sam2.state_dict().items():
        for name, sam_name in back.items():
            if key.startswith(name) and not any(part in key for part in ("conv_s", "obj_score")):
                key = (
                    key.replace(name, sam_name)
                    .replace("mlp.layers.0.", "mlp.lin1.")
                    .replace("mlp.layers.1.", "mlp.lin2.")
                )
                state[key] = torch.randn_like(value)
    return state


def test_everything_but_the_iou_output_is_copied(tiny_segmenter, sam_state):
    sam2 = tiny_segmenter.sam2
    copied = transplant(sam2, {**sam_state, "image_encoder.neck.0.weight": torch.zeros(1)})
    assert len(copied) == len(sam_state) - 2  # weight and bias of the IoU head's last layer
    own = sam2.state_dict()
    name = "sam_mask_decoder.transformer.layers.0.mlp.layers.0.weight"
    assert torch.equal(own[name], sam_state["mask_decoder.transformer.layers.0.mlp.lin1.weight"])
    assert not torch.equal(
        own["sam_mask_decoder.iou_prediction_head.layers.2.weight"],
        sam_state["mask_decoder.iou_prediction_head.layers.2.weight"],
    )


def test_another_width_is_refused(tiny_segmenter, sam_state):
    sam_state["mask_decoder.mask_tokens.weight"] = torch.zeros(4, 7)
    with pytest.raises(CheckpointError, match="have no place"):
        transplant(tiny_segmenter.sam2, sam_state)
