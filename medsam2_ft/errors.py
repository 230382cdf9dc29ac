"""Errors that a user can mend, each told in one sentence: what is wrong, where, and how to fix it.

Library code raises `UserError` (or a kin of it) for bad input; `assert` is for invariants of our own.
Command lines wrap themselves in `exit_on_user_error`, so that users see a sentence and exit code 2, never a traceback.
"""

import contextlib
import sys
from collections.abc import Iterator
from difflib import get_close_matches


class UserError(ValueError):
    """Input that the user can correct; the message is one complete sentence."""


class DataError(UserError):
    """An image, mask, case or dataset folder that cannot be used as it is."""


class CheckpointError(UserError):
    """Weights that do not fit the model, are damaged, or are not there."""


class ConfigError(UserError):
    """A setting that does not exist or has a value that cannot work."""


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """`"; did you mean 'lr'?"` for a near miss, otherwise the list of known names."""
    close = get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(known)}"


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Print a `UserError` as `error: SENTENCE` on stderr and leave with exit code 2."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        sys.stdout = None
        raise SystemExit(141) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
