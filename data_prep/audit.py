"""`python -m data_prep audit DIR`: check every case and write the data card."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from medsam2_ft.data.audit import audit_dataset
from medsam2_ft.data.card import write_card
from medsam2_ft.data.manifest import read_manifest

_SHOWN = 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("root", type=Path, metavar="DIR", help="dataset folder")
    parser.add_argument("--workers", type=int, default=-1, help="parallel workers; -1 for one a core")


def run(args: argparse.Namespace) -> int:
    """Audit, print the findings, write `data_card.html`; 1 if there are errors."""
    total = len(read_manifest(args.root))

    def progress(cases: Iterable[Any]) -> Iterable[Any]:
        yield from tqdm(cases, total=total, desc="audit", unit="case")

    audit = audit_dataset(args.root, workers=args.workers, progress=progress)
    for finding in audit.findings[:_SHOWN]:
        print(f"{finding.level}: {finding.case + ': ' if finding.case else ''}{finding.message}")
    if len(audit.findings) > _SHOWN:
        print(f"... and {len(audit.findings) - _SHOWN} more in the data card")
    warnings = len(audit.findings) - len(audit.errors)
    print(f"{total} cases, {len(audit.errors)} errors, {warnings} warnings -> {write_card(audit)}")
    return 1 if audit.errors else 0
