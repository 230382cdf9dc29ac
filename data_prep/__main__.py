"""`python -m data_prep COMMAND`: picks the command and lets it speak; everything heavy is imported by the command."""

import argparse
import importlib
import sys

from medsam2_ft.errors import exit_on_user_error, nearest

COMMANDS = {
    "volumes": "NIfTI, NRRD, MetaImage or DICOM volumes and their masks",
    "images": "2D images and their masks, in any common format",
    "videos": "videos or frame folders and their masks",
    "audit": "check a prepared dataset and write its data card",
    "split": "split a prepared dataset anew: other fractions, folds, or a csv",
    "fetch": "download a public dataset that a library fetches with checksums",
    "phantoms": "make phantom volumes to try everything on",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after the program's name; None takes them from the command line.

    Returns:
        Exit code: 0 all done, 1 done but some inputs were rejected, 2 (by SystemExit) nothing could be done.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items()]
        print("usage: python -m data_prep COMMAND [--help]\n\ncommands:\n" + "\n".join(lines))
        return 0 if words else 2
    if words[0] not in COMMANDS:
        print(f"error: there is no command '{words[0]}'{nearest(words[0], tuple(COMMANDS))}", file=sys.stderr)
        return 2
    parser = argparse.ArgumentParser(
        prog=f"python -m data_prep {words[0]}",
        description=COMMANDS[words[0]].capitalize() + ".",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    with exit_on_user_error():
        command = importlib.import_module(f"data_prep.{words[0]}")
        command.configure(parser)
        return int(command.run(parser.parse_args(words[1:])))


if __name__ == "__main__":
    raise SystemExit(main())
