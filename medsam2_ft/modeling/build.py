"""Build SAM2 from the YAML that sam2 packages, without sam2's Hydra state.

Convention: a model is a `SAM2Spec`, that is a packaged config path plus Hydra override strings. The same two things, handed to
stock `sam2.build_sam.build_sam2(config, file, hydra_overrides_extra=overrides)`, give the same network, so they travel in every
checkpoint we export.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam2_ft.errors import ConfigError

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

STRIDE = 16
"""Pixels of the model's square input per pixel of the image embedding, in every SAM2."""

LOW_RES_STRIDE = 4
"""Pixels of the model's square input per pixel of the mask decoder's logits."""

SINGLE_MASK = ("++model.multimask_output_in_sam=false", "++model.multimask_output_for_tracking=false")
"""Answer every prompt and every tracked frame with mask token 0, the one that fine-tuning supervises."""


@dataclass(frozen=True)
class SAM2Spec:
    """What it takes to build one SAM2 network.

    Attributes:
        sam2_config: path of a YAML inside the sam2 package, `configs/sam2.1/sam2.1_hiera_t.yaml` for instance.
        overrides: Hydra override strings in the order they apply, without the ones for the image size.
        image_size: side S of the square input in pixels, a multiple of 32.
    """

    sam2_config: str
    overrides: tuple[str, ...] = ()
    image_size: int = 1024

    def __post_init__(self) -> None:
        if self.image_size < 64 or self.image_size % 32:
            raise ConfigError(
                f"model.image_size={self.image_size} cannot work: SAM2's trunk needs a multiple of 32, at least 64; "
                f"the nearest is {max(64, round(self.image_size / 32) * 32)}"
            )

    @property
    def hydra_overrides(self) -> list[str]:
        """All overrides, the image size and the rotary grid that follows from it included."""
        side = self.image_size // STRIDE
        grid = f"feat_sizes=[{side},{side}]"
        return [
            *self.overrides,
            f"++model.image_size={self.image_size}",
            f"++model.memory_attention.layer.self_attention.{grid}",
            f"++model.memory_attention.layer.cross_attention.{grid}",
        ]

    def with_overrides(self, overrides: Iterable[str]) -> SAM2Spec:
        """The same network with more override strings, those it already has left out."""
        return replace(self, overrides=(*self.overrides, *(o for o in overrides if o not in self.overrides)))

    def without_overrides(self, overrides: Iterable[str]) -> SAM2Spec:
        """The same network without these override strings."""
        left_out = set(overrides)
        return replace(self, overrides=tuple(o for o in self.overrides if o not in left_out))

    def resized(self, image_size: int | None) -> SAM2Spec:
        """The same network at another input side; None keeps the side."""
        return self if image_size is None else replace(self, image_size=image_size)


def build_sam2(spec: SAM2Spec) -> SAM2Base:
    """Instantiate the network of `spec` with random weights, in training mode, on the current default device.

    Raises:
        ConfigError: if the sam2 package has no such config or an override names a key that cannot be set.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.utils import instantiate

    config = resolve_config(spec)
    hydra_was_running = GlobalHydra.instance().is_initialized()
    model: Any = instantiate(config.model, _recursive_=True)
    if not hydra_was_running:
        GlobalHydra.instance().clear()  # importing sam2 occupies Hydra's global state; leave it as we found it
    return model


def resolve_config(spec: SAM2Spec) -> Any:
    """The OmegaConf config of `spec`: the packaged YAML with all overrides applied."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    config = OmegaConf.load(_packaged_config(spec.sam2_config))
    for override in OverridesParser.create().parse_overrides(spec.hydra_overrides):
        OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
    return config


def _packaged_config(sam2_config: str) -> Path:
    package = importlib.util.find_spec("sam2")
    if package is None or not package.submodule_search_locations:
        raise ConfigError("the package sam2 is not installed: run 'make setup'")
    root = Path(package.submodule_search_locations[0])
    path = root / sam2_config
    if not path.is_file():
        known = sorted(str(p.relative_to(root)) for p in root.glob("configs/sam2*/sam2*hiera*.yaml"))
        raise ConfigError(f"sam2 has no config '{sam2_config}'; it packages {', '.join(known)}")
    return path
