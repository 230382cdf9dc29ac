"""How fast raw volumes become cases, and what it costs in memory: 1 and 2 worker processes.

Run: python benchmarks/data_preparation.py [--cases 48] [--size 256] [--slices 80]
Expected: a table in Markdown on standard output. A run over two cases tells what starting costs (imports, mostly
MONAI's); the rate is that of the remaining cases. Memory is the largest process's peak, imports included.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np


def write_volumes(folder: Path, *, num_cases: int, num_slices: int, size: int) -> None:
    """CT-like int16 volumes with noise and three organs, as compressed NIfTI."""
    for index in range(num_cases):
        rng = np.random.default_rng(index)
        image = rng.normal(40, 30, (size, size, num_slices)).astype(np.int16)
        mask = np.zeros(image.shape, np.uint8)
        for label in (1, 2, 3):
            x, y = rng.integers(0, size // 2, 2)
            mask[x : x + size // 4, y : y + size // 4, num_slices // 4 : -num_slices // 4] = label
        image += mask.astype(np.int16) * 50
        for name, array in (("images", image), ("masks", mask)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.diag([-0.8, -0.8, 2.5, 1.0])), folder / name / f"{index:03d}.nii.gz")


def measure(raw: Path, out: Path, *, workers: int) -> tuple[float, float]:
    """Seconds of one run as a user starts it, and the peak of its largest process in MiB."""
    words = [sys.executable, "-m", "data_prep", "volumes", "--images", raw / "images", "--masks", raw / "masks"]
    words += ["--out", out, "--modality", "CT", "--workers", str(workers), "--backend", "loky"]
    start = time.perf_counter()
    subprocess.run([str(word) for word in words], check=True, capture_output=True)
    # Linux counts in KiB; the maximum over all children so far, so runs go from few workers to many.
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=48)
    parser.add_argument("--slices", type=int, default=80)
    parser.add_argument("--size", type=int, default=256)
    args = parser.parse_args()
    print(f"{args.cases} volumes of {args.slices}x{args.size}x{args.size}\n")
    print("| workers | seconds | of which for two cases | slices/s after those | peak memory of a process, MiB |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for cases, raw in ((2, folder / "two"), (args.cases, folder / "all")):
            write_volumes(raw, num_cases=cases, num_slices=args.slices, size=args.size)
        for workers in (1, 2):
            start, _ = measure(folder / "two", folder / f"two{workers}", workers=workers)
            seconds, peak = measure(folder / "all", folder / f"all{workers}", workers=workers)
            rate = (args.cases - 2) * args.slices / (seconds - start)
            print(f"| {workers} | {seconds:.1f} | {start:.1f} | {rate:.0f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
