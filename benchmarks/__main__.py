"""`python -m benchmarks [NAME ...]`: run the benchmarks named, or those that need only this machine and a few minutes."""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))
DEFAULT = ("training_step", "training_epoch", "data_preparation")


def main() -> None:
    """Run them one after another with their default arguments, each in a process of its own, whose peak memory is its own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    names = parser.parse_args().names or DEFAULT
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        parser.error(f"there is no benchmark '{unknown[0]}'; known are {', '.join(NAMES)}")
    for name in names:
        print(f"\n== {name}", flush=True)
        if status := subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}"], cwd=HERE.parent, check=False
        ).returncode:
            sys.exit(status)


if __name__ == "__main__":
    main()
