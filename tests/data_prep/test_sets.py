"""Real data, where there is some: the folder named by MEDSAM2_FT_DATA, or ../shared/data beside the repository."""

import os
from pathlib import Path

import numpy as np
import pytest

from data_prep.examples.prepare_sets import COMMANDS, prepare
from medsam2_ft.data.case import Case
from medsam2_ft.data.manifest import read_manifest

RAW = Path(os.environ.get("MEDSAM2_FT_DATA", Path(__file__).parents[2].parent / "shared/data"))
SMALL = ["derm_ph2", "fundus_drishti-antillia", "micro_wbc1", "micro_stardist", "us_busi-antillia", "pet_sts-ibsi"]


def out_of(name: str, tmp_path: Path) -> Path:
    if not (RAW / name).is_dir():
        pytest.skip(f"no {name} in {RAW}; point MEDSAM2_FT_DATA at a folder of datasets")
    assert prepare(name, RAW / name, tmp_path) == 0
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_sets_come_out_right(name: str, tmp_path: Path):
    assert len(read_manifest(out_of(name, tmp_path))) > 0


def test_the_cup_lies_in_the_disc(tmp_path: Path):
    out = out_of("fundus_drishti-antillia", tmp_path)
    for record in read_manifest(out):
        case = Case.load(out / record.file)
        disc, cup = case.region_mask("disc"), case.region_mask("cup")
        assert cup.any() and not np.any(cup & ~disc)
        # Soft edges went to one side or the other: the disc is one solid blob, not a ring with a rim.
        ys, xs = np.nonzero(disc[0])
        assert disc.sum() > 0.6 * (np.ptp(ys) + 1) * (np.ptp(xs) + 1)


def test_every_set_has_a_command_that_parses():
    import argparse
    import shlex

    from data_prep import images, volumes

    for line in filter(None, COMMANDS.values()):
        command, *words = shlex.split(line.format(raw="raw", labels="labels"))
        parser = argparse.ArgumentParser()
        {"images": images, "volumes": volumes}[command].configure(parser)
        parser.parse_args(["--images", "i", "--masks", "m", "--out", "o", *words])
