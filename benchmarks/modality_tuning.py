"""Tune the small base model on each modality's training split and score it on that modality's test split, model by model.

Run: python benchmarks/modality_tuning.py --data runs/sets --out runs/modalities [--only CT MR] [--steps 200]
One model a modality, the settings below for all of them, none of them chosen on test cases; the export is the best of a few
validations. Where there are volumes or sequences, memory is tuned afterwards for a quarter of the steps. The test splits are
scored by protocol all_modalities. Expected: runs and benchmarks in --out; minutes of training of each on standard output.
The table: python benchmarks/base_model_table.py runs/all runs/modalities/*/bench
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from time import perf_counter

from medsam2_ft.data.manifest import read_manifest
from medsam2_ft.errors import exit_on_user_error

ROOT = Path(__file__).resolve().parents[1]
MODALITIES = {
    "CT": (("ct_sts-ibsi",), ("ctmr2d_sammed2d-demo",), "grey"),
    "MR": (("mr_sts-ibsi-t1", "mr_msd-hippocampus", "mr-seq_sunnybrook-lv"), (), "grey"),
    "PET": (("pet_sts-ibsi",), (), "grey"),
    "Ultrasound": (("us_busi-antillia",), (), "grey"),
    "X-ray": (("xray_covid-cxr",), (), "grey"),
    "Dermoscopy": (("derm_ph2",), (), "free"),
    "Endoscopy": (("endo_kvasir-sessile",), (), "colour"),
    "Fundus": (("fundus_drishti-antillia", "fundus_drive"), (), "colour"),
    "OCT": (("octa_faz-antillia",), ("oct-seq_retouch-sjtu",), "grey"),
    "Mammography": (("mammo_cdd-cesm-antillia",), (), "grey"),
    "Microscopy": (("micro_dsb2018", "micro_wbc1", "micro_stardist"), (), "free"),
}
"""Sets trained and tested, sets without training cases that are only tested, augmentation preset."""
PER_EPOCH = 160
"""Images an epoch at least; small sets are named several times to get there, so that sets of a modality weigh alike."""
SLICES_PER_CASE = 12
STAGES = {
    "image": ("finetune=full", "data.batch_size=8", "optim.lr=2e-4", "optim.encoder_lr=3e-4", "finetune.loss_stride=2"),
    "memory": ("finetune=memory", "data.batch_size=2", "optim.lr=2e-4"),
}


def train_images(folder: Path) -> int:
    """Slices that an epoch takes from one dataset folder."""
    cases = [record for record in read_manifest(folder) if record.split == "train"]
    return sum(min(SLICES_PER_CASE, record.shape[0]) for record in cases)


def has_sequences(folder: Path) -> bool:
    """Whether any case has more than one slice or frame."""
    return any(record.shape[0] > 1 for record in read_manifest(folder))


def tune(stage: str, folders: list[Path], *, out: Path, weights: str, steps: int, augmentation: str) -> None:
    """Train one stage; `out/model.pt` is its export."""
    share = max(1, PER_EPOCH // len(folders))
    roots = [folder for folder in folders for _ in range(max(1, round(share / train_images(folder))))]
    words = ["train.py", f"data.root=[{','.join(map(str, roots))}]", "model=sam2.1_nano", f"model.weights={weights}"]
    words += [*STAGES[stage], f"data.augmentation={augmentation}", f"trainer.max_steps={steps}"]
    words += ["trainer.max_epochs=1000", "trainer.check_val_every_n_epoch=3", "trainer.num_overlays=0"]
    words += [f"data.train_slices_per_case={SLICES_PER_CASE}", "data.val_slices_per_case=4", "data.num_workers=0"]
    words += [f"name={stage}", f"hydra.run.dir={out}"]
    out.mkdir(parents=True, exist_ok=True)
    with (out / "train.log").open("w") as log:
        if subprocess.run([sys.executable, *words], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT).returncode:
            sys.exit(f"training failed; see {out / 'train.log'}")


def main() -> None:
    """Tune and score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=MODALITIES, default=list(MODALITIES))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--limit", type=int, default=6, help="test cases a set")
    parser.add_argument("--models", default="sam2.1_nano", help="scored beside the tuned one")
    options = parser.parse_args()
    data, out = options.data.resolve(), options.out.resolve()
    print("| modality | minutes |\n|---|---|")
    for modality in options.only:
        sets, only_tested, augmentation = MODALITIES[modality]
        folders, folder, steps = [data / name for name in sets], out / modality, options.steps
        start = perf_counter()
        tune("image", folders, out=folder / "image", weights="pretrained", steps=steps, augmentation=augmentation)
        last = folder / "image" / "model.pt"
        if sequences := [path for path in folders if has_sequences(path)]:
            memory, steps = folder / "memory", steps // 4
            tune("memory", sequences, out=memory, weights=str(last), steps=steps, augmentation=augmentation)
            last = memory / "model.pt"
        minutes = (perf_counter() - start) / 60
        words = ["-m", "medsam2_ft", "benchmark", "--data", *folders, *(data / name for name in only_tested)]
        words += ["--protocol", "all_modalities", "--split", "test", "--limit", options.limit, "--no-report"]
        words += ["--models", f"{options.models},own={last}", "--out", folder / "bench"]
        subprocess.run([sys.executable, *map(str, words)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        print(f"| {modality} | {minutes:.1f} |", flush=True)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
