"""The report in a real browser: it renders, without network, at the width of a laptop."""

import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from benchmark.cases import EllipseModel
from medsam2_ft.benchmark import runner
from medsam2_ft.benchmark.protocol import Protocol
from medsam2_ft.benchmark.report import write_report

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on the PATH")
def test_the_report_renders(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "open_model", lambda spec, device: EllipseModel(spec))
    runner._opened.cache_clear()
    protocol = Protocol("p", targets="region", min_px=20)
    runner.run_benchmark(protocol, roots=[dataset], models=["lite_medsam", "sam2_tiny"], out=tmp_path / "out")
    html, _ = write_report(tmp_path / "out")
    picture = tmp_path / "report.png"
    subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,3000",
         f"--screenshot={picture}", html.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    assert pixels.shape == (3000, 1280, 3)
    red, green, blue = pixels[20, 1200]
    assert green > red + 50 and green > blue, "the header is teal"
    assert (pixels[400:] < 60).all(axis=-1).sum() > 5000, "text and pictures are drawn"
    model_colour = (abs(pixels - (0x0D, 0x94, 0x88)) < 12).all(axis=-1)
    assert model_colour[300:].sum() > 500, "bars and boxes are drawn in the model's colour"
