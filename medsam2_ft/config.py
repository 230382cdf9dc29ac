"""Configuration errors told in one sentence: the full key, what is wrong with it, and the nearest valid one.

Hydra composes; this module only checks the command line before Hydra sees it and turns config nodes into typed settings.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from medsam2_ft.errors import ConfigError, nearest

Settings = TypeVar("Settings")

HYDRA_KEYS = ("hydra",)


def check_overrides(arguments: list[str], *, config_dir: Path, config_name: str) -> None:
    """Refuse a command line that Hydra could not compose.

    Args:
        arguments: as after the script's name; flags (`-m`, `--help`) are Hydra's own and are not looked at.
        config_dir: absolute folder of the groups.
        config_name: of the primary config.

    Raises:
        ConfigError: naming the key or option and the nearest valid one.
    """
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    single = [text for text in map(_without_sweep, overrides) if not _key(text).startswith(HYDRA_KEYS)]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir), version_base="1.3"):
            try:
                compose(config_name, single)
            except (HydraException, OmegaConfBaseException) as error:
                raise ConfigError(_explain(error, single, config_name)) from None
    finally:
        GlobalHydra.instance().clear()


def _without_sweep(text: str) -> str:
    """`a=1,2` and `a=choice(1,2)` as `a=1`: each value of a sweep is composed by Hydra later, the key is checked now."""
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise ConfigError(f"cannot read '{text}' as KEY=VALUE ({str(error).splitlines()[0]})") from None
    if not override.is_sweep_override() or not override.is_choice_sweep():
        return text
    return f"{text.split('=', 1)[0]}={next(iter(override.sweep_iterator()))}"


def _key(text: str) -> str:
    return text.split("=", 1)[0].lstrip("+~")


def _explain(error: Exception, overrides: list[str], config_name: str) -> str:
    message = str(error)
    if found := re.search(r"Could not override '([^']+)'", message):
        key = found[1]
        valid = [text for text in overrides if _key(text) != key]
        try:
            known = _flat_keys(_plain(compose(config_name, valid)))
        except (HydraException, OmegaConfBaseException):
            known = _flat_keys(_plain(compose(config_name)))
        return f"there is no setting '{key}'{_nearest_key(key, known)}"
    if found := re.search(
        r"Could not find '([^']+)/([^/']+)'\s+Available options in '[^']+':\s+((?:\S+\s*)+)", message
    ):
        group, option, available = found[1], found[2], found[3].split()
        return f"there is no {group}={option}{nearest(option, available)}"
    return " ".join(message.split())


def _nearest_key(key: str, known: list[str]) -> str:
    hint = nearest(key, known)
    if hint.startswith("; did"):
        return hint
    siblings = [k for k in known if k.rpartition(".")[0] == key.rpartition(".")[0]]
    return nearest(key, siblings) if siblings else ""


def _plain(config: DictConfig) -> dict[Any, Any]:
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return plain


def _flat_keys(config: dict[Any, Any], prefix: str = "") -> list[str]:
    keys = []
    for name, value in config.items():
        keys.append(f"{prefix}{name!s}")
        if isinstance(value, dict):
            keys += _flat_keys(value, f"{prefix}{name!s}.")
    return keys


def typed(kind: type[Settings], node: Any, *, key: str) -> Settings:
    """A config node as an instance of a settings dataclass, every value checked.

    Args:
        kind: a dataclass.
        node: DictConfig or dict.
        key: where the node lies, for the message.

    Raises:
        ConfigError: naming the first wrong key and value.
    """
    values = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else dict(node)
    assert isinstance(values, dict)
    known = list(getattr(kind, "__dataclass_fields__", {}))
    for name in map(str, values):
        if name not in known:
            raise ConfigError(f"there is no setting '{key}.{name}'{nearest(name, known)}")
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([key, *(str(part) for part in first["loc"])])
        reason = first["msg"].removeprefix("Value error, ")
        raise ConfigError(reason if "." in reason.split("=")[0] else f"{where}={first['input']!r}: {reason}") from None
