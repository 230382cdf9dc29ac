from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsam2_ft.errors import DataError
from medsam2_ft.io.sequence import is_sequence, natural_key, read_pictures, read_video


def write_frames(folder: Path, frames: np.ndarray, names=None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{names[index] if names else index}.png")
    return folder


def write_video(path: Path, frames: np.ndarray, *, codec="libx264", fps=12) -> Path:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def moving_square(number=11, size=32) -> np.ndarray:
    frames = np.zeros((number, size, size, 3), np.uint8)
    for t in range(number):
        frames[t, 4:12, t : t + 8] = (220, 40, 40)
    return frames


def test_ten_comes_after_nine(tmp_path: Path):
    frames = np.stack([np.full((4, 5), 10 * t, np.uint8) for t in range(12)])
    volume = read_pictures(write_frames(tmp_path / "v", frames), kind="video")
    np.testing.assert_array_equal(volume.array, frames)
    assert sorted(["f10", "f9", "f1"], key=natural_key) == ["f1", "f9", "f10"]
    assert is_sequence(tmp_path / "v") and not is_sequence(tmp_path)


def test_pictures_of_two_sizes_are_refused(tmp_path: Path):
    write_frames(tmp_path / "v", np.zeros((2, 4, 4), np.uint8))
    Image.fromarray(np.zeros((5, 4), np.uint8)).save(tmp_path / "v" / "2.png")
    with pytest.raises(DataError, match=r"2\.png"):
        read_pictures(tmp_path / "v")


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "libx264"), (".avi", "mpeg4"), (".mkv", "libx264")])
def test_video_files(tmp_path: Path, suffix: str, codec: str):
    frames = moving_square()
    video = read_video(write_video(tmp_path / f"v{suffix}", frames, codec=codec))
    assert video.array.shape == frames.shape and video.kind == "video" and video.fps == pytest.approx(12)
    assert np.abs(video.array.astype(int) - frames).mean() < 6
    half = read_video(tmp_path / f"v{suffix}", every=2)
    assert half.array.shape[0] == 6 and half.fps == pytest.approx(6)


def test_damaged_video(tmp_path: Path):
    (tmp_path / "v.mp4").write_bytes(b"nothing here" * 20)
    with pytest.raises(DataError, match="cannot be read"):
        read_video(tmp_path / "v.mp4")
