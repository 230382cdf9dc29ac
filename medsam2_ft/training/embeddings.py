"""Encode every slice once before the first epoch, so that decoder-only training never runs the image encoder again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from tqdm import tqdm

from medsam2_ft.data.dataset import SliceDataset, SliceKey
from medsam2_ft.data.embeddings import EmbeddingStore
from medsam2_ft.errors import ConfigError, DataError
from medsam2_ft.modeling.segmenter import PromptedSegmenter

FORMAT = 1
"""Raised when what is stored changes its meaning, so that older files are not read."""


class EmbeddingCaching(Callback):
    """Fill the store with what is missing, shared out over the ranks, and let the datasets read from it."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Encode; resumed runs and later runs on the same encoder find everything there."""
        segmenter: PromptedSegmenter = pl_module.segmenter  # type: ignore[assignment]
        datasets: list[SliceDataset] = [trainer.datamodule.train_set, trainer.datamodule.val_set]  # type: ignore[attr-defined]
        store = EmbeddingStore(embedding_key(segmenter, precision=str(trainer.precision)), embedding_shapes(segmenter))
        keys = [key for dataset in datasets for key in dataset.keys]
        store.require_room(keys)
        trainer.strategy.barrier("room for embeddings")  # nobody writes while others still look at the free space
        # The second round finds work only where every node has a disk of its own.
        local_size = trainer.num_devices
        for rank, size in ((trainer.global_rank, trainer.world_size), (trainer.local_rank, local_size)):
            missing = [key for key in keys[rank::size] if not store.holds(key)]
            encode_slices(
                segmenter,
                tqdm(missing, desc="Encoding slices", unit="slice", disable=None if rank == 0 and missing else True),
                store,
                context=trainer.precision_plugin.forward_context(),
            )
            trainer.strategy.barrier("embeddings")
        for dataset in datasets:
            dataset.embeddings = store


def require_cacheable(
    segmenter: PromptedSegmenter, *, clip_length: int, augmentation: object, synthetic: object
) -> None:
    """Refuse a cache that would be read for images that it was not made from.

    Raises:
        ConfigError: naming the setting in the way.
    """
    off = "or set finetune.cache_embeddings=false"
    if any(p.requires_grad for p in segmenter.sam2.image_encoder.parameters()):
        raise ConfigError(
            f"finetune.cache_embeddings=true needs an encoder that stays as it is; use finetune=decoder, {off}"
        )
    if clip_length > 1:
        raise ConfigError(f"finetune.cache_embeddings=true works on single slices; set finetune.clip_length=1, {off}")
    if augmentation is not None:
        raise ConfigError(
            "data.augmentation makes every image new, which cached embeddings cannot follow; set data.augmentation=null, "
            f"{off}"
        )
    if synthetic is not None:
        raise ConfigError(
            f"data.synthetic draws new images in every epoch, which no cache holds; set it to null, {off}"
        )


def high_res_is_frozen(segmenter: PromptedSegmenter) -> bool:
    """Whether the convolutions that narrow the high-resolution levels stay as they are, so that the narrow ones can be kept."""
    decoder = segmenter.sam2.sam_mask_decoder
    return not any(p.requires_grad for conv in (decoder.conv_s0, decoder.conv_s1) for p in conv.parameters())


def embedding_shapes(segmenter: PromptedSegmenter) -> tuple[tuple[int, int, int], ...]:
    """Shapes of what is kept for a slice; 8 MB of float16 at 1024 px, 44 MB where the high-resolution convolutions train."""
    decoder = segmenter.sam2.sam_mask_decoder
    side, width = segmenter.image_size // 16, decoder.conv_s0.in_channels
    frozen = high_res_is_frozen(segmenter)
    high, middle = (conv.out_channels if frozen else width for conv in (decoder.conv_s0, decoder.conv_s1))
    return (width, side, side), (high, 4 * side, 4 * side), (middle, 2 * side, 2 * side)


def embedding_key(segmenter: PromptedSegmenter, *, precision: str) -> str:
    """SHA-256 of all that decides a slice's features: weights, network, image size, precision, what is kept."""
    spec = segmenter.spec
    settings = [FORMAT, spec.sam2_config, spec.hydra_overrides, precision, embedding_shapes(segmenter)]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name, weight in weights_behind(segmenter):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def weights_behind(segmenter: PromptedSegmenter) -> Iterable[tuple[str, Tensor]]:
    """Weights that the kept features depend on, by name."""
    parts = ["image_encoder."]
    if high_res_is_frozen(segmenter):
        parts += ["sam_mask_decoder.conv_s0.", "sam_mask_decoder.conv_s1."]
    return ((name, weight) for name, weight in segmenter.sam2.state_dict().items() if name.startswith(tuple(parts)))


@torch.no_grad()
def encode_slices(
    segmenter: PromptedSegmenter,
    keys: Iterable[SliceKey],
    store: EmbeddingStore,
    *,
    context: AbstractContextManager[Any],
) -> None:
    """Run the encoder on slices, one at a time, so that a slice's features do not depend on its neighbours.

    Raises:
        DataError: if features are beyond float16, or cannot be written.
    """
    projected = high_res_is_frozen(segmenter)
    was_training = segmenter.training
    segmenter.eval()
    with context:
        for key in keys:
            image = torch.from_numpy(key.case.case.imgs[key.t].copy()).to(segmenter.device)
            levels = encode_slice(segmenter, image, projected=projected)
            if not all(level.isfinite().all() for level in levels):
                raise DataError(
                    f"the features of {key.case.name}, slice {key.t}, do not fit float16; set finetune.cache_embeddings=false"
                )
            store.write(key, [level[0].cpu().numpy() for level in levels])
    segmenter.train(was_training)


def encode_slice(segmenter: PromptedSegmenter, image: Tensor, *, projected: bool) -> list[Tensor]:
    """Features of one uint8 image as they are kept: float16 (1, C, h, w) each."""
    pixels = segmenter.normalise([image])
    if projected:
        features = segmenter.encode(pixels)
        levels = (features.embedding_BChw, *features.high_res)
    else:
        levels = segmenter.encode_levels(pixels)
    return [level.half() for level in levels]
