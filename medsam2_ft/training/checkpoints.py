"""Checkpoints for resuming, written so that a killed run leaves the one before.

Lightning's own writer stages a file in the system's temporary folder; to another file system its last move is a copy, which a
kill can cut short.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO


class AtomicCheckpoints(TorchCheckpointIO):
    """Write beside the checkpoint, flush to the disk, then rename."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Replace `path` by a whole new file, or leave it as it is."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")  # always the same, so that a killed run's remains are overwritten
        with part.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
