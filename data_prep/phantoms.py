"""Phantom volumes as real NIfTI pairs: abdomen-like, noisy, oblique, anisotropic, so that trying things out is honest.

Organs overlap in intensity with each other and with unlabelled neighbours; no threshold separates them.
"""

import argparse
import csv
import json
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from medsam2_ft.errors import DataError

LABELS = {"liver": 1, "spleen": 2, "kidney": 3, "aorta": 4, "bladder": 5}
_SHAPE_XY = (128, 112)
# (label, centre x y z, radii x y z, mean HU): x to the left, y to the back, z up, in units of the half field of view.
_ORGANS = (
    (1, (-0.38, -0.10, 0.35), (0.34, 0.36, 0.42), 95.0),
    (2, (0.52, 0.22, 0.38), (0.17, 0.22, 0.26), 105.0),
    (3, (-0.34, 0.34, -0.15), (0.13, 0.13, 0.32), 125.0),
    (3, (0.34, 0.34, -0.10), (0.13, 0.13, 0.32), 125.0),
    (4, (0.06, 0.30, 0.0), (0.075, 0.085, 9.0), 140.0),
    (5, (0.02, -0.12, -0.72), (0.20, 0.19, 0.20), -22.0),
    # Unlabelled neighbours: spine, stomach, bowel loops, vena cava.
    (0, (0.0, 0.56, 0.0), (0.15, 0.14, 9.0), 260.0),
    (0, (0.28, -0.28, 0.40), (0.24, 0.22, 0.24), 55.0),
    (0, (0.30, -0.30, -0.30), (0.22, 0.20, 0.16), 70.0),
    (0, (-0.25, -0.32, -0.35), (0.20, 0.18, 0.18), 90.0),
    (0, (-0.14, 0.26, 0.0), (0.07, 0.07, 9.0), 115.0),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for images/, masks/, dataset.json, patients.csv"
    )
    parser.add_argument("--cases", type=int, default=24, help="number of volumes")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other phantoms")


def run(args: argparse.Namespace) -> int:
    """Write the phantoms; files that are there already are kept."""
    if args.cases < 1:
        raise DataError(f"--cases must be at least 1, not {args.cases}.")
    for folder in ("images", "masks"):
        (args.out / folder).mkdir(parents=True, exist_ok=True)
    patients = _patients(args.cases)
    for index in tqdm(range(args.cases), desc="phantoms", unit="volume"):
        image_path = args.out / "images" / f"phantom_{index:03d}_0000.nii.gz"
        mask_path = args.out / "masks" / f"phantom_{index:03d}.nii.gz"
        if image_path.exists() and mask_path.exists():
            continue
        image, mask = make_phantom(patients[index], visit=index, seed=args.seed)
        _save(image, image_path)
        _save(mask, mask_path)
    (args.out / "dataset.json").write_text(json.dumps({"labels": {"background": 0, **LABELS}}, indent=1) + "\n")
    with (args.out / "patients.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("case", "patient"))
        writer.writerows((f"phantom_{index:03d}", f"P{patient:03d}") for index, patient in enumerate(patients))
    print(f"{args.cases} volumes of {patients[-1] + 1} patients in {args.out}")
    return 0


def make_phantom(patient: int, *, visit: int, seed: int = 0) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """One volume and its mask.

    Args:
        patient: fixes the anatomy.
        visit: fixes pose, grid, contrast and noise.
        seed: fixes the whole series.

    Returns:
        int16 image in HU and uint8 mask on one oblique, anisotropic grid; the order of axes on disk varies by visit.
    """
    body = np.random.default_rng((seed, patient, 0))
    scan = np.random.default_rng((seed, visit, 1))
    shape = (*_SHAPE_XY, int(scan.integers(24, 41)))
    axes = (np.linspace(-1, 1, size, dtype=np.float32) for size in shape)
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    grid += np.stack([0.05 * _smooth(body, shape, 4) + 0.015 * _smooth(scan, shape, 5) for _ in range(3)])
    inside = (grid[0] / 0.92) ** 2 + (grid[1] / 0.80) ** 2 < 1
    fat = (grid[0] / 0.84) ** 2 + (grid[1] / 0.70) ** 2 > 1
    image = np.where(inside, np.where(fat, -95.0, 30.0 + 18 * _smooth(scan, shape, 9)), -1000.0).astype(np.float32)
    mask = np.zeros(shape, np.uint8)
    textures = [14 * _smooth(scan, shape, 12), 9 * _smooth(scan, shape, 28)]
    for label, centre, radii, mean in _ORGANS:
        shift, stretch = body.normal(0, 0.035, 3), body.uniform(0.85, 1.18, 3)
        distance = np.zeros(shape, np.float32)
        for axis, (middle, radius) in enumerate(zip(np.add(centre, shift), np.multiply(radii, stretch), strict=True)):
            distance += ((grid[axis] - np.float32(middle)) / np.float32(radius)) ** 2
        organ = distance < 1
        # Contrast agent, age and scanner move every organ's mean, so the means overlap between cases.
        shifts = scan.integers(0, shape)
        texture = sum(np.roll(field, shifts, axis=(0, 1, 2))[organ] for field in textures)
        image[organ] = mean + scan.normal(0, 9) + texture
        mask[organ] = label
    image = gaussian_filter(image, (0.7, 0.7, 0.3))
    image += np.where(inside, image * 0.10 * _smooth(scan, shape, 3) + 8 * _smooth(scan, shape, 20), 0)
    image += gaussian_filter(scan.normal(0, 26, shape), (0.6, 0.6, 0))
    affine = _oblique_affine(scan, shape)
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("LPS"),
        nib.orientations.axcodes2ornt(str(scan.choice(["LPS", "RAS", "SRA", "LIP"]))),
    )
    volumes = (np.clip(np.rint(image), -1024, 3071).astype(np.int16), mask)
    stored = [nib.Nifti1Image(array, affine).as_reoriented(turn) for array in volumes]
    return stored[0], stored[1]


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], knots: int) -> NDArray[np.float32]:
    """A random field of unit spread with about `knots` bumps across."""
    coarse = rng.normal(size=(knots, knots, max(2, knots // 3))).astype(np.float32)
    in_plane = cv2.resize(coarse, shape[1::-1], interpolation=cv2.INTER_CUBIC)
    field = cv2.resize(in_plane.reshape(-1, coarse.shape[2]), (shape[2], shape[0] * shape[1])).reshape(shape)
    return np.asarray(field / field.std(), np.float32)


def _oblique_affine(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """LPS-ordered axes in RAS mm: tilted by some degrees, 0.7-1 mm in plane, 2.5-5 mm between slices."""
    in_plane = rng.uniform(0.7, 1.0)
    spacing = np.array([in_plane, in_plane, rng.uniform(2.5, 5.0)])
    affine = np.eye(4)
    tilt = Rotation.from_euler("xyz", rng.uniform(-9, 9, 3), degrees=True).as_matrix()
    affine[:3, :3] = tilt @ np.diag([-1.0, -1.0, 1.0]) * spacing
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) / 2) + rng.normal(0, 20, 3)
    return affine


def _patients(num_cases: int) -> list[int]:
    """Every third patient was scanned twice."""
    patients: list[int] = []
    patient = 0
    while len(patients) < num_cases:
        patients += [patient] * (2 if patient % 3 == 2 else 1)
        patient += 1
    return patients[:num_cases]


def _save(image: nib.Nifti1Image, path: Path) -> None:
    draft = path.with_name(f".{path.name}")
    nib.save(image, draft)
    draft.replace(path)
