"""Where the files that travel with the code lie: beside the package in a checkout, inside it in an installed wheel."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def configs() -> Path:
    """The folder of the Hydra groups and benchmark protocols."""
    return _beside_or_inside("configs")


def checkpoints() -> Path:
    """The folder of the weights that ship with the project."""
    return _beside_or_inside("checkpoints")


def _beside_or_inside(name: str) -> Path:
    beside = _PACKAGE.parent / name
    return beside if (beside.parent / "pyproject.toml").is_file() else _PACKAGE / name
