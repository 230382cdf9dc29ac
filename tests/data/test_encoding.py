import cv2
import numpy as np
import pytest

from medsam2_ft.data.encoding import Encoding, detect_encoding, forced_encoding
from medsam2_ft.errors import DataError


def discs(values, size=64, count=3, seed=0, shape=()):
    rng = np.random.default_rng(seed)
    canvas = np.zeros((size, size, *shape), np.float32)
    for value in values:
        for _ in range(count):
            x, y = rng.integers(10, size - 10, 2).tolist()
            cv2.circle(canvas, (x, y), 8, value if isinstance(value, tuple) else (float(value),), -1)
    return canvas


def blurred(canvas):
    return np.rint(cv2.GaussianBlur(canvas, (0, 0), 0.8)).astype(np.uint8)


def jpeg(canvas):
    return cv2.imdecode(cv2.imencode(".jpg", canvas.astype(np.uint8))[1], cv2.IMREAD_UNCHANGED)


def test_binary():
    masks = [discs([255], seed=i).astype(np.uint8) for i in range(3)]
    found = detect_encoding(masks, is_lossy=False)
    assert found.kind == "binary" and "only 0 and 255" in found.evidence
    assert found.decode(masks[0], source="m").max() == 1


@pytest.mark.parametrize("spoil", [blurred, jpeg])
def test_soft_edges_and_jpeg_noise_are_thresholded_and_said_so(spoil):
    clean = [discs([255], seed=i) for i in range(3)]
    found = detect_encoding([spoil(mask) for mask in clean], is_lossy=spoil is jpeg)
    assert found.kind == "binary" and found.threshold == 127 and "thresholded" in found.evidence
    got = found.decode(spoil(clean[0]), source="m") > 0
    want = clean[0] > 0
    assert (got & want).sum() * 2 / (got.sum() + want.sum()) > 0.95


@pytest.mark.parametrize("values", [(1, 2, 3), (128, 255), (50, 100, 150, 200, 250)])
def test_index(values):
    masks = [discs(values, seed=i).astype(np.uint8) for i in range(3)]
    found = detect_encoding(masks, is_lossy=False)
    assert found.kind == "index" and np.array_equal(found.decode(masks[0], source="m"), masks[0])


def test_index_through_jpeg_snaps_to_levels():
    clean = [discs((128, 255), count=2, seed=i) for i in range(4)]
    found = detect_encoding([jpeg(mask) for mask in clean], is_lossy=True)
    assert found.kind == "index" and len(found.levels) == 2
    got = found.decode(jpeg(clean[1]), source="m")
    assert set(np.unique(got)) <= {0, *found.levels} and np.mean((got > 0) == (clean[1] > 0)) > 0.97


def counted(number, seed):
    canvas = np.zeros((80, 80), np.uint16)
    cells = np.random.default_rng(seed).permutation(100)[:number]
    for i, cell in enumerate(cells, start=1):
        canvas[cell // 10 * 8 : cell // 10 * 8 + 6, cell % 10 * 8 : cell % 10 * 8 + 6] = i
    return canvas


def test_instances():
    masks = [counted(n, n) for n in (12, 40, 95)]
    found = detect_encoding(masks, is_lossy=False)
    assert found.kind == "instances" and "connected object" in found.evidence
    ids = found.decode(masks[2], source="m")
    assert ids.max() == 95 and found.labels([1, 2], name="cell") == {"cell": [1, 2]}
    assert detect_encoding([counted(30, 0)], is_lossy=False).kind == "instances"


def test_colour_with_soft_edges():
    masks = [blurred(discs([(0, 255, 0), (255, 0, 0)], seed=i, shape=(3,))) for i in range(3)]
    found = detect_encoding(masks, is_lossy=False)
    assert found.kind == "colour" and set(found.colours) == {(0, 255, 0), (255, 0, 0)}
    assert found.labels([1]) == {"green": [1], "red": [2]}
    ids = found.decode(masks[0], source="m")
    assert set(np.unique(ids)) == {0, 1, 2}
    assert found.decode(np.zeros((4, 4), np.uint8), source="grey").max() == 0


def test_noise_is_refused():
    with pytest.raises(DataError, match="--mask-encoding"):
        detect_encoding([np.random.default_rng(0).integers(0, 5000, (64, 64)).astype(np.uint16)], is_lossy=False)
    with pytest.raises(DataError, match="no readable mask"):
        detect_encoding([], is_lossy=False)


def test_forced_choices():
    grey = [blurred(discs([200]))]
    assert forced_encoding("binary", grey, is_lossy=False).threshold == pytest.approx(99.5)
    assert forced_encoding("instances", grey, is_lossy=False).kind == "instances"
    with pytest.raises(DataError, match="masks are grey"):
        forced_encoding("colour", grey, is_lossy=False)


def test_colour_mask_read_as_index_is_refused():
    with pytest.raises(DataError, match="--mask-encoding colour"):
        Encoding("index").decode(np.zeros((4, 4, 3), np.uint8), source="m.png")


def test_encodings_travel_as_dicts():
    found = Encoding("colour", colours=((1, 2, 3),), background=(9, 9, 9))
    assert Encoding.from_dict(found.to_dict()) == found
