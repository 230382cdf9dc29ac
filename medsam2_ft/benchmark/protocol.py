"""Protocols as data: what is prompted, how, and how it is scored. One YAML file of configs/benchmark/ each.

Lengths named `_px` are in pixels of the stored image; jitter is in pixels of a grid whose longer side has `grid`
pixels, as papers state it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from medsam2_ft import resources
from medsam2_ft.errors import ConfigError, nearest

FOLDER = resources.configs() / "benchmark"
CHOICES: dict[str, tuple[str, ...]] = {
    "task": ("auto", "slices", "propagation"),
    "targets": ("region", "component", "instance", "whole", "auto"),
    "prompt_slice": ("middle", "largest", "first"),
    "box": ("slice", "union", "largest"),
    "propagation": ("auto", "memory", "slicewise"),
    "direction": ("both", "up", "down"),
    "z_range": ("truth", "whole"),
}
SWEEPS = ("looseness", "shift", "slice_offset")


@dataclass(frozen=True)
class Jitter:
    """How far the sides of a prompt box lie outside the tight box: each by its own draw from 0, step, ... max.

    Attributes:
        max: largest move, in pixels of the grid.
        step: between possible moves, in pixels of the grid.
        grid: pixels along the longer side of the image on which `max` and `step` are measured.
    """

    max: float = 0.0
    step: float = 1.0
    grid: int = 256


@dataclass(frozen=True)
class Protocol:
    """How a benchmark prompts and scores.

    Attributes:
        name: of the protocol, and of its file.
        description: one or two sentences for the report.
        task: "slices" prompts every labelled slice on its own; "propagation" prompts one and carries the mask through;
            "auto" takes slices for images and propagation for volumes and videos.
        kinds: which kinds of case take part: image, volume, video.
        targets: what gets a box: a "region", each of its "component"s, each "instance"; "auto" is instances where masks
            count objects and components elsewhere, "whole" is instances there and regions elsewhere, as in training.
        min_px: objects of fewer pixels (on the prompted slice) are left out.
        max_per_mask: largest components kept of a region; 0 keeps all.
        max_per_image: objects kept of a slice, the first in the order of regions, ids and ranks; 0 keeps all.
        slice_step: kind -> every how many-th labelled slice is prompted in the task "slices".
        prompt_slice: in the task "propagation", of the slices that hold the object: the middle one, the one where it is
            largest, or the first.
        box: round the object on the prompt slice, round its union over all slices, or the largest of its slices' boxes.
        box_margin_px: growth of that box on each side, in pixels of the stored image, clipped to it; before jitter. "largest"
            compares the grown boxes.
        jitter: how loose the box is.
        initial_mask: "own" for the model's answer to the box, "truth", or the name of another model that answers it.
        propagation: "memory" needs a model that has one; "auto" takes it where there is one, else "slicewise".
        margin: in slicewise propagation, growth of the next box on each side, as a share of the image's side.
        direction: both ways from the prompt slice, or one; an object is then scored on that side alone.
        z_range: fill the slices of the object's true range, as the paper does, or the whole volume.
        seeds: of the jitter; every seed is a full pass.
        tolerance_mm: NSD tolerance where spacing is known.
        tolerance_px: NSD tolerance where it is not, in pixels.
        tolerances: region -> its own tolerance in mm.
        hd95: whether to compute HD95 as well.
        sweep: of the robustness protocol: knob -> its values; each value is a full pass.
        keep_masks: whether predicted masks are stored.
    """

    name: str
    description: str = ""
    task: str = "auto"
    kinds: tuple[str, ...] = ("image", "volume", "video")
    targets: str = "auto"
    min_px: int = 1
    max_per_mask: int = 0
    max_per_image: int = 0
    slice_step: Mapping[str, int] = field(default_factory=dict)
    prompt_slice: str = "middle"
    box: str = "slice"
    box_margin_px: float = 0.0
    jitter: Jitter = Jitter()
    initial_mask: str = "own"
    propagation: str = "auto"
    margin: float = 5 / 1024
    direction: str = "both"
    z_range: str = "truth"
    seeds: tuple[int, ...] = (0,)
    tolerance_mm: float = 2.0
    tolerance_px: float = 2.0
    tolerances: Mapping[str, float] = field(default_factory=dict)
    hd95: bool = False
    sweep: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    keep_masks: bool = True

    def __post_init__(self) -> None:
        for key, known in CHOICES.items():
            value = getattr(self, key)
            if value not in known:
                raise ConfigError(f"protocol {self.name}: {key} '{value}'{nearest(str(value), known)}")
        for knob in self.sweep:
            if knob not in SWEEPS:
                raise ConfigError(f"protocol {self.name}: there is no sweep '{knob}'{nearest(knob, SWEEPS)}")

    def task_of(self, kind: str) -> str:
        """`slices` or `propagation`, for a case of that kind."""
        if self.task != "auto":
            return self.task
        return "slices" if kind == "image" else "propagation"

    def tolerance_of(self, region: str, *, has_spacing: bool) -> tuple[float, str]:
        """NSD tolerance of a region and its unit, mm or px."""
        if not has_spacing:
            return self.tolerance_px, "px"
        return float(self.tolerances.get(region, self.tolerance_mm)), "mm"

    @property
    def directions(self) -> tuple[str, ...]:
        """The sweeps to make: up, down, or both."""
        return ("up", "down") if self.direction == "both" else (self.direction,)

    @property
    def digest(self) -> str:
        """Changes with anything that can change a number, so that results of another version are not mixed in."""
        content = {key: value for key, value in asdict(self).items() if key not in ("description", "keep_masks")}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=list).encode()).hexdigest()[:16]


def known_protocols() -> list[str]:
    """Names of the protocols that ship with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_protocol(name: str, *, overrides: Mapping[str, Any] | None = None) -> Protocol:
    """A protocol by its name, or by the path of a YAML file.

    Args:
        name: `paper_2d`, or `my_protocol.yaml`.
        overrides: values that replace the file's, `{"seeds": [0, 1]}`.

    Raises:
        ConfigError: for an unknown name, key or value.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"there is no protocol '{name}'{nearest(name, known_protocols())}")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OmegaConfBaseException, YAMLError, OSError) as error:
        raise ConfigError(f"{path} is not a readable protocol ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not a readable protocol: it holds no settings")
    return protocol_from({"name": path.stem, **{str(k): v for k, v in content.items()}, **(overrides or {})})


def protocol_from(settings: Mapping[str, Any]) -> Protocol:
    """A protocol from plain settings, as they stand in a YAML file or in `run.json`."""
    settings = dict(settings)
    known = [column.name for column in fields(Protocol)]
    for key in settings:
        if key not in known:
            raise ConfigError(f"protocol {settings.get('name')}: there is no setting '{key}'{nearest(key, known)}")
    if isinstance(settings.get("jitter"), Mapping):
        try:
            settings["jitter"] = Jitter(**settings["jitter"])
        except TypeError as error:
            raise ConfigError(f"protocol {settings.get('name')}: jitter takes max, step and grid ({error})") from None
    for key in ("kinds", "seeds"):
        if key in settings:
            settings[key] = tuple(settings[key])
    if "sweep" in settings:
        settings["sweep"] = {knob: tuple(float(v) for v in values) for knob, values in settings["sweep"].items()}
    return Protocol(**settings)
