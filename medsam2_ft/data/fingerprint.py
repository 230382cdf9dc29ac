"""Content hashes: of files, of folders, and of a preparation as a whole."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def sha256_of(path: Path) -> str:
    """Hash of a file's bytes; of a folder, the names and bytes of the files in it, in order."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
            digest.update(file.relative_to(path).as_posix().encode())
            digest.update(bytes.fromhex(sha256_of(file)))
        return digest.hexdigest()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint_of(hashes: Iterable[str], settings: Mapping[str, Any]) -> str:
    """Hash of everything that decides what a prepared case looks like.

    Args:
        hashes: of image and masks, in order.
        settings: json-ready options.
    """
    words = [*hashes, json.dumps(settings, sort_keys=True, default=str)]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()
