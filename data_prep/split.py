"""`python -m data_prep split DIR`: give a prepared dataset another split, without touching its cases."""

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path

from medsam2_ft.data.manifest import read_manifest, write_manifest
from medsam2_ft.data.splits import PatientRule, assign_folds, assign_splits, check_leaks, parse_split
from medsam2_ft.errors import DataError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("root", type=Path, metavar="DIR", help="dataset folder")
    parser.add_argument("--split", nargs="+", help="shares of train val test, or a csv with case or patient, and split")
    parser.add_argument("--folds", type=int, help="k-fold instead: number of folds")
    parser.add_argument("--fold", type=int, default=0, help="the fold that becomes val, from 0; test cases stay test")
    parser.add_argument("--group-by", help="patients anew: regex on the case name (first group), or FILE.csv:COLUMN")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another split")


def run(args: argparse.Namespace) -> int:
    """Rewrite `manifest.csv`."""
    if (args.split is None) == (args.folds is None):
        raise DataError("Say how to split, with either --split or --folds.")
    records = read_manifest(args.root)
    if args.group_by:
        patient_of = PatientRule(args.group_by)
        records = [replace(record, patient=patient_of(record.case)) for record in records]
    if args.folds is not None:
        pool = [record.patient for record in records if record.split != "test"]
        place = assign_folds(pool, folds=args.folds, held_out=args.fold, seed=args.seed)
        place |= {record.patient: "test" for record in records if record.split == "test"}
    else:
        rule = parse_split(args.split)
        place = (
            rule
            if isinstance(rule, dict)
            else assign_splits((record.patient for record in records), fractions=rule, seed=args.seed)
        )
    missing = [record.case for record in records if record.case not in place and record.patient not in place]
    if missing:
        raise DataError(f"The split's csv says nothing of case '{missing[0]}' (and {len(missing) - 1} more).")
    records = [replace(record, split=place.get(record.case) or place[record.patient]) for record in records]
    check_leaks(records)
    path = write_manifest(args.root, records)
    counts = Counter(record.split for record in records)
    print(", ".join(f"{name} {counts[name]}" for name in ("train", "val", "test")) + f" -> {path}")
    return 0
