"""One training from config to export."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch

from medsam2_ft.errors import CheckpointError
from medsam2_ft.modeling.weights import export_checkpoint, read_checkpoint
from medsam2_ft.training.callbacks import BeforeTraining
from medsam2_ft.training.settings import build_data, build_module, build_trainer

log = logging.getLogger(__name__)


def train(cfg: Any, *, run_dir: Path) -> float:
    """Fit, keep the weights of the best validation DSC, export them to `RUN/model.pt`.

    Args:
        cfg: as composed from configs/train.yaml.
        run_dir: for checkpoints, logs, pictures and the export.

    Returns:
        The best validation DSC; 0 where the run ended before its first validation.
    """
    resume = None if cfg.ckpt_path is None else resumable(Path(cfg.ckpt_path))
    torch.set_float32_matmul_precision("high")
    _quieten()
    data = build_data(cfg)
    module = build_module(cfg, data)
    trainer = build_trainer(cfg, run_dir)
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    before = next((c.dsc for c in trainer.callbacks if isinstance(c, BeforeTraining)), None)  # type: ignore[attr-defined]
    best = trainer.checkpoint_callback
    validated = best is not None and best.best_model_score is not None  # type: ignore[attr-defined]
    score = float(best.best_model_score) if validated else 0.0  # type: ignore[union-attr]
    if trainer.is_global_zero and cfg.export:
        path = best.best_model_path or best.last_model_path  # type: ignore[union-attr]
        exported = export_checkpoint(read_checkpoint(path).state, run_dir / cfg.export, meta=module.meta)
        log.info("%s; exported to %s", _gain(before, score if validated else None), exported)
        if before is not None and validated and score < before:
            log.warning("validation was never as good as before training: try a lower optim.lr, or fewer trained parts")
    return score


def _gain(before: float | None, best: float | None) -> str:
    start = "" if before is None else f"validation DSC {before:.4f} before training; "
    return start + ("never validated" if best is None else f"best validation DSC {best:.4f}")


def resumable(path: Path) -> Path:
    """The checkpoint to resume from: `path`, or where that is damaged the newest sound one beside it.

    Raises:
        CheckpointError: if there is none.
    """
    if not path.is_file():
        raise CheckpointError(
            f"ckpt_path={path} does not exist, so there is nothing to resume; leave it out to start anew"
        )
    others = sorted(path.parent.glob("*.ckpt"), key=lambda other: other.stat().st_mtime, reverse=True)
    for candidate in (path, *(other for other in others if other != path)):
        try:
            read_checkpoint(candidate)
        except CheckpointError as error:
            log.warning("%s", error)
        else:
            if candidate != path:
                log.warning("resuming from %s instead of the damaged %s", candidate, path)
            return candidate
    raise CheckpointError(f"no checkpoint in {path.parent} can be read, so there is nothing to resume")


def _quieten() -> None:
    """Keep the console for progress and results, without Lightning's notices about the machine and itself."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()  # Hydra's handler prints them already
        logger.setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*treespec.*is deprecated.*",
        ".*exists and is not empty.*",
        ".*smaller than the logging interval.*",
    ):
        warnings.filterwarnings("ignore", message)
