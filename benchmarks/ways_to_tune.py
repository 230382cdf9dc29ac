"""Full, decoder, LoRA and memory tuning of one base on one dataset: DSC before and after, minutes and peak memory.

Run: python benchmarks/ways_to_tune.py --data DIR --out DIR [--steps 300] [--ways full decoder lora memory] [--model sam2.1_nano]
Each way sees the same number of slices: steps of 4 slices, or of one clip of 4 neighbouring ones for memory. The test split
is scored by protocol paper_2d, and by paper_3d where there are volumes. Expected: a table in Markdown on standard output; the
runs stay in --out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter

from medsam2_ft.benchmark.rows import read_rows
from medsam2_ft.benchmark.statistics import summarise
from medsam2_ft.data.case import Case
from medsam2_ft.data.manifest import read_manifest
from medsam2_ft.errors import exit_on_user_error

ROOT = Path(__file__).resolve().parents[1]
WAYS = {
    "full": ("finetune=full", "data.batch_size=4", "optim.lr=3e-4"),
    "decoder": ("finetune=decoder", "data.batch_size=4", "optim.lr=3e-4"),
    "lora": ("finetune=lora", "data.batch_size=4", "optim.lr=1e-3"),
    "memory": ("finetune=memory", "data.batch_size=1", "optim.lr=3e-4"),
}
"""What differs between the ways; everything else is as train.py has it."""


def tune(way: str, *, data: Path, out: Path, model: str, steps: int) -> tuple[float, float]:
    """Train one way: minutes, and peak GiB of the process."""
    words = ["train.py", f"data.root={data}", f"model={model}", *WAYS[way], f"trainer.max_steps={steps}"]
    words += ["trainer.max_epochs=1000", "trainer.num_overlays=0", "data.num_workers=0", "data.val_slices_per_case=2"]
    words += [f"name={way}", f"hydra.run.dir={out}"]
    start = perf_counter()
    with (out.parent / f"{way}.log").open("w") as log:
        child = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{way} failed; see {out.parent / way}.log")
    return (perf_counter() - start) / 60, usage.ru_maxrss / 1024**2


def score(models: str, *, data: Path, out: Path, protocol: str) -> dict[str, tuple[float, int]]:
    """Mean DSC of every model and the number of its objects."""
    words = ["-m", "medsam2_ft", "benchmark", "--data", data, "--protocol", protocol, "--models", models]
    words += ["--out", out, "--no-report"]
    subprocess.run([sys.executable, *map(str, words)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    lines = summarise(read_rows(out / "rows.csv"), by=("model",)).itertuples()
    return {line.model: (line.dsc_mean, line.num) for line in lines}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="sam2.1_nano")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    data, out = options.data.resolve(), options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    costs = {way: tune(way, data=data, out=out / way, model=options.model, steps=options.steps) for way in options.ways}
    models = ",".join([f"base={options.model}", *(f"{way}={out / way / 'model.pt'}" for way in options.ways)])
    is_volume = Case.load(data / read_manifest(data)[0].file).kind == "volume"
    protocols = ["paper_2d", "paper_3d"] if is_volume else ["paper_2d"]
    found = {protocol: score(models, data=data, out=out / protocol, protocol=protocol) for protocol in protocols}
    heads = [f"{protocol} DSC, {found[protocol]['base'][1]} objects" for protocol in protocols]
    print(f"{data.name}, {options.steps} steps\n\n| tuned | {' | '.join(heads)} | minutes | peak memory, GiB |")
    print("|---" * (len(heads) + 3) + "|")
    for way in ("base", *options.ways):
        cells = [f"{found[protocol][way][0]:.3f}" for protocol in protocols]
        cells += [f"{costs[way][0]:.1f}", f"{costs[way][1]:.2f}"] if way in costs else ["-", "-"]
        print(f"| {way} | {' | '.join(cells)} |")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
