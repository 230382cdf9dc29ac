"""What label ids mean: names, and a yaml that renames, merges, drops and selects.

A region is a name and a set of ids; regions may share ids, which is how nested structures are told. The yaml:

    disc: [1, 2]          # both ids make the disc, the second alone the cup
    cup: 2
    kidneys: [kidney_left, kidney_right]   # names work where the source has names
    "*": keep             # everything not named stays as it is; without this line it is dropped
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from medsam2_ft.errors import DataError, nearest

Labels = dict[str, list[int]]


@dataclass(frozen=True)
class LabelMap:
    """Renames, merges, drops and selects.

    Attributes:
        regions: new name -> what makes it: source ids or source names.
        keep_rest: whether what is not named stays.
    """

    regions: Mapping[str, tuple[int | str, ...]]
    keep_rest: bool = False

    @classmethod
    def read(cls, path: Path) -> "LabelMap":
        """Read the yaml of this module's docstring.

        Raises:
            DataError: if it is not a mapping of names to ids or names.
        """
        if not path.is_file():
            raise DataError(f"There is no label file {path}.")
        return cls.parse(path.read_text(encoding="utf-8"), source=str(path))

    @classmethod
    def parse(cls, text: str, *, source: str = "the label file") -> "LabelMap":
        """Read the yaml's text; `source` names it in errors."""
        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise DataError(f"{source} is not valid yaml ({' '.join(str(error).split())}).") from None
        if not isinstance(content, dict) or not content:
            raise DataError(f"{source} must map region names to label ids, such as 'liver: 1' or 'disc: [1, 2]'.")
        rest = content.pop("*", "drop")
        if rest not in ("keep", "drop"):
            raise DataError(f'{source}: "*" is either keep or drop, not {rest!r}.')
        regions = {}
        for name, members in content.items():
            listed = members if isinstance(members, list) else [members]
            if not listed or not all(isinstance(i, int | str) and not isinstance(i, bool) and i != 0 for i in listed):
                raise DataError(f"{source}: region '{name}' needs nonzero label ids or names, not {members!r}.")
            regions[str(name)] = tuple(listed)
        return cls(regions=regions, keep_rest=rest == "keep")

    def resolve(self, source: Labels) -> Labels:
        """Regions in source ids.

        Args:
            source: names and ids that the masks may hold.

        Raises:
            DataError: if a region asks for a name the source does not have.
        """
        resolved: Labels = {}
        for name, members in self.regions.items():
            ids: set[int] = set()
            for member in members:
                if isinstance(member, int):
                    ids.add(member)
                elif member in source:
                    ids.update(source[member])
                else:
                    raise DataError(
                        f"The label file's region '{name}' asks for '{member}'{nearest(member, tuple(source))}."
                    )
            resolved[name] = sorted(ids)
        if self.keep_rest:
            named = {i for ids in resolved.values() for i in ids}
            resolved |= {name: ids for name, ids in source.items() if ids and not named.intersection(ids)}
        return resolved

    def apply(self, gts: NDArray[Any], source: Labels) -> tuple[NDArray[Any], Labels]:
        """Rewrite masks and their labels.

        Ids that always belong to the same regions are merged into the smallest of them; ids of no region become 0.

        Args:
            gts: ids of any shape.
            source: names and ids before.

        Returns:
            masks of the same shape, and the new regions with their ids.
        """
        regions = self.resolve(source)
        owners: dict[int, tuple[str, ...]] = {}
        for name, ids in regions.items():
            for i in ids:
                owners[i] = (*owners.get(i, ()), name)
        first: dict[tuple[str, ...], int] = {}
        for i in sorted(owners):
            first.setdefault(owners[i], i)
        highest = max([int(gts.max()) if gts.size else 0, *owners], default=0)
        lookup = np.zeros(highest + 1, gts.dtype if highest < 256 else np.uint16)
        for i, names in owners.items():
            lookup[i] = first[names]
        merged = {name: sorted({first[owners[i]] for i in ids}) for name, ids in regions.items() if ids}
        return lookup[gts], merged


def default_labels(ids: Sequence[int], names: Mapping[int, str] | None = None) -> Labels:
    """Names for the ids that occur: the known name, or `label_7`."""
    known = names or {}
    return {known.get(i, f"label_{i}"): [i] for i in sorted(ids) if i}


def names_beside(folder: Path) -> dict[int, str]:
    """Label names from a `dataset.json` (Medical Segmentation Decathlon, nnU-Net) in the folder or the one above.

    Returns:
        id -> name; empty when there is no such file or it names no labels.
    """
    for place in (folder, folder.parent):
        path = place / "dataset.json"
        if not path.is_file():
            continue
        try:
            stored = json.loads(path.read_text(encoding="utf-8")).get("labels", {})
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
            return {}
        names: dict[int, str] = {}
        for key, value in stored.items():
            # The Decathlon maps "1": "liver", nnU-Net v2 "liver": 1; nnU-Net's regions (lists) are left to a yaml.
            if str(key).isdigit() and isinstance(value, str):
                names[int(key)] = value
            elif isinstance(value, int):
                names[value] = str(key)
        return {i: name for i, name in names.items() if i}
    return {}


def as_ids(array: NDArray[Any], *, source: str) -> NDArray[np.unsignedinteger[Any]]:
    """Whole, non-negative numbers as the smallest of uint8 and uint16; nothing ever wraps around.

    Raises:
        DataError: for fractions, negative or non-finite values, or ids above 65535.
    """
    if array.dtype == bool:
        return array.astype(np.uint8)
    if not np.all(np.isfinite(array)):
        raise DataError(f"{source} holds NaN or infinite values; it is not a label mask.")
    if np.any(array != np.rint(array)):
        raise DataError(f"{source} holds fractions; it is not a label mask (was it resampled linearly?).")
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if low < 0 or high > 65535:
        raise DataError(f"{source} holds values from {low} to {high}; label ids go from 0 to 65535.")
    return array.astype(np.uint8 if high < 256 else np.uint16)


def ids_in(gts: NDArray[Any]) -> list[int]:
    """The nonzero ids that occur, ascending."""
    return [int(i) for i in np.flatnonzero(np.bincount(gts.reshape(-1), minlength=1)) if i]
