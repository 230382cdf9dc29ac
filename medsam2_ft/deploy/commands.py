"""The command lines `serve`, `app` and `predict`; `python -m medsam2_ft` dispatches to them."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from medsam2_ft.deploy.access import API_KEY_VARIABLE, check_binding, is_loopback
from medsam2_ft.errors import CheckpointError, ConfigError, UserError

DEFAULT_MODEL = "sam2.1_nano"
SERVER_PORT = 8642
APP_PORT = 7860
PASSWORD_VARIABLE = "MEDSAM2_FT_APP_PASSWORD"


def serve(argv: Sequence[str]) -> None:
    """Run the local server until it is interrupted."""
    parser = argparse.ArgumentParser("python -m medsam2_ft serve", description="Serve checkpoints to 3D Slicer.")
    _add_model_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help=f"any other address needs {API_KEY_VARIABLE} to be set")
    parser.add_argument("--port", type=int, default=SERVER_PORT)
    parser.add_argument("--max-upload-mib", type=int, default=1024, help="compressed size of one volume")
    parser.add_argument("--session-minutes", type=float, default=30.0, help="idle sessions are closed after so long")
    options = parser.parse_args(argv)
    _require("fastapi", "uvicorn", extra="serve")
    import uvicorn

    from medsam2_ft.deploy.engine import Engine
    from medsam2_ft.deploy.limits import Limits
    from medsam2_ft.deploy.server import create_app

    api_key = os.environ.get(API_KEY_VARIABLE) or None
    check_binding(options.host, api_key)
    limits = Limits(upload_bytes=options.max_upload_mib << 20, session_idle_s=options.session_minutes * 60)
    engine = Engine(offered_checkpoints(options.checkpoint), device=options.device, limits=limits)
    engine.warm_up()
    app = create_app(engine, limits=limits, api_key=api_key, is_local=is_loopback(options.host))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.info("serving %s on http://%s:%d", ", ".join(engine.checkpoints), options.host, options.port)
    # The access log would hold session ids, which are secrets of the clients.
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning", access_log=False)


def app(argv: Sequence[str]) -> None:
    """Run the browser app until it is interrupted."""
    parser = argparse.ArgumentParser("python -m medsam2_ft app", description="Segment in the browser.")
    _add_model_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help=f"any other address needs {PASSWORD_VARIABLE} to be set")
    parser.add_argument("--port", type=int, default=APP_PORT)
    parser.add_argument("--share", action="store_true", help=f"make a public link; needs {PASSWORD_VARIABLE} to be set")
    parser.add_argument("--max-upload-mib", type=int, default=1024)
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    options = parser.parse_args(argv)
    _require("gradio", extra="app")
    password = os.environ.get(PASSWORD_VARIABLE)
    if (options.share or not is_loopback(options.host)) and not password:
        raise ConfigError(f"Others could open the app, so it needs a password: set {PASSWORD_VARIABLE}.")

    from medsam2_ft.deploy.engine import Engine
    from medsam2_ft.deploy.examples import write_examples
    from medsam2_ft.deploy.gradio_app import launch_app
    from medsam2_ft.deploy.source import open_source
    from medsam2_ft.deploy.workspaces import Workspaces

    engine = Engine(offered_checkpoints(options.checkpoint), device=options.device)
    engine.warm_up()
    with write_examples() as examples:
        open_source(examples["volume"][0])  # loads the readers now, so that the first user does not wait for them
        launch_app(
            Workspaces(engine),
            examples=examples,
            server_name=options.host,
            server_port=options.port,
            share=options.share,
            inbrowser=options.open,
            max_file_size=options.max_upload_mib << 20,
            auth=("medsam2_ft", password) if password else None,
        )


def predict(argv: Sequence[str]) -> None:
    """Segment one image, volume or video and write the mask."""
    options = _predict_parser().parse_args(argv)
    from tqdm import tqdm

    from medsam2_ft.deploy import predict as steps
    from medsam2_ft.deploy.prompt_file import Target, read_targets, target_from_box, targets_from_mask
    from medsam2_ft.deploy.source import open_source
    from medsam2_ft.inference.predictor import Predictor

    volume = open_source(options.image, plane=options.plane, kind="volume" if options.slice is not None else None)
    steps.check_output(options.out, volume)
    targets: list[Target] = []
    for number, text in enumerate(options.box, start=1):
        numbers = _numbers(text)
        targets.append(target_from_box(numbers, volume, object_id=number, space=options.box_space, index=options.slice))
    if options.prompts:
        more = read_targets(options.prompts, volume, space=options.box_space, index=options.slice)
        targets += steps.without_collisions(more, beside=targets)
    if options.coarse:
        coarse = steps.read_coarse(options.coarse, volume, plane=options.plane)
        more = targets_from_mask(coarse, volume, margin_px=options.margin)
        targets += steps.without_collisions(more, beside=targets)
    if not targets:
        raise UserError('Say what to segment: --box "x0 y0 x1 y1", --prompts FILE.json or --coarse MASK.')

    for target in targets:
        target.prompt.check((volume.array.shape[0], volume.array.shape[1], volume.array.shape[2]))

    predictor = Predictor.from_checkpoint(options.checkpoint, device=options.device)
    window = (options.window[0], options.window[1]) if options.window else None
    images = steps.to_uint8(predictor, volume, window=window)
    with tqdm(total=len(images), unit="slice", disable=len(images) == 1) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        labels = steps.segment_targets(predictor, images, targets, progress=show)
    written = steps.write_output(options.out, labels, volume, images=images, targets=targets)
    if options.overlay:
        written += steps.write_output(options.overlay, labels, volume, images=images, targets=[])
    voxels = {target.prompt.object_id: int((labels == target.prompt.object_id).sum()) for target in targets}
    for path in written:
        print(path)
    print("voxels: " + ", ".join(f"object {object_id}: {count}" for object_id, count in voxels.items()))


def _predict_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m medsam2_ft predict",
        description="Boxes in, a mask in the source's own geometry out. Boxes and slices refer to the (T, H, W) array.",
    )
    parser.add_argument("--checkpoint", default=DEFAULT_MODEL, help="file, zoo name, or NAME@random")
    parser.add_argument("--image", type=Path, required=True, help="NIfTI, NRRD, MetaImage, PNG, video, DICOM folder")
    parser.add_argument("--out", type=Path, required=True, help=".nii.gz .nii .nrrd .mha .png .zip .mp4 .dcm")
    parser.add_argument("--box", action="append", default=[], metavar='"x0 y0 x1 y1"', help="one for each object")
    parser.add_argument("--slice", type=int, metavar="Z", help="slice that the box lies on; the middle by default")
    parser.add_argument("--box-space", choices=("array", "ijk", "ras"), default="array", help="ijk, ras: six numbers")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="boxes and clicks, .json or .csv")
    parser.add_argument("--coarse", type=Path, metavar="MASK", help="a mask whose labels are boxed and refined")
    parser.add_argument("--margin", type=float, default=3.0, help="pixels around the boxes of --coarse")
    parser.add_argument(
        "--window", type=float, nargs=2, metavar=("LEVEL", "WIDTH"), help="instead of the checkpoint's own"
    )
    parser.add_argument("--plane", choices=("acquisition", "axial", "coronal", "sagittal"), default="acquisition")
    parser.add_argument("--overlay", type=Path, metavar="MP4", help="also write a video of the masks over the image")
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    return parser


def offered_checkpoints(given: Sequence[str]) -> dict[str, str | Path]:
    """What `serve` and `app` let their users choose from, by name; the first is the default.

    Args:
        given: files and zoo names from the command line; where empty, every model whose weights are on this machine.

    Raises:
        CheckpointError: there is none.
    """
    if given:
        offered: dict[str, str | Path] = {}
        for checkpoint in given:
            path = Path(checkpoint)
            is_file = path.is_file() or path.suffix in (".pt", ".pth", ".ckpt", ".safetensors")
            name = path.stem if is_file else checkpoint
            # Runs often export under the same name; the folder tells them apart, and no path is shown to clients.
            offered[f"{path.parent.name}/{name}" if name in offered else name] = path if is_file else checkpoint
        return offered
    from medsam2_ft.modeling.zoo import ZOO, local_weights

    names = sorted((name for name in ZOO if local_weights(name)), key=lambda name: name != DEFAULT_MODEL)
    if not names:
        raise CheckpointError("No weights are on this machine; give some with --checkpoint FILE, or a name to fetch.")
    return {name: name for name in names}


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", action="append", default=[], help="file or zoo name to offer; several times for several"
    )
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise UserError(f"'{text}' is not a box; write four numbers, x0 y0 x1 y1.") from None


def _require(*modules: str, extra: str) -> None:
    from importlib.util import find_spec

    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} is not installed: pip install 'medsam2-ft[{extra}]'.")
