"""What sharing encodings saves when a volume with many labels is segmented, and how much memory a long volume takes.

Run: python benchmarks/propagation.py [--models sam2.1_nano sam2.1_tiny@random] [--slices 6] [--labels 12] [--long 600]
Expected: three tables in Markdown on standard output.

Slice by slice: one run over all labels beside one run a label, which is how the paper's authors encode. Memory: one run
over all labels beside the counted bound, slices x (encode + labels x memory), whose two costs are taken from a run with one
label in the same process. Long volume: peak resident memory of a process that benchmarks one object in it with `paper_3d`,
prompt to score; volume, weights and the window of encodings are in the figure.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

from medsam2_ft.benchmark.evaluation import evaluate
from medsam2_ft.benchmark.models.adapter import Adapter
from medsam2_ft.benchmark.models.catalogue import open_model
from medsam2_ft.benchmark.protocol import load_protocol
from medsam2_ft.data.case import Case


def phantom(num_slices: int, side: int, labels: range, *, reach: int | None = None) -> Case:
    """A noisy volume with columns, one a label, through all slices or as far as `reach` to either side of the middle."""
    rng = np.random.default_rng(0)
    imgs = rng.integers(0, 60, (num_slices, side, side), dtype=np.uint8)
    gts = np.zeros(imgs.shape, np.uint8)
    pitch, middle = side // 4, num_slices // 2
    shown = slice(0, num_slices) if reach is None else slice(max(0, middle - reach), middle + reach)
    for label in labels:
        top, left = (number * pitch + pitch // 6 for number in divmod(label - 1, 4))
        block = np.s_[shown, top : top + 2 * pitch // 3, left : left + 2 * pitch // 3]
        imgs[block] += 90
        gts[block] = label
    names = {f"label_{label}": [label] for label in labels}
    return Case("phantom", imgs, gts, labels=names, modality="CT", kind="volume", spacing_mm=(2.0, 1.0, 1.0))


def seconds_of(model: Adapter, cases: list[Case], protocol: str) -> tuple[float, float]:
    """Seconds to encode, and for everything else that the model does, over several cases."""
    encode = other = 0.0
    for case in cases:
        first = evaluate(case, model, load_protocol(protocol), dataset="phantom").rows[0]
        encode += first.encode_s or 0.0
        other += (first.prompt_s or 0.0) + (first.propagate_s or 0.0)
    return encode, other


def compare(name: str, *, num_slices: int, num_labels: int) -> None:
    """One row of each of the first two tables."""
    model = open_model(name, device="cpu")
    together = [phantom(num_slices, 512, range(1, num_labels + 1))]
    apart = [phantom(num_slices, 512, range(label, label + 1)) for label in range(1, num_labels + 1)]
    seconds_of(model, apart[:1], "paper_3d")  # warm up
    encode, other = seconds_of(model, together, "flare22_slicewise")
    alone = sum(seconds_of(model, apart, "flare22_slicewise"))
    print(
        f"| {name} | slice by slice | {encode + other:.1f} | {alone:.1f} | {alone / (encode + other):.1f} | - | - |",
        flush=True,
    )
    encode, other = seconds_of(model, together, "paper_3d")
    encode_1, other_1 = seconds_of(model, apart[:1], "paper_3d")
    bound, apart_s = encode_1 + num_labels * other_1, num_labels * (encode_1 + other_1)
    total = encode + other
    print(
        f"| {name} | memory | {total:.1f} | {apart_s:.1f} | {apart_s / total:.1f} | {bound:.1f} | {total / bound:.2f} |",
        flush=True,
    )


def carry(name: str, *, num_slices: int, side: int, reach: int) -> None:
    """Benchmark one object of a long volume and print this process's peak memory."""
    case, model = phantom(num_slices, side, range(1, 2), reach=reach), open_model(name, device="cpu")
    encode, other = seconds_of(model, [case], "paper_3d")
    visited = int(case.gts.any(axis=(1, 2)).sum()) if case.gts is not None else 0
    peak = next(
        int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    seconds = (encode + other) / visited
    print(f"| {name} | {num_slices} x {side} x {side} | {visited} | {seconds:.2f} | {peak / 1024**2:.2f} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["sam2.1_nano", "sam2.1_tiny@random"])
    parser.add_argument("--slices", type=int, default=6, help="of the volume with many labels")
    parser.add_argument("--labels", type=int, default=12, choices=range(1, 13), metavar="1-12")
    parser.add_argument("--long", type=int, default=600, help="slices of the long volume")
    parser.add_argument("--side", type=int, default=1024, help="pixels of its slices")
    parser.add_argument("--reach", type=int, default=300, help="slices that the object reaches to either side")
    parser.add_argument("--carry", metavar="MODEL", help=argparse.SUPPRESS)  # the third table's own processes
    options = parser.parse_args()
    if options.carry:
        carry(options.carry, num_slices=options.long, side=options.side, reach=options.reach)
        return
    print(f"{options.slices} slices, {options.labels} labels, seconds\n")
    print("| model | propagation | all labels together | each label apart | ratio | bound | of the bound |")
    print("|---|---|---|---|---|---|---|")
    for name in options.models:
        compare(name, num_slices=options.slices, num_labels=options.labels)
    print(
        "\n| model | volume | slices visited | seconds a slice | peak memory, GiB |\n|---|---|---|---|---|", flush=True
    )
    for name in options.models:
        words = [
            "--carry",
            name,
            "--long",
            str(options.long),
            "--side",
            str(options.side),
            "--reach",
            str(options.reach),
        ]
        subprocess.run([sys.executable, __file__, *words], check=True)


if __name__ == "__main__":
    main()
