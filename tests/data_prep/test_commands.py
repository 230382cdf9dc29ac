from pathlib import Path

import pytest

from data_prep.__main__ import COMMANDS, main
from medsam2_ft.data.case import Case
from medsam2_ft.data.manifest import read_manifest


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_phantoms_go_the_way_of_real_data(tmp_path: Path, capsys):
    raw, out = tmp_path / "raw", tmp_path / "out"
    assert run("phantoms", "--out", raw, "--cases", 4) == 0
    assert sorted(path.name for path in (raw / "images").iterdir())[0] == "phantom_000_0000.nii.gz"
    words = ("--images", raw / "images", "--masks", raw / "masks", "--out", out, "--modality", "CT")
    assert run("volumes", *words, "--group-by", f"{raw / 'patients.csv'}:patient", "--workers", 1) == 0
    records = read_manifest(out)
    assert {record.patient for record in records} == {"P000", "P001", "P002"}
    assert set(records[0].labels) == {"liver", "spleen", "kidney", "aorta", "bladder"}
    case = Case.load(out / records[0].file)
    assert case.shape[1:] == (112, 128) and 24 <= case.num_slices <= 40
    # No threshold finds the liver: its greys are its surroundings' greys too.
    liver, other = case.imgs[case.region_mask("liver")], case.imgs[(case.gts == 0) & (case.imgs > 0)]
    assert abs(float(liver.mean()) - float(other.mean())) < 2.5 * float(other.std())
    again = tmp_path / "again"
    run("phantoms", "--out", again, "--cases", 1)
    for name in ("images/phantom_000_0000.nii.gz", "masks/phantom_000.nii.gz"):
        import nibabel as nib
        import numpy as np

        np.testing.assert_array_equal(*(np.asarray(nib.load(root / name).dataobj) for root in (raw, again)))
    assert run("audit", out) == 0
    assert "0 errors" in capsys.readouterr().out and (out / "data_card.html").is_file()
    assert run("split", out, "--folds", 2, "--fold", 1) == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps(command: str, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0 and "usage" in capsys.readouterr().out


def test_unknown_commands(capsys):
    assert main(["volume"]) == 2 and "did you mean 'volumes'" in capsys.readouterr().err
    assert main([]) == 2 and main(["--help"]) == 0


def test_fetch_offline_leaves_nothing(tmp_path: Path, monkeypatch, capsys):
    import urllib.request

    def refuse(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("monai.apps.utils.urlretrieve", refuse)
    with pytest.raises(SystemExit) as stop:
        run("fetch", "Task04_Hippocampus", "--out", tmp_path / "raw")
    assert stop.value.code == 2 and "offline" in capsys.readouterr().err
    assert list((tmp_path / "raw").iterdir()) == []
    with pytest.raises(SystemExit):
        run("fetch", "Task04_Hipocampus")
    assert "did you mean 'Task04_Hippocampus'" in capsys.readouterr().err
    assert run("fetch") == 0 and "Task09_Spleen" in capsys.readouterr().out


def test_fetch_puts_a_checked_archive_in_place(tmp_path: Path):
    import hashlib
    import tarfile

    from data_prep.fetch import fetch
    from medsam2_ft.errors import DataError

    (tmp_path / "Set/imagesTr").mkdir(parents=True)
    (tmp_path / "Set/imagesTr/a.txt").write_text("a")
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        archive.add(tmp_path / "Set", "Set")
    url = (tmp_path / "s.tar").as_uri()
    md5 = hashlib.md5((tmp_path / "s.tar").read_bytes()).hexdigest()
    fetch(url, md5=md5, target=tmp_path / "raw/Set")
    assert (tmp_path / "raw/Set/imagesTr/a.txt").read_text() == "a"
    with pytest.raises(DataError, match="could not be downloaded"):
        fetch(url, md5="0" * 32, target=tmp_path / "other/Set")
    assert list((tmp_path / "other").iterdir()) == []
