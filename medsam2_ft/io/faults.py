"""Turns what third-party parsers throw at damaged files into one `DataError` sentence."""

import contextlib
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from medsam2_ft.errors import DataError

# Parsers meet hostile bytes, and which of these they raise depends on where the damage is.
_PARSER_FAULTS = (
    ImageFileError, HeaderDataError, OSError, ValueError, EOFError, LookupError, TypeError, AttributeError,
    RuntimeError, ArithmeticError, MemoryError, SyntaxError, struct.error, zlib.error,
)  # fmt: skip


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Report any failure to parse `path` as a sentence that names it.

    Raises:
        DataError: if there is no such file, it is empty, or it cannot be parsed.
    """
    if not path.exists():
        raise DataError(f"There is no file {path}.")
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes).")
    try:
        yield
    except DataError:
        raise
    except _PARSER_FAULTS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} cannot be read: {reason[:200]}") from error
