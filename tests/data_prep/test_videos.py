from pathlib import Path

import numpy as np
from PIL import Image

from medsam2_ft.data.case import Case
from tests.io.test_sequence import moving_square, write_frames, write_video


def masks_of(frames: np.ndarray, value=1) -> np.ndarray:
    return (frames[..., 0] > 100).astype(np.uint8) * value


def test_frame_folders_with_some_masks(tmp_path: Path, prepare):
    frames = moving_square(12)
    for name in ("a", "b", "c"):
        write_frames(tmp_path / "raw/images" / name, frames + np.uint8(ord(name) - 90))
        write_frames(tmp_path / "raw/masks" / name, masks_of(frames[[0, 5, 10]], 255), names=[0, 5, 10])
    assert prepare("videos", "--modality", "Ultrasound", "--fps", 30, "--label", "lesion") == 0
    case = Case.load(tmp_path / "out/cases/a.npz")
    assert case.kind == "video" and case.fps == 30 and case.imgs.shape == (12, 32, 32, 3)
    assert case.labelled is not None and np.flatnonzero(case.labelled).tolist() == [0, 5, 10]
    np.testing.assert_array_equal(case.gts[10], masks_of(frames)[10])
    assert not case.gts[1].any()


def test_an_empty_mask_is_a_label_too(tmp_path: Path, prepare):
    frames = moving_square(4)
    masks = masks_of(frames)
    masks[2] = 0
    write_frames(tmp_path / "raw/images/a", frames)
    write_frames(tmp_path / "raw/masks/a", masks)
    prepare("videos", "--modality", "US")
    case = Case.load(tmp_path / "out/cases/a.npz")
    assert case.labelled is None and not case.gts[2].any()


def test_video_files_with_masks_by_number(tmp_path: Path, prepare):
    frames = moving_square(9)
    (tmp_path / "raw/images").mkdir(parents=True)
    write_video(tmp_path / "raw/images/clip.mp4", frames)
    ids = masks_of(frames)
    ids[:, 20:25, 20:25] = 2
    write_frames(tmp_path / "raw/masks/clip", ids[[0, 4, 8]], names=["m_0000", "m_0004", "m_0008"])
    assert prepare("videos", "--modality", "Endoscopy") == 0
    case = Case.load(tmp_path / "out/cases/clip.npz")
    assert case.fps == 12 and case.labels == {"label_1": [1], "label_2": [2]}
    assert np.flatnonzero(case.labelled).tolist() == [0, 4, 8]
    np.testing.assert_array_equal(case.region_mask("label_2", 8), ids[8] == 2)
    prepare("videos", "--modality", "Endoscopy", "--every", 2)
    case = Case.load(tmp_path / "out/cases/clip.npz")
    assert case.num_slices == 5 and np.flatnonzero(case.labelled).tolist() == [0, 2, 4]


def test_bad_frames_are_named(tmp_path: Path, prepare):
    frames = moving_square(4)
    for name in ("good", "size", "names"):
        write_frames(tmp_path / "raw/images" / name, frames)
        write_frames(tmp_path / "raw/masks" / name, masks_of(frames))
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "raw/masks/size/1.png")
    for path in list((tmp_path / "raw/masks/names").iterdir())[:3]:
        path.unlink()
    next((tmp_path / "raw/masks/names").iterdir()).rename(tmp_path / "raw/masks/names/final.png")
    assert prepare("videos", "--modality", "US") == 1
    text = (tmp_path / "out/rejected.csv").read_text()
    assert "mask of frame 1" in text and "cannot be matched" in text
