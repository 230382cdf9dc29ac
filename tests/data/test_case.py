import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsam2_ft.data.case import Case
from medsam2_ft.errors import DataError


def volume_case(shape=(4, 9, 7), colour=False, seed=0) -> Case:
    rng = np.random.default_rng(seed)
    return Case(
        name="case",
        imgs=rng.integers(0, 256, (*shape, 3) if colour else shape, dtype=np.uint8),
        gts=rng.integers(0, 4, shape, dtype=np.uint8),
        spacing_mm=(5.0, 0.7, 0.8),
        modality="CT",
        patient="p1",
        labels={"disc": [1, 2], "cup": [2], "other": [3]},
        affine=np.diag([5.0, 0.7, 0.8, 1.0]),
        original_affine=np.diag([0.8, 0.7, 5.0, 1.0]),
        original_shape=shape[::-1],
        kept_slices=np.arange(shape[0]) * 2,
        labelled=np.arange(shape[0]) % 2 == 0,
        recipe={"method": "percentile", "windows": [], "percentiles": [0.5, 99.5]},
        source="images/case.nii.gz",
        source_sha256="ab" * 32,
        fps=25.0,
    )


def assert_same(a: Case, b: Case) -> None:
    for name in a.__dataclass_fields__:
        left, right = getattr(a, name), getattr(b, name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right, err_msg=name)
        else:
            assert left == right, name


@pytest.mark.parametrize("colour", [False, True])
def test_volume_round_trip(tmp_path: Path, colour: bool):
    case = volume_case(colour=colour)
    assert_same(case, Case.load(case.save(tmp_path / "case.npz")))
    assert [path.name for path in tmp_path.iterdir()] == ["case.npz"]


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 5)] * 3),
    colour=st.booleans(),
    kind=st.sampled_from(["image", "volume", "video"]),
    ids=st.integers(0, 60000),
    spacing=st.none() | st.tuples(*[st.floats(0.01, 100)] * 3),
)
def test_any_case_round_trips(tmp_path_factory, shape, colour, kind, ids, spacing):
    shape = (1, *shape[1:]) if kind == "image" else shape
    case = Case(
        name="x",
        imgs=np.full((*shape, 3) if colour else shape, 7, np.uint8),
        gts=np.full(shape, ids, np.uint16),
        kind=kind,
        spacing_mm=spacing,
        labels={"a": [ids]},
    )
    assert_same(case, Case.load(case.save(tmp_path_factory.mktemp("cases") / "x.npz")))


def test_file_keeps_the_conventions_of_the_medsam_tools(tmp_path: Path):
    volume_case().save(tmp_path / "v.npz")
    with np.load(tmp_path / "v.npz", allow_pickle=False) as stored:
        assert stored["spacing"].tolist() == [0.8, 0.7, 5.0]
        assert stored["imgs"].shape == stored["gts"].shape == (4, 9, 7)
    Case(name="i", imgs=np.zeros((1, 5, 3, 3), np.uint8), gts=np.zeros((1, 5, 3), np.uint8), kind="image").save(
        tmp_path / "i.npz"
    )
    with np.load(tmp_path / "i.npz", allow_pickle=False) as stored:
        assert stored["imgs"].shape == (5, 3, 3) and stored["gts"].shape == (5, 3)
    grey = Case(name="g", imgs=np.zeros((1, 5, 3), np.uint8), kind="image")
    assert Case.load(grey.save(tmp_path / "g.npz")).imgs.shape == (1, 5, 3)


def test_regions_may_nest():
    case = volume_case()
    np.testing.assert_array_equal(case.region_mask("disc"), np.isin(case.gts, [1, 2]))
    np.testing.assert_array_equal(case.region_mask("cup", 2), case.gts[2] == 2)
    assert case.objects() == [("disc", 0), ("cup", 0), ("other", 0)]
    with pytest.raises(DataError, match="did you mean 'disc'"):
        case.region_mask("disk")


def test_masks_are_looked_up_slice_by_slice():
    gts = np.zeros((64, 64, 64), np.uint8)
    gts[8:12, 8:12, 8:12] = 3
    case = Case("c", gts, gts, labels={"a": [3]})
    tracemalloc.start()
    assert case.objects() == [("a", 0)] and case.region_mask("a").sum() == 64
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * gts.nbytes, "nothing is widened to int64"


def test_layers_hold_masks_that_overlap(tmp_path: Path):
    layers = np.zeros((2, 1, 4, 4), np.uint8)
    layers[0, 0, :3] = 1
    layers[1, 0, 2:] = 2
    case = Case(
        name="l",
        imgs=np.zeros((1, 4, 4), np.uint8),
        gts_layers=layers,
        labels={"lung": [1], "lesion": [2]},
        kind="image",
    )
    loaded = Case.load(case.save(tmp_path / "l.npz"))
    assert loaded.region_mask("lung", 0).sum() == 12 and loaded.region_mask("lesion", 0).sum() == 8
    assert loaded.objects(0) == [("lung", 0), ("lesion", 0)]


def test_instances_are_objects():
    gts = np.array([[[0, 1, 300]]], np.uint16)
    case = Case(
        name="n", imgs=np.zeros((1, 1, 3), np.uint8), gts=gts, labels={"cell": [1, 300]}, instances=True, kind="image"
    )
    assert case.objects(0) == [("cell", 1), ("cell", 300)]
    assert case.region_mask("cell", 0, instance=300).tolist() == [[False, False, True]]
    assert case.region_mask("cell", 0).sum() == 2


FOREIGN = {
    "reference CT volume": ({"imgs": (4, 8, 6), "gts": (4, 8, 6), "spacing": [0.8, 0.7, 5.0]}, (4, 8, 6), "volume"),
    "volume three pixels wide": ({"imgs": (4, 8, 3), "gts": (4, 8, 3)}, (4, 8, 3), "volume"),
    "challenge 2D colour": ({"imgs": (8, 6, 3), "gts": (8, 6)}, (1, 8, 6, 3), "image"),
    "colour without mask": ({"imgs": (8, 6, 3)}, (1, 8, 6, 3), "image"),
    "challenge 2D boxes": ({"imgs": (8, 6, 3), "boxes": (2, 4)}, (1, 8, 6, 3), "image"),
    "challenge 3D boxes, width 3": ({"imgs": (8, 6, 3), "boxes": (2, 6)}, (8, 6, 3), "volume"),
    "grey 2D": ({"imgs": (8, 6), "gts": (8, 6)}, (1, 8, 6), "image"),
    "reference video": ({"imgs": (3, 5, 8, 6), "gts": (5, 8, 6)}, (5, 8, 6, 3), "video"),
    "colour frames": ({"imgs": (5, 8, 6, 3), "gts": (5, 8, 6)}, (5, 8, 6, 3), "video"),
    "three colour frames": ({"imgs": (3, 8, 6, 3), "gts": (3, 8, 6)}, (3, 8, 6, 3), "video"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_open_as_they_are(tmp_path: Path, name: str):
    shapes, expected, kind = FOREIGN[name]
    rng = np.random.default_rng(0)
    arrays = {k: np.asarray(v) if k == "spacing" else rng.integers(0, 3, v, dtype=np.uint8) for k, v in shapes.items()}
    np.savez_compressed(tmp_path / "f.npz", **arrays)
    case = Case.load(tmp_path / "f.npz")
    assert case.imgs.shape == expected and case.kind == kind
    assert case.spacing_mm == ((5.0, 0.7, 0.8) if "spacing" in shapes else None)
    if "gts" in shapes:
        assert case.gts is not None and case.region_names == ["label_1", "label_2"]


def test_origin_and_direction_become_an_affine(tmp_path: Path):
    direction = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], float)
    np.savez_compressed(
        tmp_path / "m.npz",
        imgs=np.ones((4, 8, 6), np.uint8),
        spacing=[0.8, 0.7, 5.0],
        origin=[10.0, 20.0, 30.0],
        direction=direction.ravel(),
    )
    case = Case.load(tmp_path / "m.npz")
    index = np.array([3, 2, 1])
    lps = np.array([10, 20, 30]) + direction @ (np.array([0.8, 0.7, 5.0]) * index[::-1])
    np.testing.assert_allclose((case.affine @ [*index, 1])[:3], lps * [-1, -1, 1])


def test_pickled_extras_stay_shut(tmp_path: Path):
    np.savez(tmp_path / "p.npz", imgs=np.ones((2, 4, 4), np.uint8), boxes=np.array([{"a": 1}], dtype=object))
    assert Case.load(tmp_path / "p.npz").boxes is None


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("imgs.npy", "w") as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "|u1", "fortran_order": False, "shape": (300, 1024, 1024)}
        )
        for _ in range(300):
            stream.write(bytes(1024 * 1024))


def liar(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive, archive.open("imgs.npy", "w") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6)})
        stream.write(b"0")


def truncated(path: Path) -> None:
    volume_case().save(path)
    path.write_bytes(path.read_bytes()[:-200])


def bit_rot(path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez_compressed(path, imgs=rng.integers(0, 255, (20, 64, 64), dtype=np.uint8))
    content = bytearray(path.read_bytes())
    content[20000:20400] = bytes(400)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (bomb, "zip bomb"),
        (liar, "claims"),
        (truncated, "cut short"),
        (bit_rot, "cut short"),
        (lambda path: path.write_bytes(b""), "cut short"),
        (lambda path: np.savez(path, a=np.ones(3)), "no array 'imgs'"),
        (lambda path: np.savez(path, imgs=np.full((2, 3, 4), 999.0)), "must be 0..255"),
        (lambda path: np.savez(path, imgs=np.full((2, 3, 4), 0.5)), "multiply by 255"),
        (lambda path: np.savez(path, imgs=np.ones((2, 3, 4), np.uint8), gts=np.ones((2, 3, 5), np.uint8)), "mask is"),
        (lambda path: np.savez(path, imgs=np.ones((2, 3, 4), np.uint8), gts=np.full((2, 3, 4), -1)), "whole numbers"),
        (lambda path: np.savez(path, schema=1, imgs=np.ones((2, 3, 4), np.uint8)), "damaged or incomplete"),
    ],
)
def test_bad_files_end_in_one_sentence(tmp_path: Path, make, sentence: str):
    make(tmp_path / "bad.npz")
    with pytest.raises(DataError, match=sentence):
        Case.load(tmp_path / "bad.npz")
