"""The image path as two ONNX files, encoder and decoder, for programs without torch.

Convention: the encoder takes one RGB image of (1, 3, S, S), 0 to 255, already resized to the network's square input; the
decoder takes points in pixels of that square (a box is two points with labels 2 and 3, padding has label -1).
"""

from __future__ import annotations

import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medsam2_ft.errors import ConfigError
from medsam2_ft.modeling.build import LOW_RES_STRIDE
from medsam2_ft.modeling.segmenter import PromptedSegmenter
from medsam2_ft.modeling.weights import load_weights, read_checkpoint

OPSET = 18
ENCODER_FILE, DECODER_FILE, META_FILE = "encoder.onnx", "decoder.onnx", "meta.json"


class Encoder(nn.Module):
    """Pixels to features: (1, 3, S, S) of 0..255 -> embedding, high_res_0, high_res_1."""

    def __init__(self, segmenter: PromptedSegmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise and encode."""
        normalised = (image / 255 - self.segmenter.image_mean) / self.segmenter.image_std
        features = self.segmenter.encode(normalised)
        return features.embedding_BChw, *features.high_res


class Decoder(nn.Module):
    """Features of one image and N prompts to N masks: logits (N, 1, S/4, S/4), iou (N,), object_score (N,)."""

    def __init__(self, segmenter: PromptedSegmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(
        self,
        embedding: Tensor,
        high_res_0: Tensor,
        high_res_1: Tensor,
        points: Tensor,
        labels: Tensor,
        mask_logits: Tensor,
        has_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decode; `mask_logits` (N, 1, S/4, S/4) counts where `has_mask` (N,) is 1."""
        sam2 = self.segmenter.sam2
        prompts = sam2.sam_prompt_encoder
        num_prompts = points.shape[0]
        sparse = _embed_points(prompts, points, labels)
        without = prompts.no_mask_embed.weight.reshape(1, -1, 1, 1)
        is_given = has_mask.reshape(-1, 1, 1, 1)
        dense = is_given * prompts._embed_masks(mask_logits) + (1 - is_given) * without
        grown = embedding + sam2.no_mem_embed.reshape(1, -1, 1, 1)
        logits, iou, _, object_score = sam2.sam_mask_decoder.predict_masks(
            image_embeddings=grown.expand(num_prompts, -1, -1, -1),
            image_pe=prompts.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            repeat_image=False,
            high_res_features=[
                high_res_0.expand(num_prompts, -1, -1, -1),
                high_res_1.expand(num_prompts, -1, -1, -1),
            ],
        )
        if not sam2.multimask_output_in_sam:
            return logits[:, :1], iou[:, 0], object_score[:, 0]
        # As in `PromptedSegmenter.decode`: a lone click gets the best of masks 1-3. Counted as a sum, so that P stays dynamic.
        is_lone = torch.ones_like(labels).sum(1) <= sam2.multimask_max_pt_num
        chosen = torch.where(is_lone, 1 + iou[:, 1:].argmax(1), 0)[:, None]
        best = logits.gather(1, chosen[..., None, None].expand(-1, -1, *logits.shape[-2:]))
        return best, iou.gather(1, chosen)[:, 0], object_score[:, 0]


def _embed_points(prompts: Any, points: Tensor, labels: Tensor) -> Tensor:
    """SAM2's point embedding without indexed assignment, which ONNX cannot express over dynamic shapes."""
    padding = torch.zeros_like(points[:, :1]), -torch.ones_like(labels[:, :1])
    coords, kinds = torch.cat([points + 0.5, padding[0]], 1), torch.cat([labels, padding[1]], 1)[..., None]
    embedded = prompts.pe_layer.forward_with_coords(coords, prompts.input_image_size)
    embedded = torch.where(kinds == -1, prompts.not_a_point_embed.weight[None], embedded)
    for kind, table in enumerate(prompts.point_embeddings):
        embedded = embedded + (kinds == kind).to(embedded.dtype) * table.weight[None]
    result: Tensor = embedded
    return result


def export_onnx(checkpoint: Path | str, folder: Path | str) -> Path:
    """Write `encoder.onnx`, `decoder.onnx` and `meta.json` (image size, recipe, labels) into a folder.

    Args:
        checkpoint: any SAM2 checkpoint.
        folder: made where it is not there.

    Raises:
        ConfigError: the onnx package is not installed.
        CheckpointError: the checkpoint cannot be opened.
    """
    if find_spec("onnx") is None:
        raise ConfigError("Export to ONNX needs the onnx package: pip install 'medsam2-ft[onnx]'.")
    content = read_checkpoint(Path(checkpoint))
    segmenter = PromptedSegmenter(content.spec())
    load_weights(segmenter.sam2, content)
    meta = {"image_size": segmenter.image_size, "source_sha256": content.sha256, **content.meta}
    return write_onnx(segmenter, Path(folder), meta=meta)


def write_onnx(segmenter: PromptedSegmenter, folder: Path, *, meta: dict[str, Any]) -> Path:
    """As `export_onnx`, for a network in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    segmenter = segmenter.eval().cpu().requires_grad_(False)
    side = segmenter.image_size
    image = torch.zeros(1, 3, side, side)
    features = Encoder(segmenter)(image)
    low = side // LOW_RES_STRIDE
    prompts = (
        torch.tensor([[[10.0, 10.0], [side - 10.0, side - 10.0]]] * 2),
        torch.tensor([[2, 3]] * 2, dtype=torch.int64),
        torch.zeros(2, 1, low, low),
        torch.zeros(2),
    )
    feature_names = ["embedding", "high_res_0", "high_res_1"]
    prompt_axes = {
        "points": {0: "N", 1: "P"}, "labels": {0: "N", 1: "P"}, "mask_logits": {0: "N"}, "has_mask": {0: "N"},
        "logits": {0: "N"}, "iou": {0: "N"}, "object_score": {0: "N"},
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of every constant shape, which are constant on purpose
        torch.onnx.export(
            Encoder(segmenter), (image,), str(folder / ENCODER_FILE), opset_version=OPSET, dynamo=False,
            input_names=["image"], output_names=feature_names,
        )  # fmt: skip
        torch.onnx.export(
            Decoder(segmenter), (*features, *prompts), str(folder / DECODER_FILE), opset_version=OPSET, dynamo=False,
            input_names=[*feature_names, "points", "labels", "mask_logits", "has_mask"],
            output_names=["logits", "iou", "object_score"], dynamic_axes=prompt_axes,
        )  # fmt: skip
    (folder / META_FILE).write_text(json.dumps(meta, indent=2, default=str))
    return folder
