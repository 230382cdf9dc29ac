"""The app's workspaces and tabs, without a browser."""

import io
import json
import time
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from phantom import phantom_engine, two_balls
from PIL import Image

from medsam2_ft.deploy import downloads
from medsam2_ft.deploy.workspace import OWN_WINDOW, Workspace
from medsam2_ft.deploy.workspaces import Workspaces
from medsam2_ft.errors import UserError
from medsam2_ft.io.volume import Volume

USER = SimpleNamespace(session_hash="a")


@pytest.fixture
def workspace():
    return Workspace(phantom_engine(), Volume(two_balls()), key="a")


@pytest.fixture
def tab():
    """The volume tab without a browser; `USER` is the one session."""
    gradio = pytest.importorskip("gradio")
    from medsam2_ft.deploy.gradio_app import Tab

    workspaces = Workspaces(phantom_engine())
    with gradio.Blocks():
        yield Tab("volume", workspaces, examples=[])
    workspaces.close_all()


def test_a_box_and_propagation_fill_the_ball(workspace):
    workspace.draw_box(1, (34, 44, 5, -10))
    ball = two_balls() > 100
    ball[:, :, 40:] = False
    np.testing.assert_array_equal(workspace.labels[4], ball[4])
    steps = list(workspace.propagate())
    assert steps[-1][0] == 1.0 and len(steps) == 9
    np.testing.assert_array_equal(workspace.labels, ball)


def test_clicks_correct_what_was_propagated(workspace):
    workspace.draw_box(1, (0, 0, 80, 60))
    list(workspace.propagate())
    workspace.index = 5
    workspace.click(1, 60.5, 30.5, positive=False)
    assert not workspace.labels[5][:, 40:].any() and workspace.labels[5][:, :40].any()
    workspace.undo(1)
    assert workspace.labels[5][:, 40:].any()
    workspace.click(1, 60.5, 30.5, positive=True)
    list(workspace.propagate())
    assert workspace.labels.any()


def test_objects_are_named_and_apart(workspace):
    left, right = 1, workspace.add_object("right ball")
    workspace.draw_box(left, (5, 10, 35, 50))
    workspace.index = 5
    workspace.draw_box(right, (45, 10, 75, 50))
    list(workspace.propagate())
    assert set(np.unique(workspace.labels)) == {0, 1, 2}
    assert (workspace.labels[:, :, :40] != 2).all() and (workspace.labels[:, :, 40:] != 1).all()
    assert workspace.add_object("right ball") == right and workspace.names == ["object 1", "right ball"]
    workspace.clear(left)
    assert set(np.unique(workspace.labels)) == {0, 2}


def test_a_cancelled_propagation_changes_nothing(workspace):
    workspace.draw_box(1, (5, 10, 35, 50))
    before = workspace.labels.copy()
    steps = workspace.propagate()
    next(steps), next(steps)
    steps.close()
    np.testing.assert_array_equal(workspace.labels, before)


def test_undo_gives_back_what_a_box_covered(workspace):
    workspace.add_object("drawn by mistake")
    workspace.draw_box(1, (5, 10, 35, 50))
    before = workspace.labels.copy()
    workspace.draw_box(2, (0, 0, 40, 60))
    assert not (workspace.labels == 1).any()
    workspace.draw_box(2, (0, 0, 15, 60))
    assert {1, 2} <= set(np.unique(workspace.labels)), "a smaller box uncovers what the larger one took"
    workspace.undo(2)
    assert not (workspace.labels == 1).any(), "undo brings back the larger box"
    workspace.undo(2)
    np.testing.assert_array_equal(workspace.labels, before)
    assert list(workspace.marks) == [(1, 4)]


def test_undo_of_an_older_mark_leaves_the_newer_object_on_top(workspace):
    workspace.add_object("part")
    workspace.draw_box(1, (5, 10, 35, 50))
    workspace.draw_box(2, (5, 10, 20, 50))
    part = workspace.labels == 2
    workspace.click(1, 20.5, 30.5, positive=True)
    assert not (workspace.labels == 2).any()
    workspace.undo(1)
    np.testing.assert_array_equal(workspace.labels == 2, part)
    workspace.undo(1)
    np.testing.assert_array_equal(workspace.labels, 2 * part.astype(np.uint8))


def test_undo_gives_back_what_was_propagated_below(workspace):
    workspace.add_object("drawn by mistake")
    workspace.draw_box(1, (5, 10, 35, 50))
    list(workspace.propagate())
    workspace.index, before = 5, workspace.labels.copy()
    workspace.draw_box(2, (0, 0, 40, 60))
    list(workspace.propagate())
    workspace.undo(2)
    np.testing.assert_array_equal(workspace.labels[5], before[5])


def test_what_is_done_during_a_propagation_stays_done(workspace):
    """As if it had been done just afterwards."""
    right, gone = workspace.add_object("right ball"), workspace.add_object("cleared")
    workspace.draw_box(1, (5, 10, 35, 50))
    workspace.draw_box(gone, (45, 10, 75, 50))
    steps = workspace.propagate()
    next(steps)
    workspace.clear(gone)
    workspace.index = 5
    workspace.draw_box(right, (45, 10, 75, 50))
    list(steps)
    ball = two_balls() > 100
    ball[:, :, 40:] = False
    np.testing.assert_array_equal(workspace.labels == 1, ball)
    np.testing.assert_array_equal(workspace.labels[5] == right, (two_balls()[5] > 100) & ~ball[5])
    assert set(np.unique(workspace.labels)) == {0, 1, right}
    steps = workspace.propagate()
    next(steps)
    workspace.undo(right)
    list(steps)
    assert right not in workspace.labels[5] and right in workspace.labels[4]


def test_a_box_is_answered_on_the_slice_it_was_drawn_on(workspace, monkeypatch):
    """However far the user scrolls while the answer is computed."""

    def scroll_meanwhile(*arguments, answer=workspace._engine.segment_slice, **options):
        workspace.index = 6
        return answer(*arguments, **options)

    monkeypatch.setattr(workspace._engine, "segment_slice", scroll_meanwhile)
    workspace.draw_box(1, (5, 10, 35, 50))
    assert workspace.labels[4].any() and not workspace.labels[6].any() and list(workspace.marks) == [(1, 4)]


def test_opening_a_file_ends_the_propagation_of_the_one_before(tab):
    drag = SimpleNamespace(corners=(5, 10, 35, 50))
    old = tab.workspaces.open("a", "volume", Volume(two_balls()))
    tab.on_drag("object 1", drag, USER)
    before, steps = old.labels.copy(), tab.on_propagate(USER, lambda *_, **__: None)
    assert "Propagating" in next(steps)[1]
    new = tab.workspaces.open("a", "volume", Volume(two_balls()))
    (last,) = steps  # which the browser shows once more when the propagation ends
    assert not any(set(update) - {"__type__"} for update in last), "nothing of the old file is shown any more"
    np.testing.assert_array_equal(old.labels, before)
    tab.on_drag("object 1", drag, USER)
    assert new.labels.any()


def test_an_answer_that_comes_after_another_file_was_opened_is_not_shown(tab):
    old = tab.workspaces.open("a", "volume", Volume(two_balls()))
    tab.workspaces.open("a", "volume", Volume(two_balls()))
    old.draw_box(1, (5, 10, 35, 50))
    assert not any("source" in update for update in tab._show(old))
    assert not len(old._engine._prepared) and not len(old._engine._embeddings), "a closed file is not cached again"


def test_marks_that_make_no_sense_are_told(workspace):
    with pytest.raises(UserError, match="draw a box"):
        list(workspace.propagate())
    with pytest.raises(UserError, match="negative click"):
        workspace.click(1, 5, 5, positive=False)
    with pytest.raises(UserError, match=r"empty|outside"):
        workspace.draw_box(1, (100, 10, 120, 50))
    assert not workspace.marks, "a mark that could not be answered leaves nothing behind"


def test_sessions_own_their_files():
    workspaces = Workspaces(phantom_engine(), max_open=2)
    first = workspaces.open("a", "volume", Volume(two_balls()))
    folder = workspaces.folder("a", "volume")
    with pytest.raises(UserError, match="Open a file"):
        workspaces.get("b", "volume")
    second = workspaces.open("b", "volume", Volume(two_balls()))
    first.draw_box(1, (5, 10, 35, 50))
    assert not second.labels.any()
    with pytest.raises(UserError, match="as many"):
        workspaces.open("c", "image", Volume(two_balls()))
    workspaces.close("a")
    assert not folder.exists() and len(workspaces) == 1
    workspaces._idle_s = 0.0
    workspaces.expire()
    assert len(workspaces) == 0


def write_slice(path, plane, *, z, **tags):
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.Modality, data.SeriesInstanceUID = "CT", "1.2.3"
    data.Rows, data.Columns = plane.shape
    data.PixelSpacing, data.SliceThickness = [0.8, 0.8], 2.5
    data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2.5 * z]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.PixelData = plane.astype("<i2").tobytes()
    for key, value in tags.items():
        setattr(data, key, value)
    data.save_as(path, enforce_file_format=True)


def upload(tab, *paths):
    """Through the component's own check, as the browser's upload goes."""
    from gradio.data_classes import FileData, ListFiles

    files = tab.upload.preprocess(ListFiles(root=[FileData(path=str(path)) for path in paths]))
    return tab.on_open(files, "phantom", OWN_WINDOW, USER)


def test_a_series_opens_whatever_its_files_are_called(tab, tmp_path):
    names = ["IM000001", "1.2.840.113619.2.55.3", "slice.dcm", "slice.IMA"]
    for z, name in enumerate(names):
        write_slice(tmp_path / name, two_balls()[z + 3], z=z)
    write_slice(tmp_path / "seg.dcm", two_balls()[0], z=0, Modality="SEG", SeriesInstanceUID="1.2.4")
    upload(tab, *(tmp_path / name for name in [*reversed(names), "seg.dcm"]))
    workspace = tab.workspaces.get("a", "volume")
    assert workspace.num_slices == 4
    assert {int(plane.sum()) for plane in workspace.volume.array} == {int(plane.sum()) for plane in two_balls()[3:7]}
    upload(tab, tmp_path / "IM000001")
    assert tab.workspaces.get("a", "volume").num_slices == 1


def test_what_is_no_volume_is_told_in_a_sentence(tab, tmp_path):
    gradio = pytest.importorskip("gradio")
    Image.fromarray(two_balls()[4]).save(tmp_path / "photo.png")
    (tmp_path / "README").write_text("a CD")
    write_slice(tmp_path / "slice", two_balls()[4], z=0)
    write_slice(tmp_path / "seg", two_balls()[4], z=0, Modality="SEG")
    for names, told in {
        ("photo.png",): "photo.png is no volume",
        ("README",): "README is no volume",
        ("slice", "README"): "README is not DICOM",
        ("seg",): "seg is DICOM, but no image",
    }.items():
        with pytest.raises(gradio.Error, match=told):
            upload(tab, *(tmp_path / name for name in names))


def test_idle_files_are_closed_without_anybody_asking(monkeypatch):
    monkeypatch.setattr("medsam2_ft.deploy.workspaces.JANITOR_S", 0.02)
    workspaces = Workspaces(phantom_engine())
    workspace, folder = workspaces.open("a", "volume", Volume(two_balls())), workspaces.folder("a", "volume")
    workspaces._idle_s = 0.0
    for _ in range(500):
        if not len(workspaces):
            break
        time.sleep(0.02)
    assert len(workspaces) == 0 and not folder.exists() and workspace.is_closed
    workspaces.close_all()


def test_idle_files_are_not_found(tab):
    tab.workspaces.open("a", "volume", Volume(two_balls()))
    (opened,) = tab.workspaces._opened.values()
    opened.last_used -= 3601
    with pytest.raises(UserError, match="Open a file"):
        tab.workspaces.get("a", "volume")
    assert not opened.folder.exists()


def test_a_long_propagation_is_not_idle(tab):
    tab.workspaces.open("a", "volume", Volume(two_balls())).draw_box(1, (5, 10, 35, 50))
    (opened,) = tab.workspaces._opened.values()
    steps = tab.on_propagate(USER, lambda *_, **__: None)
    for _ in range(9):
        next(steps)
        opened.last_used -= 3599
        tab.workspaces.expire()
    assert "object 1" in next(steps)[1]


def test_downloads_hold_the_ids(tmp_path):
    labels = np.zeros((3, 31, 45), np.uint8)
    labels[1, 5:9, 6:12], labels[2, 20:30, 1:9] = 1, 201
    read = Image.open(downloads.write_png(tmp_path / "mask.png", labels[2]))
    np.testing.assert_array_equal(np.asarray(read), labels[2])
    with zipfile.ZipFile(downloads.write_png_zip(tmp_path / "masks.zip", labels, names={"cyst": 1})) as archive:
        back = [np.asarray(Image.open(io.BytesIO(archive.read(f"000{t}.png")))) for t in range(3)]
        assert json.loads(archive.read("labels.json")) == {"cyst": 1}
    np.testing.assert_array_equal(np.stack(back), labels)
    import av

    video = downloads.write_overlay_video(tmp_path / "overlay.mp4", np.full((3, 31, 45), 90, np.uint8), labels)
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 3 and frames[0].shape == (32, 46, 3)
    inside, outside = frames[2][22:28, 3:7].reshape(-1, 3).std(axis=0), frames[0].reshape(-1, 3).mean(axis=0)
    np.testing.assert_allclose(outside, 90, atol=4)
    assert (inside < 12).all() and np.abs(frames[2][25, 5].astype(float) - 90).max() > 20
