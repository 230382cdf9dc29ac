"""One resolver for the device, and for the precision that its hardware is fast in."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from medsam2_ft.errors import ConfigError


def resolve_device(name: str = "auto") -> torch.device:
    """`auto` is cuda, then mps, then cpu; any other name must be present.

    Raises:
        ConfigError: if the device asked for is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' was asked for, but torch sees no CUDA device here; use device=cpu or auto")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device 'mps' was asked for, but torch sees no Apple GPU here; use device=cpu or auto")
    return device


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products are faster than float32 ones: CUDA from compute capability 8.0, CPUs with AMX or AVX512-BF16.

    A CPU without these emulates bfloat16, up to a hundred times slower than float32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":
        probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(getattr(torch.cpu, probe, bool)() for probe in probes)
    return False


def autocast(device: torch.device, precision: str = "auto") -> AbstractContextManager[None]:
    """Autocast to bfloat16 where `precision` is `bf16`, or `auto` on hardware that is fast in it; otherwise float32."""
    if precision not in ("auto", "bf16", "fp32"):
        raise ConfigError(f"precision '{precision}' is not one of auto, bf16, fp32")
    enabled = precision == "bf16" or (precision == "auto" and has_fast_bf16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
