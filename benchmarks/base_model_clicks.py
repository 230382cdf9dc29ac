"""What clicks do for a model: mean DSC after one click alone, after a box, and after each correction click behind the box.

Run: python benchmarks/base_model_clicks.py --data DIR [DIR ...] --models sam2.1_nano,path/to/other.pt
Clicks are a careful user's: in the middle of the object, then in the middle of the largest part that is wrong, each answer
fed back as a dense prompt. The objects are those that protocol litemedsam_anchor takes of the test split. Expected: a table in
Markdown on standard output.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from medsam2_ft.benchmark.prompting import find_targets, prompted_slices, tight_prompt
from medsam2_ft.benchmark.protocol import load_protocol
from medsam2_ft.data.case import Case
from medsam2_ft.data.manifest import read_manifest
from medsam2_ft.errors import exit_on_user_error
from medsam2_ft.inference.predictor import Embedding, Predictor
from medsam2_ft.metrics import dsc


def middle(region_HW: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The pixel (x, y) that lies deepest in the region."""
    depth = cv2.distanceTransform(np.pad(region_HW, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return np.array([x, y], np.float32)


def corrections(
    predictor: Predictor, embedding: Embedding, truth: NDArray[np.bool_], box: object, *, num: int
) -> list[float]:
    """DSC after the box, and after each of `num` clicks behind it."""
    points, labels = np.zeros((0, 2), np.float32), np.zeros(0, np.int64)
    answer = predictor.predict(embedding, boxes_N4=[box])
    scores = [dsc(answer.masks_NHW[0], truth)]
    for _ in range(num):
        wrong = answer.masks_NHW[0] ^ truth
        if wrong.any():
            click = middle(wrong)
            points = np.vstack([points, click])
            labels = np.append(labels, int(truth[int(click[1]), int(click[0])]))
            answer = predictor.predict(
                embedding,
                boxes_N4=[box],
                points_NP2=points[None],
                point_labels_NP=labels[None],
                mask_logits_Nhw=answer.logits_Nhw,
            )
        scores.append(dsc(answer.masks_NHW[0], truth))
    return scores


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--models", default="sam2.1_nano")
    parser.add_argument("--clicks", type=int, default=3)
    options = parser.parse_args()
    protocol = load_protocol("litemedsam_anchor")
    predictors = {name: Predictor.from_checkpoint(name) for name in options.models.split(",")}
    scores: dict[str, list[list[float]]] = {name: [] for name in predictors}
    records = [(root, record) for root in options.data for record in read_manifest(root) if record.split == "test"]
    for root, record in tqdm(records, unit="case"):
        case = Case.load(root / record.file)
        for t in prompted_slices(case, protocol):
            targets = find_targets(case, protocol, t=t)
            for name, predictor in predictors.items():
                embedding = predictor.embed(case.imgs[t])
                for target in targets:
                    truth = target.truth[t]
                    alone = predictor.predict(
                        embedding, points_NP2=middle(truth)[None, None], point_labels_NP=np.ones((1, 1))
                    )
                    box = tight_prompt(target.truth, t, protocol)
                    behind = corrections(predictor, embedding, truth, box, num=options.clicks)
                    scores[name].append([dsc(alone.masks_NHW[0], truth), *behind])
    heads = ["one click", "box", *(f"+ {n} click{'s' * (n > 1)}" for n in range(1, options.clicks + 1))]
    print(f"{len(scores[next(iter(scores))])} objects\n\n| model | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}")
    for name, rows in scores.items():
        print(
            f"| {Path(name).stem if '/' in name else name} | {' | '.join(f'{value:.3f}' for value in np.mean(rows, axis=0))} |"
        )


if __name__ == "__main__":
    with exit_on_user_error():
        main()
