"""Prepare and audit every dataset of a folder laid out as docs/datasets.md describes, one command each.

    python -m data_prep.examples.prepare_sets RAW_DIR OUT_DIR [--only NAME ...]

Prints a markdown table: cases, slices, labels, seconds, and what was decided from the data.
"""

import argparse
import contextlib
import io
import re
import shlex
import shutil
import sys
import time
from pathlib import Path

from data_prep.__main__ import main as data_prep
from medsam2_ft.data.manifest import read_manifest

LABELS = Path(__file__).parent / "labels"
# name -> the words after `python -m data_prep`; {raw} and {out} are the set's folders, {labels} the folder of yaml files.
COMMANDS = {
    # Other people's npz files need no preparation; they are audited as they are.
    "ct_deeplesion-recist": "",
    "ct_sts-ibsi": "volumes --modality CT --label sarcoma --group-by '(STS_\\d+)'",
    "ct_totalsegmentator-example": "volumes --modality CT",
    "ctmr2d_sammed2d-demo": "images --modality CT --masks {raw}/masks_by_class",
    "derm_ph2": "images --modality Dermoscopy --label lesion",
    "endo_kvasir-sessile": "images --modality Endoscopy --label polyp",
    "fundus_drishti-antillia": "images --modality Fundus --labels {labels}/disc_cup.yaml",
    "fundus_drive": "images --modality Fundus --label vessel",
    "mammo_cdd-cesm-antillia": (
        "images --modality Mammography --labels {labels}/benign_malignant.yaml --group-by '(P\\d+)_'"
    ),
    "micro_dsb2018": "images --modality Microscopy --label nucleus",
    "micro_stardist": "images --modality Microscopy --label nucleus",
    "micro_wbc1": "images --modality Microscopy --labels {labels}/white_cell.yaml",
    "mr-seq_sunnybrook-lv": "volumes --modality MR --label lv --group-by '(SC-.*)_E[DS]$'",
    "mr_msd-hippocampus": "volumes --modality MR --labels {labels}/hippocampus.yaml",
    "mr_sts-ibsi-t1": "volumes --modality MR --label sarcoma --group-by '(STS_\\d+)'",
    "mr_totalsegmentator-example": "volumes --modality MR",
    "oct-seq_retouch-sjtu": "volumes --modality OCT --label fluid",
    "octa_faz-antillia": "images --modality OCT --labels {labels}/faz.yaml",
    "pet_sts-ibsi": "volumes --modality PET --label sarcoma --group-by '(STS_\\d+)'",
    "us_busi-antillia": "images --modality Ultrasound --labels {labels}/benign_malignant.yaml",
    "xray_covid-cxr": (
        "images --modality X-ray --masks {raw}/masks_by_class "
        "--group-by '^(.+?)(?:_admission|_day_\\d+|_\\d+_(?:hours|days))?$'"
    ),
}


def main() -> int:
    """Run all commands; 1 if any of them or their audit did not end with 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS), metavar="NAME")
    args = parser.parse_args()
    print("| dataset | cases | slices | split | regions | seconds | exit | decided from the data | audit |")
    print("|---|---|---|---|---|---|---|---|---|")
    worst = 0
    for name in args.only:
        if not (args.raw / name).is_dir():
            print(f"{name}: not in {args.raw}, left out", file=sys.stderr)
            continue
        worst = max(worst, prepare(name, args.raw / name, args.out / name))
    return worst


def prepare(name: str, raw: Path, out: Path) -> int:
    """Run one dataset's command and its audit, and print its row."""
    if not COMMANDS[name]:
        shutil.copytree(raw, out, dirs_exist_ok=True)
    words = shlex.split(COMMANDS[name].format(raw=raw, labels=LABELS))
    words += ["--images", str(raw / "images"), "--out", str(out)]
    if "--masks" not in words:
        words += ["--masks", str(raw / "masks")]
    start = time.perf_counter()
    code, said = _quietly(words) if COMMANDS[name] else (0, "")
    seconds = time.perf_counter() - start
    decided = re.findall(r"^(?:mask encoding|intensity): (.+)$", said, re.MULTILINE)
    audit_code, audited = _quietly(["audit", str(out)])
    records = read_manifest(out)
    regions = sorted({region for record in records for region in record.labels})
    splits = "/".join(str(sum(record.split == split for record in records)) for split in ("train", "val", "test"))
    verdict = re.findall(r"(\d+ errors, \d+ warnings)", audited)
    cells = (
        name, len(records), sum(record.shape[0] for record in records), splits,
        ", ".join(regions) if len(regions) <= 12 else f"{len(regions)} regions", f"{seconds:.1f}", code,
        "; ".join(decided) or "-", verdict[0] if verdict else "-",
    )  # fmt: skip
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    if code or audit_code:
        print(said, audited, file=sys.stderr)
    return max(code, audit_code)


def _quietly(words: list[str]) -> tuple[int, str]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            return data_prep(words), said.getvalue()
        except SystemExit as stop:
            return int(stop.code or 0), said.getvalue()


if __name__ == "__main__":
    raise SystemExit(main())
