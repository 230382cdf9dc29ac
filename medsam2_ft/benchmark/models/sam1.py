"""SAM (ViT-B, L, H) of Meta's segment-anything, officially preprocessed; its decoder call serves MedSAM too.

Preprocessing: longest side to 1024, ImageNet mean and deviation, zeros to the right and below.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from medsam2_ft.benchmark.models.adapter import Boxes, Masks
from medsam2_ft.errors import CheckpointError
from medsam2_ft.modeling.device import autocast, resolve_device
from medsam2_ft.modeling.zoo import file_sha256

_SIZE_OF_WIDTH = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}


class Sam1:
    """SAM behind the `Adapter` interface.

    Args:
        path: state dict in the official layout; the size is read from its widths.
        name: what reports call it.
        device: `auto`, `cuda`, `mps` or `cpu`.
        licence: of the weights.
    """

    def __init__(self, path: Path, *, name: str, device: str = "auto", licence: str = "Apache-2.0") -> None:
        self.name, self.licence = name, licence
        self.device = resolve_device(device)
        self.model = build_vit_sam(path).to(self.device)
        self.checkpoint_sha256 = file_sha256(path)
        self.num_parameters = count_parameters(self.model)

    @torch.inference_mode()
    def embed(self, image: NDArray[np.uint8]) -> tuple[Tensor, tuple[int, int]]:
        """Encode one uint8 image: (features, native height and width)."""
        from segment_anything.utils.transforms import ResizeLongestSide

        resized = ResizeLongestSide(self.model.image_encoder.img_size).apply_image(as_rgb(image))
        tensor = torch.as_tensor(resized, device=self.device).permute(2, 0, 1)[None].float()
        with autocast(self.device):
            features = self.model.image_encoder(self.model.preprocess(tensor))
        return features.float(), (image.shape[0], image.shape[1])

    @torch.inference_mode()
    def masks_from_boxes(self, embedding: tuple[Tensor, tuple[int, int]], *, boxes_N4: Boxes) -> Masks:
        """Bool (N, H, W): one mask a box, from one encoding."""
        features, shape_hw = embedding
        side = self.model.image_encoder.img_size
        scale = side / max(shape_hw)
        low_res = decode_boxes(self.model, features, torch.as_tensor(boxes_N4 * scale, device=self.device))
        inner = (round(shape_hw[0] * scale), round(shape_hw[1] * scale))
        return restore(low_res, side=side, inner_hw=inner, shape_hw=shape_hw)


def build_vit_sam(path: Path) -> Any:
    """A segment-anything network with the weights of a file in the official layout, all of them or an error.

    Raises:
        CheckpointError: if the file is damaged or is of another layout.
    """
    from segment_anything import sam_model_registry

    state = read_state(path)
    position = state.get("image_encoder.pos_embed")
    size = _SIZE_OF_WIDTH.get(position.shape[-1]) if position is not None else None
    if size is None:
        raise CheckpointError(
            f"{path} is not a SAM of ViT-B, L or H: it has no image_encoder.pos_embed of their widths"
        )
    return load_strictly(sam_model_registry[size](), state, path)


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict of a `.pth` file, bare or under `model` or `state_dict`, without running any code it might hold.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be read as a checkpoint ({reason})") from None
    if isinstance(content, dict):
        content = content.get("state_dict") or content.get("model") or content
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no checkpoint: it holds a {type(content).__name__}")
    return {key.removeprefix("module."): value for key, value in content.items() if isinstance(value, Tensor)}


def load_strictly(model: nn.Module, state: dict[str, Tensor], path: Path) -> nn.Module:
    """Load every weight or none; eval mode, no gradients.

    Raises:
        CheckpointError: if a key is missing, left over or of another shape.
    """
    own = model.state_dict()
    fitting = sum(key in state and state[key].shape == tensor.shape for key, tensor in own.items())
    if fitting < len(own) or len(state) > len(own):
        raise CheckpointError(
            f"{path} does not fit: {fitting} of {len(own)} weights match, {len(state)} are in the file"
        )
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def count_parameters(model: nn.Module) -> int:
    """Number of weights."""
    return sum(parameter.numel() for parameter in model.parameters())


def as_rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) from (H, W) or (H, W, 3)."""
    return np.repeat(image[..., None], 3, axis=-1) if image.ndim == 2 else image


def decode_boxes(model: Any, features: Tensor, boxes_N4: Tensor) -> Tensor:
    """Low-resolution logits (N, 1, h, w) of boxes in pixels of the model's square input."""
    sparse, dense = model.prompt_encoder(points=None, boxes=boxes_N4[:, None], masks=None)
    logits, _ = model.mask_decoder(
        image_embeddings=features,
        image_pe=model.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
    answer: Tensor = logits
    return answer


def restore(low_res: Tensor, *, side: int, inner_hw: tuple[int, int], shape_hw: tuple[int, int]) -> Masks:
    """Masks at native size from logits over a square input of which only `inner_hw` is image."""
    logits = F.interpolate(low_res.float(), (side, side), mode="bilinear", align_corners=False)
    logits = F.interpolate(logits[..., : inner_hw[0], : inner_hw[1]], shape_hw, mode="bilinear", align_corners=False)
    masks: Masks = (logits[:, 0] > 0).cpu().numpy()
    return masks
