"""From a dataset folder to the batches of this rank: read the manifest, cache the cases, shuffle, resume."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from torch.utils.data import DataLoader
from tqdm import tqdm

from medsam2_ft.data.audit import require_sound
from medsam2_ft.data.batch import ClipBatch, collate
from medsam2_ft.data.cache import CachedCase, cache_case
from medsam2_ft.data.case import read_recipe
from medsam2_ft.data.dataset import Augmentation, SliceDataset, labelled_slices
from medsam2_ft.data.manifest import Record, read_manifest
from medsam2_ft.data.sampler import EpochBatches, RankShare
from medsam2_ft.data.synthetic import REGION, JoinedDataset, SyntheticDataset, SyntheticSettings
from medsam2_ft.errors import ConfigError, DataError
from medsam2_ft.prompts.sampling import BoxJitter

Samples = SliceDataset | JoinedDataset
VAL_SEED = 2**31
"""Of the synthetic images validated on; no run trains with it."""


class PromptedDataModule(L.LightningDataModule):
    """Slices of prepared cases with box prompts.

    Args:
        root: dataset folder, or several; none where all images are synthetic.
        batch_size: images a rank takes a step.
        max_labels: objects trained from one image at most.
        jitter: of training boxes; validation boxes are tight.
        augmentation: for training, or None.
        num_workers: loader processes; None takes the cores that this process may use, eight at most.
        val_slices_per_case: slices validated of each case, spread evenly; None validates all.
        max_train_cases: train on the first so many cases only, for learning curves.
        train_slices_per_case: slices trained of each case, spread evenly; None trains all.
        synthetic: images drawn on demand beside the prepared ones, or None.
        cache_dir: where memory-mapped copies go; `ROOT/.cache` by default.
        clip_length: neighbouring slices a sample; more than one trains SAM2's memory.
        seed: of the run.
    """

    def __init__(
        self,
        root: str | Path | Sequence[str | Path],
        *,
        batch_size: int = 8,
        max_labels: int | None = 5,
        jitter: BoxJitter | None = None,
        augmentation: Augmentation | None = None,
        num_workers: int | None = None,
        val_slices_per_case: int | None = 8,
        max_train_cases: int | None = None,
        train_slices_per_case: int | None = None,
        synthetic: SyntheticSettings | None = None,
        cache_dir: str | Path | None = None,
        clip_length: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ConfigError(f"data.batch_size={batch_size} must be at least 1")
        self.roots = [Path(root)] if isinstance(root, str | Path) else [Path(r) for r in root]
        self.batch_size, self.max_labels, self.seed = batch_size, max_labels, seed
        self.jitter, self.augmentation = jitter or BoxJitter(), augmentation
        self.num_workers = min(8, _cores()) if num_workers is None else num_workers
        self.val_slices_per_case, self.max_train_cases = val_slices_per_case, max_train_cases
        self.train_slices_per_case, self.synthetic = train_slices_per_case, synthetic
        self.clip_length = clip_length
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.records = [(folder, record) for folder in self.roots for record in read_manifest(folder)]
        if not self.roots and synthetic is None:
            raise ConfigError("data.root is empty and data.synthetic is null, so there is nothing to train on")
        for split in ("train", "val"):
            self._records(split)
        self._resume_at: dict[str, int] | None = None

    @property
    def labels(self) -> dict[str, list[int]]:
        """Regions of all records, in the order they first occur."""
        merged: dict[str, list[int]] = {}
        for _, record in self.records:
            merged |= {name: ids for name, ids in record.labels.items() if name not in merged}
        return merged

    @property
    def recipe(self) -> dict[str, Any] | None:
        """The intensity recipe that all training cases share, or None where they differ or record none."""
        records = self._records("train")
        some = records[:: -(-len(records) // 50) or 1]  # spread over all datasets; opening every case would take long
        recipes = [read_recipe(folder / record.file) for folder, record in some]
        return recipes[0] if recipes and all(recipe == recipes[0] for recipe in recipes) else None

    @property
    def fingerprint(self) -> str:
        """Hash of which cases were trained on: names, splits and source hashes."""
        lines = sorted(f"{record.case} {record.split} {record.sha256}" for _, record in self.records)
        if self.synthetic is not None:
            lines.append(f"{self.synthetic} seed={self.seed}")
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def _records(self, split: str) -> list[tuple[Path, Record]]:
        found = [(folder, record) for folder, record in self.records if record.split == split]
        if not found and self.roots:
            where = ", ".join(map(str, self.roots))
            raise DataError(
                f"{where} has no case in split '{split}'; prepare it with --split, or edit the manifest's split column"
            )
        return found

    def _cached(self, split: str) -> list[CachedCase]:
        return [cache_case(record, root=folder, cache_dir=self.cache_dir) for folder, record in self._records(split)]

    def prepare_data(self) -> None:
        """Refuse what audit would refuse, then make the memory-mapped copies, once per machine."""
        for folder in self.roots:
            require_sound(folder)
        wanted = [pair for split in ("train", "val") for pair in self._records(split)]
        for folder, record in tqdm(wanted, desc="Caching cases", unit="case", disable=None):
            cache_case(record, root=folder, cache_dir=self.cache_dir)

    def setup(self, stage: str | None = None) -> None:
        """Open the copies and build the datasets."""
        cases = self._cached("train")[: self.max_train_cases]
        train = SliceDataset(
            labelled_slices(cases, per_case=self.train_slices_per_case),
            max_labels=self.max_labels,
            jitter=self.jitter,
            seed=self.seed,
            augmentation=self.augmentation,
            clip_length=self.clip_length,
        )
        val_cases = self._cached("val")
        val = SliceDataset(labelled_slices(val_cases, per_case=self.val_slices_per_case), clip_length=self.clip_length)
        self._check_clips([*cases, *val_cases])
        for name, dataset in (("train", train), ("val", val)):
            if self.roots and not len(dataset):
                raise DataError(
                    f"no slice of split '{name}' holds an object; run 'python -m data_prep audit {self.roots[0]}'"
                )
        self.train_set, self.val_set = self._with_synthetic(train, val)
        self.regions = sorted(
            {region for case in (*cases, *val_cases) for region in case.labels}
            | ({REGION} if self.synthetic else set())
        )

    def _with_synthetic(self, train: SliceDataset, val: SliceDataset) -> tuple[Samples, Samples]:
        """Prepared slices and synthetic ones behind them; validation's come from a seed of their own, the same in every run."""
        if self.synthetic is None:
            return train, val
        shape: dict[str, Any] = {
            "num_frames": self.clip_length,
            "size": self.synthetic.size,
            "max_labels": self.max_labels,
        }
        drawn = SyntheticDataset(self.synthetic.train_images, **shape, jitter=self.jitter, seed=self.seed)
        held_out = SyntheticDataset(self.synthetic.val_images, **shape, seed=VAL_SEED)
        return JoinedDataset([train, drawn]), JoinedDataset([val, held_out])

    def _check_clips(self, cases: Sequence[CachedCase]) -> None:
        """Refuse clips over slices that are no neighbours."""
        for cached in cases if self.clip_length > 1 else ():
            kept = cached.case.kept_slices
            if kept is not None and len(kept) and kept[-1] - kept[0] + 1 != len(kept):
                raise DataError(
                    f"{cached.name} holds only some slices of its volume, so clips would jump; prepare it with --keep all"
                )

    def train_dataloader(self) -> DataLoader[ClipBatch]:
        """Shuffled batches, the same number on every rank."""
        rank, world_size = self._rank()
        self.batches = EpochBatches(
            len(self.train_set), batch_size=self.batch_size, seed=self.seed, rank=rank, world_size=world_size
        )
        if self._resume_at is not None:
            self.batches.resume(**self._resume_at)
        return self._loader(self.train_set, batch_sampler=self.batches)

    def val_dataloader(self) -> DataLoader[ClipBatch]:
        """Every validation slice once over all ranks, unpadded."""
        rank, world_size = self._rank()
        return self._loader(
            self.val_set, sampler=RankShare(len(self.val_set), rank=rank, world_size=world_size), batch_size=1
        )

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _loader(self, dataset: Samples, **how: Any) -> DataLoader[ClipBatch]:
        loader: DataLoader[Any] = DataLoader(
            dataset,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=False if self.trainer is None else self.trainer.strategy.root_device.type == "cuda",
            **how,
        )
        return loader

    def state_dict(self) -> dict[str, int]:
        """Where in which epoch training is, in consumed (not prefetched) batches."""
        if self.trainer is None:
            return {}
        loop = self.trainer.fit_loop
        done = loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]  # on_train_batch_end saves
        total = len(self.batches)
        epoch = self.trainer.current_epoch
        return {"epoch": epoch, "batches": done} if done < total else {"epoch": epoch + 1, "batches": 0}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take up the position that `state_dict` told."""
        self._resume_at = {"epoch": state_dict["epoch"], "batches": state_dict["batches"]} if state_dict else None


def _cores() -> int:
    """Cores that this process may use; macOS tells only how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
