"""The command lines `benchmark`, `report`, `score` and `models`: arguments in, files and a short table out."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd


def benchmark(argv: list[str]) -> None:
    """`python -m medsam2_ft benchmark --data DIR --protocol NAME --models A,B,path/to/export.pt --out DIR`."""
    from medsam2_ft.benchmark.protocol import known_protocols, load_protocol

    parser = argparse.ArgumentParser(
        prog="python -m medsam2_ft benchmark",
        description="Run models over a dataset: rows.csv, masks and a report. An interrupted run is continued.",
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="prepared dataset folder(s)")
    parser.add_argument("--protocol", required=True, help=f"{', '.join(known_protocols())}, or a YAML file")
    parser.add_argument("--models", required=True, help="names, checkpoints or LABEL=CHECKPOINT, separated by commas")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--split", default="test", choices=["train", "val", "test", "all"])
    parser.add_argument("--limit", type=int, default=0, help="first so many cases of each dataset")
    parser.add_argument("--device", default="auto", help="auto, cpu, mps, cuda, or cuda:0,cuda:1,... shared by workers")
    parser.add_argument("--workers", type=int, default=1, help="processes; several need several GPUs or much memory")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the protocol's")
    parser.add_argument("--no-masks", action="store_true", help="do not keep predicted masks")
    parser.add_argument("--no-report", action="store_true", help="write rows.csv only")
    options = parser.parse_args(argv)
    overrides: dict[str, object] = {"keep_masks": False} if options.no_masks else {}
    if options.seeds:
        overrides["seeds"] = options.seeds
    protocol = load_protocol(options.protocol, overrides=overrides)

    from medsam2_ft.benchmark.runner import run_benchmark

    table = run_benchmark(
        protocol,
        roots=options.data,
        models=[name for name in options.models.split(",") if name],
        out=options.out,
        split=options.split,
        limit=options.limit,
        devices=options.device.split(","),
        workers=options.workers,
    )
    _print_summary(table)
    if not options.no_report:
        report([str(options.out)])


def report(argv: list[str]) -> None:
    """`python -m medsam2_ft report DIR`: report.html and report.md from the rows.csv of a run."""
    parser = argparse.ArgumentParser(
        prog="python -m medsam2_ft report", description="Write report.html and report.md from the rows.csv of a run."
    )
    parser.add_argument("folder", type=Path, help="folder that `benchmark` or `score` wrote")
    options = parser.parse_args(argv)
    from medsam2_ft.benchmark.report import write_report

    console = Console()
    for path in write_report(options.folder):
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)


def score(argv: list[str]) -> None:
    """`python -m medsam2_ft score --pred DIR --data DIR --out DIR`: metrics and report for anyone's masks."""
    parser = argparse.ArgumentParser(
        prog="python -m medsam2_ft score",
        description="Score label maps that another program wrote (nnU-Net's NIfTI files, npz or png, one a case).",
    )
    parser.add_argument("--pred", type=Path, required=True, help="folder of label maps named like the cases")
    parser.add_argument("--data", type=Path, required=True, help="prepared dataset folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", help="what the report calls the model; the folder's name by default")
    parser.add_argument("--split", default="test", choices=["train", "val", "test", "all"])
    parser.add_argument("--tolerance-mm", type=float, default=2.0)
    options = parser.parse_args(argv)
    from medsam2_ft.benchmark.score import score_folder

    table = score_folder(
        options.pred,
        root=options.data,
        out=options.out,
        name=options.name or options.pred.resolve().name,
        split=options.split,
        tolerance_mm=options.tolerance_mm,
    )
    _print_summary(table)
    report([str(options.out)])


def models(argv: list[str]) -> None:
    """`python -m medsam2_ft models`: every model known by name, and whether its weights are here."""
    argparse.ArgumentParser(
        prog="python -m medsam2_ft models", description="List the models that --models and model= know by name."
    ).parse_args(argv)
    from medsam2_ft.benchmark.models.catalogue import CATALOGUE, is_present

    table = Table("model", "family", "M weights", "licence", "file", "here", "from", box=None, pad_edge=False)
    for entry in CATALOGUE.values():
        here = "[green]yes[/]" if is_present(entry) else "no"
        table.add_row(
            entry.name, entry.family, f"{entry.parameters:.1f}", entry.licence, entry.file, here, entry.source
        )
    console = Console()
    console.print(table)
    console.print(
        "Weights that are not here are fetched on first use, or put into checkpoints/ by hand. "
        "NAME@random is a SAM2 with random weights; any checkpoint's path is a model too.",
        highlight=False,
    )


def _print_summary(rows: "pd.DataFrame") -> None:
    from medsam2_ft.benchmark.statistics import summarise, summarise_sweep

    table = Table("model", "modality", "objects", "DSC", "NSD", box=None, pad_edge=False)
    for line in summarise(rows, by=("model", "modality")).itertuples():
        table.add_row(line.model, line.modality or "-", str(line.num), f"{line.dsc_mean:.3f}", f"{line.nsd_mean:.3f}")
    sweep = Table("model", "pass", "objects", "DSC", "NSD", box=None, pad_edge=False)
    for line in summarise_sweep(rows).itertuples():
        sweep.add_row(line.model, line.name, str(line.num), f"{line.dsc:.3f}", f"{line.nsd:.3f}")
    for found in (found for found in (table, sweep) if found.row_count):
        Console().print(found)
