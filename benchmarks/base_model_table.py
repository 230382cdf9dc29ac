"""The table of docs/RESULTS.md: mean DSC of each model on each sample set, and the medians, from benchmark runs.

python benchmarks/base_model_table.py RUN [RUN ...]
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from statistics import mean, median


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", type=Path, nargs="+", help="folders with rows.csv")
    scores: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    cases: dict[tuple[str, str], set[str]] = defaultdict(set)
    models: list[str] = []
    for run in parser.parse_args().runs:
        with (run / "rows.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                if row["dsc"] in ("", "nan"):
                    continue
                key = (row["modality"], row["dataset"])
                scores[key][row["model"]].append(float(row["dsc"]))
                cases[key].add(row["case"])
                if row["model"] not in models:
                    models.append(row["model"])
    print(f"| modality | dataset | cases | boxes | {' | '.join(models)} |")
    print(f"|---|---|---|---|{'---|' * len(models)}")
    for key in sorted(scores):
        by_model = scores[key]
        boxes = max(len(values) for values in by_model.values())
        figures = " | ".join(f"{mean(by_model[model]):.3f}" if by_model[model] else "" for model in models)
        print(f"| {key[0]} | {key[1]} | {len(cases[key])} | {boxes} | {figures} |")
    whole = [key for key in scores if all(scores[key][model] for model in models)]
    for name, summary in (("median", median), ("mean", mean)):
        figures = " | ".join(f"{summary(mean(scores[key][model]) for key in whole):.3f}" for model in models)
        print(f"| {name} of the sets | | | | {figures} |")


if __name__ == "__main__":
    main()
