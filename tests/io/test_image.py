from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from medsam2_ft.errors import DataError
from medsam2_ft.io.image import read_image, read_mask_image

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (6, 9), dtype=np.uint16)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".gif"])
def test_grey(tmp_path: Path, suffix: str):
    Image.fromarray(GREY).save(tmp_path / f"x{suffix}")
    volume = read_image(tmp_path / f"x{suffix}")
    assert volume.kind == "image" and volume.array.dtype == np.uint8
    np.testing.assert_array_equal(volume.array[0], GREY)
    np.testing.assert_array_equal(read_mask_image(tmp_path / f"x{suffix}"), GREY)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_colour_and_alpha(tmp_path: Path, suffix: str):
    Image.fromarray(COLOUR).save(tmp_path / f"x{suffix}")
    np.testing.assert_array_equal(read_image(tmp_path / f"x{suffix}").array[0], COLOUR)
    Image.fromarray(np.dstack([COLOUR, GREY])).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png").array[0], COLOUR)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits(tmp_path: Path, suffix: str):
    Image.fromarray(DEEP).save(tmp_path / f"x{suffix}")
    np.testing.assert_array_equal(read_image(tmp_path / f"x{suffix}").array[0], DEEP)


def test_deep_colour_and_big_endian_tiff(tmp_path: Path):
    deep = RNG.integers(0, 65536, (6, 9, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", deep, byteorder=">", photometric="rgb")
    array = read_image(tmp_path / "x.tif").array
    assert array.dtype == np.dtype("=u2")
    np.testing.assert_array_equal(array[0], deep)


def test_jpeg(tmp_path: Path):
    Image.fromarray(np.full((16, 16, 3), (200, 30, 60), np.uint8)).save(tmp_path / "x.jpg")
    assert read_image(tmp_path / "x.jpg").array.shape == (1, 16, 16, 3)


def test_one_bit_is_black_and_white(tmp_path: Path):
    Image.fromarray(GREY > 127).save(tmp_path / "x.bmp")
    np.testing.assert_array_equal(read_mask_image(tmp_path / "x.bmp"), (GREY > 127) * 255)


def test_palettes_are_indices_for_masks_and_colours_for_images(tmp_path: Path):
    index = np.arange(6, dtype=np.uint8).reshape(2, 3)
    image = Image.fromarray(index, "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9, 250, 250, 0])
    image.save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_mask_image(tmp_path / "x.png"), index)
    assert read_image(tmp_path / "x.png").array[0, 0, 1].tolist() == [255, 0, 0]


def test_equal_channels_are_grey(tmp_path: Path):
    Image.fromarray(np.dstack([GREY] * 3)).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png").array.shape == (1, 6, 9)


@pytest.mark.parametrize(
    ("content", "sentence"), [(b"", "0 bytes"), (b"\x89PNG\r\n\x1a\n garbage", "cannot be read"), (None, "no file")]
)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_bad_files_end_in_one_sentence(tmp_path: Path, content, sentence: str, suffix: str):
    path = tmp_path / f"x{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        read_image(path)


def test_truncated_png(tmp_path: Path):
    Image.fromarray(RNG.integers(0, 256, (64, 64), dtype=np.uint8)).save(tmp_path / "x.png")
    whole = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        read_image(tmp_path / "x.png")


def test_stacks_are_not_images(tmp_path: Path):
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((3, 8, 8), np.uint8), photometric="minisblack")
    with pytest.raises(DataError, match="holds 3 images"):
        read_image(tmp_path / "x.tif")
