"""The app: its workspace without a browser, then the real thing in Chromium."""

import io
import json
import os
import re
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from phantom import free_port, phantom_engine, sweep
from PIL import Image

from medsam2_ft.deploy import downloads
from medsam2_ft.deploy.workspace import OWN_WINDOW, Workspace
from medsam2_ft.deploy.workspaces import Workspaces
from medsam2_ft.errors import UserError
from medsam2_ft.io.volume import Volume

USER = SimpleNamespace(session_hash="a")
CHROMIUM = Path("/usr/bin/chromium")


def two_balls(num_slices=9, height=60, width=80) -> np.ndarray:
    """Two bright balls, left at (20, 30) and right at (60, 30), on the slices around the middle."""
    t, y, x = np.indices((num_slices, height, width))
    middle = num_slices // 2
    left = (t - middle) ** 2 * 9 + (y - 30) ** 2 + (x - 20) ** 2 < 100
    right = (t - middle) ** 2 * 9 + (y - 30) ** 2 + (x - 60) ** 2 < 100
    return np.where(left | right, 200, 30).astype(np.uint8)


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


@contextmanager
def running_app(*, sweep=sweep, engine=None, examples=None):
    from medsam2_ft.deploy.gradio_app import PRIVACY, build_app

    workspaces = Workspaces(engine or phantom_engine(sweep=sweep))
    app = build_app(workspaces, examples=examples)
    _, url, _ = app.launch(server_port=free_port(), prevent_thread_lock=True, quiet=True, **PRIVACY)
    try:
        yield url, workspaces
    finally:
        app.close()
        workspaces.close_all()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip("Debian's chromium is not installed")
    with playwright.sync_playwright() as started:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        chromium = started.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def sources(tmp_path):
    """An image, an oblique volume and a video of the two balls."""
    balls = two_balls()
    Image.fromarray(balls[4]).save(tmp_path / "photo.png")
    affine = np.diag([-0.8, 0.8, 3.0, 1.0])
    affine[:3, :3] = [[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]] @ affine[:3, :3]
    nib.save(nib.Nifti1Image(balls.transpose(2, 1, 0).astype(np.int16) * 5, affine), tmp_path / "scan.nii.gz")
    downloads.write_overlay_video(tmp_path / "film.mp4", balls, np.zeros_like(balls))
    return tmp_path


class Page:
    """What a user does in one browser window."""

    def __init__(self, browser, url, kind):
        self.page = browser.new_context(viewport={"width": 1120, "height": 960}, accept_downloads=True).new_page()
        self.page.goto(url)
        self.kind = kind
        self.page.get_by_role("tab", name=kind.capitalize()).click()

    def locator(self, part):
        return self.page.locator(f"#{self.kind}-{part}")

    def open(self, path):
        self.locator("upload").locator("input[type=file]").set_input_files(str(path))
        self.wait_status(r"object 1: 0 px")

    def point(self, x, y):
        """Client coordinates of a pixel position."""
        frame = self.locator("canvas").locator(".stage").bounding_box()
        width, height = self.size()
        return frame["x"] + x / width * frame["width"], frame["y"] + y / height * frame["height"]

    def size(self):
        box = self.locator("canvas").locator("svg").get_attribute("viewBox").split()
        return float(box[2]), float(box[3])

    def drag(self, x0, y0, x1, y1):
        self.page.mouse.move(*self.point(x0, y0))
        self.page.mouse.down()
        self.page.mouse.move(*self.point((x0 + x1) / 2, (y0 + y1) / 2))
        self.page.mouse.move(*self.point(x1, y1))
        self.page.mouse.up()

    def press(self, name):
        self.page.get_by_role("button", name=name, exact=True).locator("visible=true").click()

    def status(self):
        return self.locator("status").inner_text()

    def wait_status(self, pattern):
        from playwright.sync_api import expect

        expect(self.locator("status")).to_have_text(re.compile(pattern), timeout=60_000)

    def shoot(self, name):
        folder = os.environ.get("MEDSAM2_FT_SCREENSHOTS")
        if folder:
            self.page.evaluate("window.scrollTo(0, 0)")
            self.page.wait_for_timeout(300)
            self.page.screenshot(path=f"{folder}/{name}.png")


@pytest.mark.browser
def test_volume_from_upload_to_download(browser, sources):
    with running_app() as (url, workspaces):
        user = Page(browser, url, "volume")
        user.open(sources / "scan.nii.gz")
        width, height = user.size()
        user.drag(1, 1, width - 1, height - 1)
        user.wait_status(r"(Slice|Frame) 4 · object 1: [1-9]")
        whole = int(re.search(r"object 1: (\d+)", user.status())[1])
        user.page.get_by_label("Clicks remove").locator("visible=true").check()
        mask = next(iter(workspaces._opened.values())).workspace.labels[4]
        row, column = np.argwhere(mask)[0]
        user.page.mouse.click(*user.point(column + 0.5, row + 0.5))
        user.wait_status(rf"object 1: (?!{whole} )[1-9]\d* px")
        user.press("Undo")
        user.wait_status(rf"object 1: {whole} px")
        user.press("Propagate both ways")
        user.wait_status(r"Slice 4 ·")
        user.page.mouse.move(*user.point(width / 2, height / 2))
        user.page.mouse.wheel(0, 100)
        user.wait_status(r"Slice 5 · object 1: [1-9]")
        user.page.mouse.click(*user.point(column + 0.5, row + 0.5))
        user.press("Propagate both ways")
        user.wait_status(r"Slice 5 · object 1: [1-9]")
        user.press("Make files to download")
        with user.page.expect_download(timeout=60_000) as download:
            user.locator("files").get_by_role("link").first.click()
        download.value.save_as(sources / "back.nii.gz")
        source, back = nib.load(sources / "scan.nii.gz"), nib.load(sources / "back.nii.gz")
        np.testing.assert_allclose(back.affine, source.affine, atol=1e-5)
        assert back.shape == source.shape
        assert (np.asarray(source.dataobj)[np.asarray(back.dataobj) > 0] > 500).all()
        user.page.context.close()
        for _ in range(400):
            if not len(workspaces):
                break
            time.sleep(0.1)
        assert len(workspaces) == 0, "a closed page leaves nothing"


@pytest.mark.browser
def test_image_and_video_tabs(browser, sources):
    with running_app() as (url, _):
        user = Page(browser, url, "image")
        user.open(sources / "photo.png")
        user.drag(5, 10, 35, 50)
        user.wait_status(r"object 1: [1-9]")
        film = Page(browser, url, "video")
        film.open(sources / "film.mp4")
        film.drag(5, 10, 35, 50)
        film.wait_status(r"object 1: [1-9]")
        film.press("Propagate both ways")
        film.wait_status(r"(Slice|Frame) 4 · object 1: [1-9]")


@pytest.mark.browser
def test_two_sessions_do_not_see_each_other(browser, sources):
    with running_app() as (url, workspaces):
        first, second = Page(browser, url, "image"), Page(browser, url, "image")
        first.open(sources / "photo.png")
        second.open(sources / "photo.png")
        first.drag(5, 10, 35, 50)
        first.wait_status(r"object 1: [1-9]")
        second.drag(1, 1, 4, 4)
        second.drag(45, 10, 75, 50)
        second.wait_status(r"object 1: [1-9]")
        masks = [opened.workspace.labels[0] for opened in workspaces._opened.values()]
        assert len(masks) == 2 and not (masks[0] & masks[1]).any() and masks[0].any() and masks[1].any()


@pytest.mark.browser
def test_a_broken_file_is_told_in_a_sentence(browser, sources):
    from playwright.sync_api import expect

    with running_app() as (url, _):
        user = Page(browser, url, "volume")
        (sources / "broken.nii.gz").write_bytes(b"not an image")
        user.locator("upload").locator("input[type=file]").set_input_files(str(sources / "broken.nii.gz"))
        expect(user.page.get_by_text(re.compile("cannot be read|is damaged|not"))).to_be_visible(timeout=10_000)
        assert "Traceback" not in user.page.content()


def slow_sweep(*arguments, **options):
    for step in sweep(*arguments, **options):
        time.sleep(0.5)
        yield step


@pytest.mark.browser
def test_propagation_shows_progress_and_can_be_cancelled(browser, sources):
    with running_app(sweep=slow_sweep) as (url, workspaces):
        user = Page(browser, url, "volume")
        user.open(sources / "scan.nii.gz")
        width, height = user.size()
        user.drag(1, 1, width - 1, height - 1)
        user.wait_status(r"object 1: [1-9]")
        (opened,) = workspaces._opened.values()
        before = opened.workspace.labels.copy()
        user.press("Propagate both ways")
        user.wait_status(r"Propagating: \d+%")
        user.press("Cancel")
        user.page.wait_for_timeout(5500)
        np.testing.assert_array_equal(opened.workspace.labels, before)


@pytest.mark.browser
def test_named_objects_keep_their_colours_and_ids(browser, sources):
    with running_app() as (url, workspaces):
        user = Page(browser, url, "image")
        user.open(sources / "photo.png")
        user.drag(5, 10, 35, 50)
        user.wait_status(r"object 1: [1-9]")
        user.page.get_by_placeholder("name").locator("visible=true").fill("right ball")
        user.press("Add object")
        user.page.get_by_label("right ball").wait_for()
        user.drag(45, 10, 75, 50)
        user.wait_status(r"object 1: [1-9]\d* px · right ball: [1-9]")
        (opened,) = workspaces._opened.values()
        assert set(np.unique(opened.workspace.labels)) == {0, 1, 2}


@pytest.mark.browser
def test_the_examples_open_and_a_real_network_segments_them(browser):
    """Writes docs/images where MEDSAM2_FT_SCREENSHOTS names that folder; MEDSAM2_FT_CHECKPOINT replaces the small model."""
    from medsam2_ft.deploy.engine import Engine
    from medsam2_ft.deploy.examples import write_examples
    from medsam2_ft.modeling.zoo import local_weights

    checkpoint = os.environ.get("MEDSAM2_FT_CHECKPOINT") or local_weights("sam2.1_nano")
    if checkpoint is None:
        pytest.skip("no trained weights on this machine")
    boxes = {"image": (28, 42, 104, 102), "volume": (28, 42, 104, 102), "video": (24, 38, 110, 106)}
    engine = Engine({"sam2.1_nano": checkpoint}, device="cpu")
    with write_examples() as examples, running_app(engine=engine, examples=examples) as (url, _):
        for kind, box in boxes.items():
            user = Page(browser, url, kind)
            user.page.get_by_text(examples[kind][0].name).first.click()
            user.wait_status(r"object 1: 0 px")
            user.drag(*box)
            user.wait_status(r"object 1: [1-9]")
            if kind != "image":
                user.press("Propagate both ways")
                user.wait_status(r"Propagating")
                user.wait_status(r"object 1: [1-9]")
            user.shoot(f"app-{kind}")
            user.page.context.close()
