"""Weights in and out: read any checkpoint of the family, load it fully or refuse it, export one file that opens everywhere.

An export is `{"model": state dict with Meta's own keys, "medsam2_ft": dict of plain types}`; a safetensors copy carries the same
keys and the dict as JSON in its header. Reading strips the prefixes of Lightning, DDP, torch.compile and the paper's authors.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medsam2_ft import __version__
from medsam2_ft.errors import CheckpointError, UserError
from medsam2_ft.modeling.build import SAM2Spec, resolve_config
from medsam2_ft.modeling.zoo import ZOO, file_sha256

META_KEY = "medsam2_ft"
SAM2_ROOTS = (
    "image_encoder", "memory_attention", "memory_encoder", "sam_prompt_encoder", "sam_mask_decoder", "mask_downsample",
    "maskmem_tpos_enc", "no_mem_embed", "no_mem_pos_enc", "no_obj_ptr", "no_obj_embed_spatial", "obj_ptr_proj",
    "obj_ptr_tpos_proj",
)  # fmt: skip
"""First parts of the keys in Meta's own state dicts."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file as read.

    Attributes:
        path: the file.
        state: state dict with Meta's own keys.
        meta: what our export knows of itself (config, image size, recipe, labels ...); empty for foreign files.
        sha256: of the file.
    """

    path: Path
    state: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""

    def spec(self) -> SAM2Spec:
        """The network that these weights belong to: as recorded, else inferred from the weights themselves."""
        if "sam2_config" in self.meta:
            return SAM2Spec(self.meta["sam2_config"], tuple(self.meta["overrides"]), int(self.meta["image_size"]))
        name = recognise(self.state)
        if name is None:
            raise CheckpointError(
                f"{self.path} is no SAM2 of a size we know ({', '.join(ZOO)}): its trunk has other widths"
            )
        return ZOO[name].spec


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Read a `.pt`, `.pth`, `.ckpt` or `.safetensors` file without running any code that it might hold.

    Raises:
        CheckpointError: if the file is missing, damaged, needs pickle, or holds no SAM2 weights.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}")
    state, meta = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    stripped = {name: tensor for key, tensor in state.items() if (name := _meta_key(key)) is not None}
    if any(".lora_A." in name for name in stripped):
        stripped = merge_lora(stripped, scale=meta["lora"]["alpha"] / meta["lora"]["rank"])
    if not stripped:
        raise CheckpointError(
            f"{path} holds no SAM2 weights: none of its {len(state)} keys starts with image_encoder or the like"
        )
    return Checkpoint(path, stripped, meta, file_sha256(path))


def _read_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} holds more than weights and plain values, so it is not opened; export it again"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).split(". ")[0].splitlines()[0]
        raise CheckpointError(f"{path} cannot be read as a checkpoint, it may be truncated ({reason})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no checkpoint: it holds a {type(content).__name__}")
    state = content.get("state_dict") or content.get("model") or content
    return {k: v for k, v in state.items() if isinstance(v, Tensor)}, content.get(META_KEY, {})


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            meta = json.loads((file.metadata() or {}).get(META_KEY, "{}"))
            return {name: file.get_tensor(name) for name in names}, meta
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read as safetensors, it may be truncated ({error})") from None


def _meta_key(key: str) -> str | None:
    """A key without the prefixes that wrappers put before it, or None for what is no SAM2 weight."""
    parts = [part for part in key.split(".") if part != "_orig_mod"]
    start = next((i for i, part in enumerate(parts) if part in SAM2_ROOTS), None)
    return ".".join(parts[start:]) if start is not None else None


def merge_lora(state: dict[str, Tensor], *, scale: float) -> dict[str, Tensor]:
    """Adapters folded into the weights beside them: W + scale B A, under the names the network has without adapters."""
    merged = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        layer = name.removesuffix(".base_layer.weight")
        if layer != name:
            down, up = state[f"{layer}.lora_A.default.weight"], state[f"{layer}.lora_B.default.weight"]
            tensor = tensor + scale * (up @ down)
        merged[name.replace(".base_layer.", ".")] = tensor
    return merged


def recognise(state: dict[str, Tensor]) -> str | None:
    """The zoo name whose trunk width, depth, neck width and version the weights have, or None."""
    signature = _signature_of_state(state)
    return next((name for name, entry in ZOO.items() if _signature_of_spec(entry.spec) == signature), None)


def _signature_of_state(state: dict[str, Tensor]) -> tuple[int, int, int, bool]:
    patch = state.get("image_encoder.trunk.patch_embed.proj.weight")
    neck = state.get("image_encoder.neck.convs.0.conv.weight")
    blocks = {key.split(".")[3] for key in state if key.startswith("image_encoder.trunk.blocks.")}
    return (
        0 if patch is None else patch.shape[0],
        len(blocks),
        0 if neck is None else neck.shape[0],
        "no_obj_embed_spatial" in state,
    )


def _signature_of_spec(spec: SAM2Spec) -> tuple[int, int, int, bool]:
    model = resolve_config(spec).model
    trunk = model.image_encoder.trunk
    stages = trunk.get("stages", (2, 3, 16, 3))  # Hiera's own defaults, which the base-plus config leaves unsaid
    return (
        trunk.get("embed_dim", 96),
        sum(stages),
        model.image_encoder.neck.d_model,
        bool(model.get("no_obj_embed_spatial")),
    )


def load_weights(sam2: nn.Module, checkpoint: Checkpoint) -> int:
    """Load every weight or none at all.

    Returns:
        The number of tensors loaded, which is the number that the network has.

    Raises:
        CheckpointError: if any key is missing, left over or of another shape; names the likely right `model=`.
    """
    own, given = sam2.state_dict(), checkpoint.state
    fitting = [key for key, tensor in own.items() if key in given and given[key].shape == tensor.shape]
    if len(fitting) < len(own) or len(given) > len(own):
        name = recognise(given)
        hint = f"; its weights look like model={name}" if name else "; its trunk is of no size we know"
        misfit = next((k for k in (*own, *given) if k not in fitting), "")
        raise CheckpointError(
            f"{checkpoint.path} does not fit this model: {len(fitting)} of {len(own)} weights match and "
            f"{len(given) - len(fitting)} are left over, {misfit} among them{hint}"
        )
    sam2.load_state_dict(given)
    return len(fitting)


def export_meta(spec: SAM2Spec, **extra: Any) -> dict[str, Any]:
    """What an export says of itself: how to build the network, and `extra` (recipe, labels, data hash ...), plain types only."""
    return {
        "sam2_config": spec.sam2_config,
        "overrides": list(spec.overrides),
        "image_size": spec.image_size,
        "sam2_overrides": spec.hydra_overrides,
        "version": __version__,
        "git": git_revision(),
        "packages": {name: version(name) for name in ("torch", "sam2")},
        **extra,
    }


def export_checkpoint(
    state: dict[str, Tensor], path: Path | str, *, meta: dict[str, Any], dtype: torch.dtype = torch.float32
) -> Path:
    """Write an export atomically: to a temporary name beside `path`, then renamed.

    Args:
        state: state dict with Meta's own keys.
        path: `.pt` or `.safetensors`.
        meta: from `export_meta`.
        dtype: of the floating-point weights in the file.
    """
    path = Path(path)
    if path.suffix not in (".pt", ".safetensors"):
        raise UserError(f"cannot export to {path}: the name must end in .pt or .safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {k: (v.to(dtype) if v.is_floating_point() else v).detach().cpu().contiguous() for k, v in state.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    if path.suffix == ".pt":
        torch.save({"model": state, META_KEY: meta}, temporary)
    else:
        from safetensors.torch import save_file

        save_file(state, temporary, metadata={META_KEY: json.dumps(meta)})
    temporary.replace(path)
    return path


def git_revision() -> str:
    """The commit of the source tree this code runs from, or "" for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    answer = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return answer.stdout.strip()
