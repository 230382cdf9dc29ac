"""Prepare the samples that the small base model learns from and is measured on, one dataset folder each, split by patient.

Sets whose licence does not allow training a model that is given away, or says nothing, are kept out of the base model:
their training split serves to measure fine-tuning only.

    python benchmarks/base_model_data.py --samples DIR --out runs/nano/data
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

STS_SPLIT = {
    "train": ("STS_002", "STS_010", "STS_019", "STS_025", "STS_026", "STS_028"),
    "val": ("STS_008", "STS_015"),
    "test": ("STS_003", "STS_012", "STS_018", "STS_024"),
}
"""The sarcoma patients are the same in CT, MR and PET, so one table splits all three."""

XRAY_PATIENT = r"^(.+?)(?:_admission|_day_\d+|_\d+_(?:hours|days))?$"
"""Days of one illness belong to one patient."""
SPLIT, TEST_ONLY, STS = ("0.6", "0.1", "0.3"), ("0", "0", "1"), ("sts.csv",)
LABELS = Path(__file__).resolve().parents[1] / "data_prep" / "examples" / "labels"


@dataclass(frozen=True)
class Sample:
    """One sample set and how its command line differs."""

    name: str
    kind: str
    modality: str
    split: tuple[str, ...]
    options: tuple[str, ...] = ()


def _labels(name: str) -> tuple[str, str]:
    return "--labels", str(LABELS / f"{name}.yaml")


SAMPLES = (
    # These gave their training split to the small base model.
    Sample("us_busi-antillia", "images", "Ultrasound", SPLIT, _labels("benign_malignant")),
    Sample("fundus_drishti-antillia", "images", "Fundus", SPLIT, _labels("disc_cup")),
    Sample("octa_faz-antillia", "images", "OCT", SPLIT, _labels("faz")),
    Sample("micro_dsb2018", "images", "Microscopy", SPLIT, ("--label", "nucleus")),
    Sample("micro_stardist", "images", "Microscopy", ("1", "0", "0"), ("--label", "nucleus")),
    Sample("mr-seq_sunnybrook-lv", "videos", "MR", SPLIT, ("--label", "lv", "--group-by", r"SC-[A-Z-]+\d+")),
    Sample("mr_msd-hippocampus", "volumes", "MR", SPLIT, _labels("hippocampus")),
    Sample("ct_sts-ibsi", "volumes", "CT", STS, ("--label", "sarcoma")),
    Sample("mr_sts-ibsi-t1", "volumes", "MR", STS, ("--label", "sarcoma")),
    Sample("pet_sts-ibsi", "volumes", "PET", STS, ("--label", "sarcoma")),
    # These did not: their training split is for fine-tuning alone.
    Sample("derm_ph2", "images", "Dermoscopy", SPLIT, ("--label", "lesion")),
    Sample("endo_kvasir-sessile", "images", "Endoscopy", SPLIT, ("--label", "polyp")),
    Sample("fundus_drive", "images", "Fundus", SPLIT, ("--label", "vessel")),
    Sample("micro_wbc1", "images", "Microscopy", SPLIT, _labels("white_cell")),
    Sample(
        "mammo_cdd-cesm-antillia",
        "images",
        "Mammography",
        SPLIT,
        (*_labels("benign_malignant"), "--group-by", r"(P\d+)_"),
    ),
    Sample("xray_covid-cxr", "images", "X-ray", SPLIT, ("--group-by", XRAY_PATIENT)),
    Sample("oct-seq_retouch-sjtu", "videos", "OCT", TEST_ONLY, ("--label", "fluid")),
    Sample("ct_totalsegmentator-example", "volumes", "CT", TEST_ONLY),
    Sample("mr_totalsegmentator-example", "volumes", "MR", TEST_ONLY),
    Sample("ctmr2d_sammed2d-demo", "images", "CT", TEST_ONLY),
)


def main() -> None:
    """Prepare every set that is there; a set that fails is named and the others go on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=Path, required=True, help="folder of the sample sets")
    parser.add_argument("--out", type=Path, required=True, help="for the prepared datasets")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = arguments.out / "sts.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("patient", "split"))
        rows.writerows((patient, split) for split, patients in STS_SPLIT.items() for patient in patients)
    failed = [sample.name for sample in SAMPLES if not prepare(sample, samples=arguments.samples, out=arguments.out)]
    if failed:
        sys.exit(f"not prepared: {', '.join(failed)}")


def prepare(sample: Sample, *, samples: Path, out: Path) -> bool:
    """Run one preparation; whether it worked."""
    split = [str(out / word) if word.endswith(".csv") else word for word in sample.split]
    source = samples / sample.name
    command = [
        sys.executable, "-m", "data_prep", sample.kind, "--images", str(source / "images"), "--masks", str(source / "masks"),
        "--out", str(out / sample.name), "--modality", sample.modality, "--split", *split, "--workers", "1", *sample.options,
    ]  # fmt: skip
    return subprocess.run(command, check=False).returncode == 0


if __name__ == "__main__":
    main()
