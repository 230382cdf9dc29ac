"""The app in Chromium."""

import os
import re
import time
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from phantom import free_port, phantom_engine, sweep, two_balls
from PIL import Image

from medsam2_ft.deploy import downloads
from medsam2_ft.deploy.workspaces import Workspaces

CHROMIUM = Path("/usr/bin/chromium")


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
