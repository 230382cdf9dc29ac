"""`python -m data_prep fetch NAME`: public datasets that a library downloads and checks by hash.

So far the ten tasks of the Medical Segmentation Decathlon, through MONAI.
"""

import argparse
import re
import shutil
import tempfile
from pathlib import Path
from urllib.error import URLError

from medsam2_ft.errors import DataError, nearest

_MODALITIES = {"BrainTumour": "MR", "Heart": "MR", "Hippocampus": "MR", "Prostate": "MR"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="for instance Task04_Hippocampus; without it, a list")
    parser.add_argument("--out", type=Path, default=Path("raw"), help="folder to download to")


def run(args: argparse.Namespace) -> int:
    """Download, check, unpack, and say which command comes next."""
    from monai.apps import DecathlonDataset

    names = tuple(sorted(DecathlonDataset.resource))
    if args.name is None:
        print("\n".join(names))
        return 0
    if args.name not in names:
        raise DataError(f"There is no public set '{args.name}'{nearest(args.name, names)}.")
    target = args.out / args.name
    if not target.is_dir():
        fetch(DecathlonDataset.resource[args.name], md5=DecathlonDataset.md5[args.name], target=target)
    modality = _MODALITIES.get(re.sub(r"^Task\d+_", "", args.name), "CT")
    print(f"{target} is complete. Next: python -m data_prep volumes --images {target / 'imagesTr'} --masks ", end="")
    print(f"{target / 'labelsTr'} --out data/{args.name} --modality {modality}")
    return 0


def fetch(url: str, *, md5: str, target: Path) -> None:
    """Download an archive that holds a folder of the target's name, and put that folder in place in one step.

    Args:
        url: of a tar file.
        md5: what its hash must be.
        target: the folder that appears when all went well, and only then.

    Raises:
        DataError: if the network, the hash or the archive is not as it should be.
    """
    from monai.apps import download_url, extractall

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as workshop:
        try:
            archive = Path(workshop) / "archive.tar"
            download_url(url, archive, md5, "md5")
            extractall(archive, workshop, file_type="tar")
        except (URLError, OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{target.name} could not be downloaded from {url} ({reason}); are you offline?") from None
        unpacked = Path(workshop) / target.name
        if not unpacked.is_dir():
            raise DataError(f"The archive at {url} holds no folder '{target.name}'.")
        shutil.move(unpacked, target)
