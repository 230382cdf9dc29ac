"""The SAM2 models we know by name: how to build each one and where its official weights come from.

Weights are looked for in `checkpoints/` first, then fetched from the Hugging Face hub into its cache. Nothing is
fetched on import.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from medsam2_ft.errors import CheckpointError, ConfigError, nearest
from medsam2_ft.modeling.build import SINGLE_MASK, SAM2Spec
from medsam2_ft.resources import checkpoints

log = logging.getLogger(__name__)

CHECKPOINT_DIR = Path("checkpoints")

NANO_WIDTH = 256
# A quarter of SAM2.1-T's parameters. The decoder keeps SAM's width, so that trained decoders of the family fit; trunk
# and memory are thin. Windows divide the grids of 128, 256 and 512 px, so no token is padding. One mask token only, so
# that no output is used that training never supervised.
_NANO = (
    "++model.image_encoder.trunk.embed_dim=32",
    "++model.image_encoder.trunk.window_spec=[8,4,8,4]",
    f"++model.image_encoder.neck.d_model={NANO_WIDTH}",
    "++model.image_encoder.neck.backbone_channel_list=[256,128,64,32]",
    f"++model.image_encoder.neck.position_encoding.num_pos_feats={NANO_WIDTH}",
    f"++model.memory_attention.d_model={NANO_WIDTH}",
    "++model.memory_attention.num_layers=2",
    "++model.memory_attention.layer.dim_feedforward=512",
    f"++model.memory_attention.layer.d_model={NANO_WIDTH}",
    f"++model.memory_attention.layer.self_attention.embedding_dim={NANO_WIDTH}",
    f"++model.memory_attention.layer.cross_attention.embedding_dim={NANO_WIDTH}",
    f"++model.memory_encoder.in_dim={NANO_WIDTH}",
    f"++model.memory_encoder.mask_downsampler.embed_dim={NANO_WIDTH}",
    f"++model.memory_encoder.fuser.layer.dim={NANO_WIDTH}",
    "++model.memory_encoder.fuser.num_layers=1",
    *SINGLE_MASK,
)


@dataclass(frozen=True)
class ZooEntry:
    """One named model.

    Attributes:
        name: the name in `model=NAME` and `--models NAME`.
        spec: how to build it.
        file: the weight file's name, as published.
        repo: the Hugging Face repository that publishes it, or None where the file ships with this project.
        licence: of the weights.
        parameters: number of parameters, in millions.
    """

    name: str
    spec: SAM2Spec
    file: str
    repo: str | None
    licence: str
    parameters: float


def _official(version: str, size: str, letter: str, parameters: float) -> ZooEntry:
    return ZooEntry(
        name=f"sam{version}_{size}",
        spec=SAM2Spec(f"configs/sam{version}/sam{version}_hiera_{letter}.yaml"),
        file=f"sam{version}_hiera_{size}.pt",
        repo=f"facebook/sam{version}-hiera-{size.replace('_', '-')}",
        licence="Apache-2.0",
        parameters=parameters,
    )


_SIZES = (("tiny", "t", 38.9), ("small", "s", 46.0), ("base_plus", "b+", 80.8), ("large", "l", 224.4))

ZOO: dict[str, ZooEntry] = {
    entry.name: entry
    for entry in (
        *(_official(version, size, letter, count) for version in ("2", "2.1") for size, letter, count in _SIZES),
        ZooEntry(
            name="sam2.1_nano",
            spec=SAM2Spec("configs/sam2.1/sam2.1_hiera_t.yaml", _NANO, image_size=256),
            file="sam2.1_nano.pt",
            repo=None,
            licence="Apache-2.0",
            parameters=9.8,
        ),
    )
}


def zoo_entry(name: str) -> ZooEntry:
    """The entry of that name; `sam2.1_hiera_tiny` is taken for `sam2.1_tiny`.

    Raises:
        ConfigError: naming the nearest known model.
    """
    entry = ZOO.get(name.replace("_hiera", ""))
    if entry is None:
        raise ConfigError(f"there is no model '{name}'{nearest(name, list(ZOO))}")
    return entry


def local_weights(name: str) -> Path | None:
    """The weight file of a named model in `checkpoints/`, under the working folder or shipped with the package."""
    file = zoo_entry(name).file
    places = (CHECKPOINT_DIR, checkpoints())
    return next((place / file for place in places if (place / file).is_file()), None)


def fetch_weights(name: str) -> Path:
    """The weight file of a named model: a local copy, else the hub's, verified against the hub's SHA-256.

    Raises:
        CheckpointError: if it is not here and cannot be fetched, saying where it was looked for and what to do.
    """
    entry = zoo_entry(name)
    local = local_weights(name)
    if local is not None:
        return local
    if entry.repo is None:
        raise CheckpointError(
            f"{entry.name} has no trained weights here: {CHECKPOINT_DIR / entry.file} does not exist; "
            "give a checkpoint, or model.weights=null to start from random weights"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    log.info("fetching %s from %s", entry.file, entry.repo)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries are told by the sentence below
    try:
        path = Path(hf_hub_download(entry.repo, entry.file))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"the weights of {entry.name} are not in {CHECKPOINT_DIR}/ nor in the Hugging Face cache, and {entry.repo} cannot "
            f"be reached ({type(error).__name__}); download {entry.file} elsewhere and put it into {CHECKPOINT_DIR}/"
        ) from None
    _verify(path)
    return path


def _verify(path: Path) -> None:
    """Check a file of the hub's cache against its blob name, which for large files is its SHA-256."""
    expected = path.resolve().name
    if len(expected) == 64:
        actual = file_sha256(path)
        if actual != expected:
            raise CheckpointError(
                f"{path} is damaged (SHA-256 {actual[:12]}, expected {expected[:12]}): delete it and try again"
            )


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
        return digest.hexdigest()
