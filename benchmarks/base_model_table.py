"""The table of docs/RESULTS.md: mean DSC of each model on each sample set, and the medians, from benchmark runs.

python benchmarks/base_model_table.py RUN [RUN ...]
An object that several runs scored with the same model counts once, as the first of them has it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from medsam2_ft.benchmark.rows import OBJECT, read_rows
from medsam2_ft.benchmark.statistics import scored
from medsam2_ft.errors import exit_on_user_error


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", type=Path, nargs="+", help="folders with rows.csv")
    rows = pd.concat([scored(read_rows(run / "rows.csv")) for run in parser.parse_args().runs])
    objects = rows.drop_duplicates(["model", "protocol", *OBJECT])
    sets = ["modality", "dataset"]
    means = objects.pivot_table("dsc", index=sets, columns="model")[list(objects["model"].unique())]
    print(f"| modality | dataset | cases | boxes | {' | '.join(means)} |")
    print(f"|---|---|---|---|{'---|' * means.shape[1]}")
    for (modality, dataset), part in objects.groupby(sets):
        figures = ["" if pd.isna(mean) else f"{mean:.3f}" for mean in means.loc[(modality, dataset)]]
        boxes = part.groupby("model").size().max()
        print(f"| {modality} | {dataset} | {part['case'].nunique()} | {boxes} | {' | '.join(figures)} |")
    whole = means.dropna()
    for name, summary in (("median", whole.median()), ("mean", whole.mean())):
        print(
            f"| {name} of {len(whole)} sets with all models | | | | {' | '.join(f'{mean:.3f}' for mean in summary)} |"
        )


if __name__ == "__main__":
    with exit_on_user_error():
        main()
