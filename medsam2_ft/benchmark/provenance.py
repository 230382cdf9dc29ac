"""`run.json`: where a run's numbers come from: protocol, models and hashes, data, versions, hardware, time."""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from medsam2_ft import __version__
from medsam2_ft.benchmark.protocol import Protocol
from medsam2_ft.data.manifest import MANIFEST
from medsam2_ft.errors import ConfigError, DataError
from medsam2_ft.modeling.weights import git_revision

FILE = "run.json"


@dataclass
class ModelRecord:
    """One model of a run.

    Attributes:
        name: in rows and folders.
        spec: as written after `--models`.
        checkpoint_sha256: of its weight file, "" for random weights.
        num_parameters: number of weights.
        licence: of the weights.
        reason: why it could not be opened; "" if it could.
    """

    name: str
    spec: str
    checkpoint_sha256: str = ""
    num_parameters: int = 0
    licence: str = ""
    reason: str = ""


@dataclass
class Run:
    """A run's record, kept in its folder as `run.json` and brought up to date as it goes.

    Attributes:
        protocol: its settings.
        protocol_digest: of the settings that can change a number.
        data: dataset folders, each with the SHA-256 of its manifest.
        split: train, val, test or all.
        models: every model that was asked for.
        software: versions, and the git revision.
        hardware: processor, cores, GPUs.
        started: UTC, ISO 8601.
        finished: UTC, ISO 8601; "" while running.
        command: as typed.
        counts: rows by status.
    """

    protocol: dict[str, Any]
    protocol_digest: str
    data: list[dict[str, str]] = field(default_factory=list)
    split: str = ""
    models: list[ModelRecord] = field(default_factory=list)
    software: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    started: str = ""
    finished: str = ""
    command: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    folder: Path = Path()

    @classmethod
    def open(cls, folder: Path, protocol: Protocol, *, roots: Sequence[Path], split: str) -> "Run":
        """Start a run in a folder, or go on with the one that is there.

        Raises:
            ConfigError: if the folder holds a run of another protocol or split, whose numbers would mix, or if two datasets
                have one name.
        """
        earlier = cls.read(folder) if (folder / FILE).is_file() else None
        if earlier is not None and earlier.protocol_digest != protocol.digest:
            raise ConfigError(
                f"{folder} holds a run of protocol '{earlier.protocol['name']}' with other settings; give another --out"
            )
        if earlier is not None and earlier.split != split:
            raise ConfigError(f"{folder} holds a run of the split '{earlier.split}', not '{split}'; give another --out")
        run = cls(
            protocol=asdict(protocol),
            protocol_digest=protocol.digest,
            data=_datasets(folder, earlier.data if earlier else [], roots),
            split=split,
            models=earlier.models if earlier else [],
            software=_software(),
            hardware=_hardware(),
            started=_utc(),
            command=" ".join(sys.argv),
            folder=folder,
        )
        run.write()
        return run

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """The record of a finished or interrupted run.

        Raises:
            DataError: if there is none, or it is damaged.
        """
        path = folder / FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            content["models"] = [ModelRecord(**model) for model in content["models"]]
            return cls(**content, folder=folder)
        except FileNotFoundError:
            raise DataError(f"{folder} holds no benchmark run: there is no {FILE}") from None
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged ({error})") from None

    def add(self, model: ModelRecord) -> None:
        """Record a model, in place of an earlier one of that name."""
        self.models = [known for known in self.models if known.name != model.name] + [model]
        self.write()

    def close(self, table: pd.DataFrame) -> None:
        """Record the end of the run and how many rows there are of each status."""
        self.finished = _utc()
        self.counts = {str(status): int(count) for status, count in table["status"].value_counts().items()}
        self.write()

    def write(self) -> None:
        """Write `run.json` in one step."""
        content = {key: value for key, value in asdict(self).items() if key != "folder"}
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / f".{FILE}.{os.getpid()}"
        draft.write_text(json.dumps(content, indent=2, default=list), encoding="utf-8")
        draft.replace(self.folder / FILE)


def dataset_name(root: Path) -> str:
    """What a dataset folder is called in rows and folders of a run: its own name, also where it is given as `.`."""
    return (root.resolve() if root.name in ("", "..") else root).name


def _datasets(folder: Path, known: list[dict[str, str]], roots: Sequence[Path]) -> list[dict[str, str]]:
    """The datasets of an earlier run and those of this one; rows and masks are kept by name, so one name is one dataset."""
    asked = [_dataset(root) for root in roots]
    names = [data["name"] for data in asked]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"two datasets are called '{twice[0]}': rename the folder of one, or give each its own --out")
    for data in asked:
        for other in known:
            is_moved = data["manifest_sha256"] == other["manifest_sha256"] != ""
            if data["name"] == other["name"] and data["folder"] != other["folder"] and not is_moved:
                raise ConfigError(
                    f"{folder} holds another dataset '{other['name']}', {other['folder']}; give another --out"
                )
    return [data for data in known if data["name"] not in names] + asked


def _dataset(root: Path) -> dict[str, str]:
    manifest = root / MANIFEST
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else ""
    return {"name": dataset_name(root), "folder": str(root.resolve()), "manifest_sha256": digest}


def _software() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "sam2", "monai", "numpy", "scipy")}
    return {"medsam2_ft": __version__, "git": git_revision(), "python": platform.python_version(), **packages}


def _hardware() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"processor": _processor(), "cores": os.cpu_count() or 1, "gpus": gpus, "system": platform.system()}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _utc() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
