"""What trains: freeze by name, so that every trained weight gets a gradient and DDP needs no search for unused ones.

SAM2 has parts that the box-prompted image path never touches; left trainable they stop DDP, and weight decay shrinks them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from torch import nn

from medsam2_ft.errors import ConfigError, nearest
from medsam2_ft.losses import LossWeights

MEMORY = (
    "memory_attention", "memory_encoder", "maskmem_tpos_enc", "no_mem_pos_enc", "mask_downsample", "obj_ptr_proj",
    "obj_ptr_tpos_proj", "no_obj_ptr", "no_obj_embed_spatial",
)  # fmt: skip
"""Touched by tracking alone; the image path leaves their gradients None."""

UNSUPERVISED_TOKENS = tuple(f"sam_mask_decoder.output_hypernetworks_mlps.{i}" for i in (1, 2, 3))
"""Mask tokens 1-3, whose masks only multimask output shows to the loss: without it their gradient is zero, not None, so only
weight decay would move them."""

PROMPT_WEIGHTS = {
    "point_embeddings.0": {"box_clicks"},
    "point_embeddings.1": {"point", "box_clicks"},
    "point_embeddings.2": {"box", "box_clicks", "mask"},
    "point_embeddings.3": {"box", "box_clicks", "mask"},
    "mask_downscaling": {"box_clicks", "mask"},
}
"""Weights of the prompt encoder that not every kind of prompt uses: clicks beside and on the object, box corners, masks."""

LORA_TARGETS = {
    "encoder": r"image_encoder\.trunk\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.layers\.\d+)",
    "decoder": r"sam_mask_decoder\.transformer\..*\.(q_proj|k_proj|v_proj|out_proj)",
    "memory": r"memory_attention\.layers\.\d+\..*\.(q_proj|k_proj|v_proj|out_proj)",
}
"""Linear layers that LoRA adapts, by part."""

PARTS = {
    "encoder": ("image_encoder",),
    "decoder": ("sam_mask_decoder",),
    "no_memory": ("no_mem_embed",),
    "memory": tuple(name for name in MEMORY if name != "no_mem_pos_enc"),  # unused where no_mem_embed is added directly
    "prompt_encoder": ("sam_prompt_encoder",),
    "high_res": ("sam_mask_decoder.conv_s0", "sam_mask_decoder.conv_s1"),  # of the decoder, yet run once an image
}
"""Names a user may train, and the first parts of the parameters they stand for."""


def trainable_parts(
    sam2: nn.Module,
    parts: Collection[str],
    *,
    losses: LossWeights,
    multimask: bool = False,
    kinds: Collection[str] = ("box",),
    cached: bool = False,
) -> list[str]:
    """Make the named parts trainable and freeze everything else.

    Args:
        sam2: the network.
        parts: of `PARTS`.
        losses: heads whose loss has no weight are frozen too.
        multimask: whether lone clicks and tracked frames get three masks; if not, the tokens behind these are frozen.
        kinds: of prompts that objects get; of the prompt encoder, only what they use trains.
        cached: whether encoded images are kept: the decoder then trains without its `high_res` part, unless that is named too.

    Returns:
        Names of the parameters that train.

    Raises:
        ConfigError: for an unknown part.
    """
    prefixes: list[str] = []
    for part in parts:
        if part not in PARTS:
            raise ConfigError(f"finetune.train names '{part}'{nearest(part, list(PARTS))}")
        prefixes += PARTS[part]
    frozen = [] if multimask else list(UNSUPERVISED_TOKENS)
    if cached and "high_res" not in parts:
        frozen += PARTS["high_res"]
    if not losses.iou:
        frozen.append("sam_mask_decoder.iou_prediction_head")
    if not losses.object_score:
        frozen.append("sam_mask_decoder.pred_obj_score_head")
    frozen += [f"sam_prompt_encoder.{name}" for name, users in PROMPT_WEIGHTS.items() if users.isdisjoint(kinds)]
    trained = []
    for name, parameter in sam2.named_parameters():
        wanted = _starts(name, prefixes) and not _starts(name, frozen)
        parameter.requires_grad_(wanted)
        if wanted:
            trained.append(name)
    return trained


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters (Hu 2021) beside frozen linear layers.

    Attributes:
        rank: of the update.
        alpha: the update is scaled by alpha / rank.
        dropout: on the adapter's input.
        targets: of `LORA_TARGETS`.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: list[str] = field(default_factory=lambda: ["encoder", "decoder"])

    def __post_init__(self) -> None:
        for target in self.targets:
            if target not in LORA_TARGETS:
                raise ConfigError(f"finetune.lora.targets names '{target}'{nearest(target, list(LORA_TARGETS))}")
        if self.rank < 1:
            raise ConfigError(f"finetune.lora.rank={self.rank} must be at least 1")


def add_lora(sam2: nn.Module, settings: LoraSettings, *, also_train: Iterable[str] = ()) -> None:
    """Put adapters beside the target layers, in place; they start at zero, so the answers do not change.

    Args:
        sam2: the network.
        settings: rank, scale, targets.
        also_train: names of parameters that train beside the adapters.
    """
    from peft import LoraConfig, inject_adapter_in_model

    pattern = "|".join(LORA_TARGETS[target] for target in settings.targets)
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=f"({pattern})"
    )
    inject_adapter_in_model(config, sam2)
    kept = set(also_train)
    for name, parameter in sam2.named_parameters():
        parameter.requires_grad_("lora_" in name or name in kept)


def _starts(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)
