"""The guides' commands parse and their Python runs."""

import re
import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medsam2_ft.deploy import commands

DOCS = Path(__file__).parents[2] / "docs"
GUIDES = [DOCS / f"{name}.md" for name in ("predict", "app", "server", "slicer")]


def test_the_python_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nib.save(nib.Nifti1Image(np.zeros((32, 32, 3), np.float32), np.eye(4)), "scan.nii.gz")
    for code in re.findall(r"```python\n(.*?)```", (DOCS / "predict.md").read_text(), re.DOTALL):
        exec(code, {})
    assert nib.load("mask.nii.gz").shape == (32, 32, 3)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_options_in_the_guides_exist(guide, capsys):
    text = guide.read_text()
    for line in re.findall(r"^(?:[A-Z_0-9]+=\S+ )?python -m medsam2_ft (\w+) ?(.*?)(?:#.*)?$", text, re.MULTILINE):
        command, options = line[0], [word for word in shlex.split(line[1]) if word.startswith("--")]
        if command not in ("predict", "app", "serve"):
            continue
        with pytest.raises(SystemExit) as left:
            getattr(commands, command)(["--help"])
        assert left.value.code == 0
        known = capsys.readouterr().out
        assert all(option in known for option in options), (command, options)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_links_and_images_are_there(guide):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", guide.read_text()):
        assert (DOCS / target).exists(), target
