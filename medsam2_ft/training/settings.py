"""Typed settings of the config groups that training reads, and the objects built from them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy, Strategy

from medsam2_ft.config import typed
from medsam2_ft.data.augment import ClipAugmentation
from medsam2_ft.data.datamodule import PromptedDataModule
from medsam2_ft.data.synthetic import SyntheticSettings
from medsam2_ft.errors import ConfigError, nearest
from medsam2_ft.losses import LossWeights
from medsam2_ft.modeling.adapt import LoraSettings, add_lora, trainable_parts
from medsam2_ft.modeling.build import SINGLE_MASK
from medsam2_ft.modeling.device import has_fast_bf16
from medsam2_ft.modeling.recompute import checkpoint_trunk
from medsam2_ft.modeling.segmenter import PromptedSegmenter
from medsam2_ft.modeling.weights import export_meta, load_weights, read_checkpoint
from medsam2_ft.modeling.zoo import fetch_weights, zoo_entry
from medsam2_ft.prompts.simulator import PromptSettings
from medsam2_ft.training.callbacks import BeforeTraining, RunRecord, Throughput, ValidationOverlays
from medsam2_ft.training.checkpoints import AtomicCheckpoints
from medsam2_ft.training.embeddings import EmbeddingCaching, require_cacheable
from medsam2_ft.training.memory import FitCheck
from medsam2_ft.training.module import FineTuner
from medsam2_ft.training.optim import OptimiserSettings, count_parameters
from medsam2_ft.training.targets import TargetResize

log = logging.getLogger(__name__)

PRETRAINED = "pretrained"


@dataclass(frozen=True)
class ModelSettings:
    """Which network, at which size, from which weights."""

    name: str
    image_size: int | None = None
    weights: str | None = PRETRAINED


@dataclass(frozen=True)
class FinetuneSettings:
    """What trains, and by which loss."""

    train: list[str]
    losses: LossWeights = field(default_factory=LossWeights)
    multimask: bool = False
    loss_stride: Literal[1, 2, 4] = 4
    target_resize: TargetResize = "area"
    clip_length: int = 1
    given_masks: float = 0.5
    cache_embeddings: bool = False
    lora: LoraSettings | None = None


@dataclass(frozen=True)
class TrainerSettings:
    """How long, on what, how exactly; see configs/trainer/auto.yaml."""

    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: Literal["auto", "ddp"] = "auto"
    precision: str = "auto"
    max_epochs: int = 20
    max_steps: int = -1
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = 1.0
    validate_first: bool = True
    check_val_every_n_epoch: int = 1
    patience: int | None = None
    log_every_n_steps: int = 10
    save_every_steps: int | None = None
    limit_train_batches: int | float = 1.0
    limit_val_batches: int | float = 1.0
    num_overlays: int = 4
    ema_decay: float | None = None
    activation_checkpointing: bool = False
    check_memory: bool = True


def build_data(cfg: Any) -> PromptedDataModule:
    """The data module of `cfg.data` and `cfg.prompts`."""
    settings = {str(key): value for key, value in cfg.data.items()}
    root = settings.pop("root")
    roots = [root] if isinstance(root, str) else list(root or [])
    prompts = typed(PromptSettings, cfg.prompts, key="prompts")
    preset = settings.pop("augmentation", None)
    settings["augmentation"] = None if preset is None else ClipAugmentation(preset)
    settings["clip_length"] = cfg.finetune.clip_length
    if settings.get("synthetic") is not None:
        settings["synthetic"] = typed(SyntheticSettings, cfg.data.synthetic, key="data.synthetic")
    return PromptedDataModule(roots, jitter=prompts.box, seed=cfg.seed, **settings)


def build_module(cfg: Any, data: PromptedDataModule) -> FineTuner:
    """The network with its weights loaded and its trainable parts chosen, ready to fit."""
    model = typed(ModelSettings, cfg.model, key="model")
    finetune = typed(FinetuneSettings, cfg.finetune, key="finetune")
    optim = typed(OptimiserSettings, cfg.optim, key="optim")
    prompts = typed(PromptSettings, cfg.prompts, key="prompts")
    spec = zoo_entry(model.name).spec.resized(model.image_size)
    if finetune.multimask and "decoder" not in finetune.train and set(SINGLE_MASK) <= set(spec.overrides):
        raise ConfigError(
            f"{model.name} has trained one mask token only, so finetune.multimask=true needs decoder in finetune.train"
        )
    spec = spec.without_overrides(SINGLE_MASK) if finetune.multimask else spec.with_overrides(SINGLE_MASK)
    torch.manual_seed(cfg.seed)
    segmenter = PromptedSegmenter(spec)
    if model.weights is not None:
        path = fetch_weights(model.name) if model.weights == PRETRAINED else Path(model.weights)
        log.info("loaded %d of %d weights from %s", *(2 * [load_weights(segmenter.sam2, read_checkpoint(path))]), path)
    choose_trained(segmenter, finetune, prompts)
    if cfg.trainer.activation_checkpointing:
        checkpoint_trunk(segmenter.sam2)
    if finetune.cache_embeddings:
        require_cacheable(
            segmenter, clip_length=finetune.clip_length, augmentation=data.augmentation, synthetic=data.synthetic
        )
    log.info("%.2f M of %.2f M weights train", *(count / 1e6 for count in count_parameters(segmenter)))
    lora = None if finetune.lora is None else {"rank": finetune.lora.rank, "alpha": finetune.lora.alpha}
    meta = export_meta(
        spec, name=cfg.name, lora=lora, recipe=data.recipe, labels=data.labels, data_sha256=data.fingerprint
    )
    return FineTuner(
        segmenter,
        losses=finetune.losses,
        optim=optim,
        loss_stride=finetune.loss_stride,
        target_resize=finetune.target_resize,
        prompts=prompts,
        given_masks=finetune.given_masks,
        meta=meta,
        seed=cfg.seed,
    )


def choose_trained(segmenter: PromptedSegmenter, finetune: FinetuneSettings, prompts: PromptSettings) -> None:
    """Freeze what does not train, add adapters where asked.

    Raises:
        ConfigError: for settings under which something would be trained or used that no loss reaches.
    """
    if not finetune.train and finetune.lora is None:
        raise ConfigError("finetune.train is empty, so nothing would learn; name encoder, decoder or both")
    has_clips = finetune.clip_length > 1
    adapts = [] if finetune.lora is None else finetune.lora.targets
    if ("memory" in finetune.train or "memory" in adapts) != has_clips:
        raise ConfigError(
            f"finetune.clip_length={finetune.clip_length} does not go with finetune.train={finetune.train} and LoRA on {adapts}: "
            "memory is trained on clips of more than one slice, and only then"
        )
    if finetune.multimask and not finetune.losses.iou:
        raise ConfigError(
            "finetune.multimask needs finetune.losses.iou: the decoder chooses among its masks by their estimated IoU"
        )
    has_one = bool(prompts.active - {"point"}) or (has_clips and finetune.given_masks > 0)
    has_three = has_clips or "point" in prompts.active
    if finetune.multimask and not (has_one and has_three):
        raise ConfigError(
            "finetune.multimask trains the answer to lone clicks beside the answer to everything else, so prompts.kinds "
            "needs a share for point and one for another kind; prompts=mixed has both"
        )
    trained = trainable_parts(
        segmenter.sam2,
        finetune.train,
        losses=finetune.losses,
        multimask=finetune.multimask,
        kinds=prompts.active,
        cached=finetune.cache_embeddings,
    )
    if finetune.lora is not None:
        add_lora(segmenter.sam2, finetune.lora, also_train=trained)


def build_trainer(cfg: Any, run_dir: Path) -> L.Trainer:
    """The Lightning trainer of `cfg.trainer` and `cfg.logger`, writing into `run_dir`."""
    settings = typed(TrainerSettings, cfg.trainer, key="trainer")
    _check_devices(settings)
    return L.Trainer(
        default_root_dir=run_dir,
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=_strategy(settings),
        plugins=[AtomicCheckpoints()],
        precision=_precision(settings),  # type: ignore[arg-type]
        max_epochs=settings.max_epochs,
        max_steps=settings.max_steps,
        accumulate_grad_batches=settings.accumulate_grad_batches,
        gradient_clip_val=settings.gradient_clip_val,
        check_val_every_n_epoch=settings.check_val_every_n_epoch,
        log_every_n_steps=settings.log_every_n_steps,
        limit_train_batches=settings.limit_train_batches,
        limit_val_batches=settings.limit_val_batches,
        use_distributed_sampler=False,  # the data module shares samples out itself
        num_sanity_val_steps=-1 if settings.validate_first else 0,
        logger=_loggers(cfg.logger, run_dir),
        callbacks=_callbacks(settings, cfg, run_dir),
    )


def _check_devices(settings: TrainerSettings) -> None:
    wants_gpu = settings.accelerator in ("gpu", "cuda") or (
        settings.accelerator == "auto" and torch.cuda.is_available()
    )
    if settings.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ConfigError("trainer.accelerator=gpu, but torch sees no GPU here; use trainer=cpu or trainer=auto")
    if settings.devices < 1:
        raise ConfigError(f"trainer.devices={settings.devices} must be at least 1")
    if wants_gpu and settings.devices > torch.cuda.device_count():
        raise ConfigError(
            f"trainer.devices={settings.devices}, but this machine has {torch.cuda.device_count()} GPU(s)"
        )


def _strategy(settings: TrainerSettings) -> str | Strategy:
    if settings.strategy == "ddp" or settings.devices * settings.num_nodes > 1:
        # Buffers are constants here, and validation shares are unequal: broadcasting buffers would wait for a rank that is done.
        return DDPStrategy(find_unused_parameters=False, broadcast_buffers=False, gradient_as_bucket_view=True)
    return "auto"


def _precision(settings: TrainerSettings) -> str:
    if settings.precision != "auto":
        return settings.precision
    on_gpu = settings.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if has_fast_bf16(torch.device("cuda" if on_gpu else "cpu")) else "32-true"


def _loggers(node: Any, run_dir: Path) -> list[Logger]:
    makers: dict[str, Callable[[], Logger]] = {
        "csv": lambda: CSVLogger(str(run_dir), name="", version="csv"),
        "tensorboard": lambda: TensorBoardLogger(str(run_dir), name="", version="tensorboard"),
        "wandb": lambda: WandbLogger(project=node.project, save_dir=str(run_dir)),
    }
    unknown = [name for name in node.names if name not in makers]
    if unknown:
        raise ConfigError(f"logger.names holds '{unknown[0]}'{nearest(unknown[0], list(makers))}")
    return [makers[name]() for name in node.names]


def _callbacks(settings: TrainerSettings, cfg: Any, run_dir: Path) -> list[Callback]:
    callbacks: list[Callback] = [
        ModelCheckpoint(
            dirpath=run_dir,
            filename="best",
            monitor="val/dsc",
            mode="max",
            save_last=True,
            enable_version_counter=False,
        ),
        LearningRateMonitor("step"),
        Throughput(),
        RunRecord(cfg, run_dir),
    ]
    if settings.validate_first:
        callbacks.append(BeforeTraining())
    if settings.save_every_steps:
        callbacks.append(
            ModelCheckpoint(
                dirpath=run_dir,
                filename="step",
                every_n_train_steps=settings.save_every_steps,
                save_last=True,
                enable_version_counter=False,
            )
        )
    if settings.patience is not None:
        callbacks.append(EarlyStopping("val/dsc", mode="max", patience=settings.patience))
    if settings.ema_decay is not None:
        callbacks.append(EMAWeightAveraging(decay=settings.ema_decay))
    if settings.num_overlays:
        callbacks.append(ValidationOverlays(run_dir / "overlays", count=settings.num_overlays))
    if cfg.finetune.cache_embeddings:
        callbacks.append(EmbeddingCaching())
    if settings.check_memory:
        callbacks.append(FitCheck())  # behind the cache, which it reads
    return callbacks
