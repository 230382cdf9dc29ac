"""The browser app: image, volume and video tabs; drag a box, click to correct, propagate, download.

Runs on loopback without a public link unless asked otherwise; every page has its own files, which go when it is closed.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from medsam2_ft.data.intensity import WINDOWS
from medsam2_ft.deploy import downloads
from medsam2_ft.deploy.canvas import EMPTY, make_canvas, render
from medsam2_ft.deploy.source import SUFFIXES, open_source
from medsam2_ft.deploy.workspace import OWN_WINDOW, Workspace
from medsam2_ft.deploy.workspaces import Workspaces
from medsam2_ft.errors import UserError
from medsam2_ft.io.dicom_kind import is_dicom_file, is_series_file
from medsam2_ft.io.faults import reading
from medsam2_ft.io.volume import VOLUME_SUFFIXES, Volume, read_volume
from medsam2_ft.io.write import write_mask

KINDS = ("image", "volume", "video")
ADD, REMOVE = "Clicks add", "Clicks remove"
CACHE_S = 3600
"""Uploads and downloads that gradio itself keeps are deleted after so long."""

PRIVACY: dict[str, Any] = {"run_history": False, "footer_links": []}
"""Launch options: run history would keep patients' pictures in the browser."""

HELP = {
    "image": "Drag a box around a structure; click to add to it or to remove from it.",
    "volume": "Drag a box on any slice, propagate, then correct any slice by a box or clicks and propagate again. "
    "NIfTI, NRRD, MetaImage, or all files of a DICOM series at once.",
    "video": "Drag a box on any frame, propagate, then correct any frame and propagate again.",
}


@contextmanager
def told() -> Iterator[None]:
    """Show a `UserError` to the user as the sentence it is."""
    try:
        yield
    except UserError as error:
        raise gr.Error(str(error), print_exception=False) from None


def build_app(workspaces: Workspaces, *, examples: dict[str, list[Path]] | None = None) -> gr.Blocks:
    """The whole app, ready to `launch`.

    Args:
        workspaces: where the sessions' files live.
        examples: files to try, by tab.
    """

    def leave(request: gr.Request) -> None:
        workspaces.close(str(request.session_hash))

    with gr.Blocks(title="medsam2_ft", analytics_enabled=False, delete_cache=(CACHE_S // 4, CACHE_S)) as app:
        gr.Markdown("# medsam2_ft\nBoxes and clicks to masks, in 2D, 3D and video. For research, not for diagnosis.")
        with gr.Tabs():
            for kind in KINDS:
                with gr.Tab(kind.capitalize(), id=kind):
                    Tab(kind, workspaces, examples=(examples or {}).get(kind, []))
        app.unload(leave)
    app.queue(max_size=64, default_concurrency_limit=8)
    return app


def launch_app(workspaces: Workspaces, *, examples: dict[str, list[Path]] | None = None, **options: Any) -> None:
    """Run the app until it is interrupted, then delete what its sessions held.

    Args:
        workspaces: where the sessions' files live.
        examples: files to try, by tab.
        options: as `gradio.Blocks.launch` takes them.
    """
    try:
        build_app(workspaces, examples=examples).launch(**PRIVACY, **options)
    finally:
        workspaces.close_all()


class Tab:
    """One tab's components and what they do; the state is the session's workspace, never this object."""

    def __init__(self, kind: str, workspaces: Workspaces, *, examples: list[Path]) -> None:
        self.kind = kind
        self.workspaces = workspaces
        self._build(examples)
        self._connect()

    def _build(self, examples: list[Path]) -> None:
        engine, has_slices = self.workspaces.engine, self.kind != "image"
        gr.Markdown(HELP[self.kind])
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                self.upload = gr.File(
                    label=f"Open {'an' if self.kind == 'image' else 'a'} {self.kind}",
                    file_count="multiple" if self.kind == "volume" else "single",
                    file_types=None if self.kind == "volume" else list(SUFFIXES[self.kind]),
                    height=120,
                    elem_id=f"{self.kind}-upload",
                )
                self.model = gr.Dropdown(list(engine.checkpoints), value=engine.default, label="Checkpoint")
                self.window = gr.Dropdown(
                    [OWN_WINDOW, *WINDOWS], value=OWN_WINDOW, label="CT window", visible=self.kind == "volume"
                )
                self.object = gr.Radio(["object 1"], value="object 1", label="Object", elem_id=f"{self.kind}-object")
                with gr.Row():
                    self.name = gr.Textbox(show_label=False, placeholder="name", container=False, scale=2, min_width=80)
                    self.add = gr.Button("Add object", scale=1, min_width=80)
                self.tool = gr.Radio([ADD, REMOVE], value=ADD, show_label=False, container=False)
                with gr.Row():
                    self.undo = gr.Button("Undo", min_width=60)
                    self.clear = gr.Button("Clear object", min_width=60)
            with gr.Column(scale=3):
                self.canvas = make_canvas(elem_id=f"{self.kind}-canvas")
                self.slice = gr.Slider(
                    0, 1, value=0, step=1, label="Frame" if self.kind == "video" else "Slice", visible=has_slices
                )
                self.status = gr.Markdown("", elem_id=f"{self.kind}-status")
                with gr.Row(visible=has_slices):
                    self.propagate = gr.Button("Propagate both ways", variant="primary")
                    self.cancel = gr.Button("Cancel")
                self.save = gr.Button("Make files to download")
                self.files = gr.File(
                    label="Label map",
                    file_count="multiple",
                    interactive=False,
                    height=120,
                    elem_id=f"{self.kind}-files",
                )
        if examples:
            values = [[[str(file)]] if self.kind == "volume" else [str(file)] for file in examples]
            gr.Examples(values, [self.upload], label="Examples")

    def _connect(self) -> None:
        shown = [self.canvas, self.status]
        opened = [*shown, self.slice, self.object, self.files]
        quick: dict[str, Any] = {"concurrency_id": "click", "concurrency_limit": 8, "show_progress": "hidden"}
        gr.on([self.model.input, self.window.input], self.on_settings, [self.model, self.window], shown)
        self.add.click(self.on_add, [self.name], [self.object, self.name], **quick)
        self.canvas.drag(self.on_drag, [self.object], shown, **quick)
        self.canvas.tap(self.on_tap, [self.object, self.tool], shown, **quick)
        self.canvas.roll(self.on_roll, None, [*shown, self.slice], trigger_mode="always_last", **quick)
        self.slice.input(self.on_slice, [self.slice], shown, trigger_mode="always_last", **quick)
        self.undo.click(self.on_undo, [self.object], shown, **quick)
        self.clear.click(self.on_clear, [self.object], shown, **quick)
        running = self.propagate.click(
            self.on_propagate, None, [*shown, self.slice], concurrency_id="propagate", concurrency_limit=2
        )
        self.cancel.click(None, None, None, cancels=[running])
        # Closing the file before ends `running`; `cancels` would show its last status again, over what on_open says.
        self.upload.change(self.on_open, [self.upload, self.model, self.window], opened, show_progress_on=self.canvas)
        self.save.click(self.on_save, None, self.files, concurrency_id="save", concurrency_limit=2)

    def _workspace(self, request: gr.Request) -> Workspace:
        return self.workspaces.get(str(request.session_hash), self.kind)

    def _show(self, workspace: Workspace) -> list[Any]:
        """Picture and status, untouched where another file was opened meanwhile."""
        if workspace.is_closed:
            return [gr.skip(), gr.skip()]
        sizes = [
            f"{name}: {int((workspace.labels[workspace.index] == object_id).sum())} px"
            for object_id, name in enumerate(workspace.names, start=1)
        ]
        noun = "Frame" if self.kind == "video" else "Slice"
        place = "" if self.kind == "image" else f"{noun} {workspace.index} · "
        return [render(workspace), place + " · ".join(sizes)]

    def on_open(self, files: Any, model: str, window: str, request: gr.Request) -> list[Any]:
        """Open the uploaded file or DICOM series, or close what was open."""
        session = str(request.session_hash)
        if not files:
            self.workspaces.close(session, self.kind)
            return [EMPTY, "", gr.Slider(), gr.Radio(["object 1"], value="object 1"), None]
        with told():
            paths = [Path(file) for file in (files if isinstance(files, list) else [files])]
            volume = _read_volume(paths) if self.kind == "volume" else open_source(paths[0], kind=self.kind)
            workspace = self.workspaces.open(session, self.kind, volume)
            workspace.model, workspace.window = model, window
            last = max(workspace.num_slices - 1, 1)
            slider = gr.Slider(0, last, value=workspace.index, interactive=workspace.num_slices > 1)
            return [*self._show(workspace), slider, gr.Radio(workspace.names, value=workspace.names[0]), None]

    def on_settings(self, model: str, window: str, request: gr.Request) -> list[Any]:
        """Another checkpoint or window, for the next marks."""
        with told():
            workspace = self._workspace(request)
            workspace.model, workspace.window = model, window
            return self._show(workspace)

    def on_add(self, name: str, request: gr.Request) -> list[Any]:
        """A new named object, chosen at once."""
        with told():
            workspace = self._workspace(request)
            object_id = workspace.add_object(name)
            return [gr.Radio(workspace.names, value=workspace.names[object_id - 1]), ""]

    def on_drag(self, name: str, event: gr.EventData, request: gr.Request) -> list[Any]:
        """A box was dragged."""
        with told():
            workspace = self._workspace(request)
            workspace.draw_box(workspace.names.index(name) + 1, [float(value) for value in event.corners])
            return self._show(workspace)

    def on_tap(self, name: str, tool: str, event: gr.EventData, request: gr.Request) -> list[Any]:
        """A pixel was clicked."""
        with told():
            workspace = self._workspace(request)
            x, y = float(event.x), float(event.y)
            workspace.click(workspace.names.index(name) + 1, x, y, positive=tool == ADD)
            return self._show(workspace)

    def on_roll(self, event: gr.EventData, request: gr.Request) -> list[Any]:
        """The wheel was turned over the picture."""
        with told():
            workspace = self._workspace(request)
            workspace.index = min(max(workspace.index + int(event.by), 0), workspace.num_slices - 1)
            return [*self._show(workspace), workspace.index]

    def on_slice(self, index: float, request: gr.Request) -> list[Any]:
        """The slider was moved."""
        with told():
            workspace = self._workspace(request)
            workspace.index = min(max(int(index), 0), workspace.num_slices - 1)
            return self._show(workspace)

    def on_undo(self, name: str, request: gr.Request) -> list[Any]:
        """Take back the latest mark on this slice."""
        with told():
            workspace = self._workspace(request)
            workspace.undo(workspace.names.index(name) + 1)
            return self._show(workspace)

    def on_clear(self, name: str, request: gr.Request) -> list[Any]:
        """Forget the object everywhere."""
        with told():
            workspace = self._workspace(request)
            workspace.clear(workspace.names.index(name) + 1)
            return self._show(workspace)

    def on_propagate(self, request: gr.Request, progress: Any = gr.Progress()) -> Iterator[list[Any]]:  # noqa: B008
        """Carry all objects both ways; cancelling, or opening another file, leaves everything as it was."""
        with told():
            workspace = self._workspace(request)
            for done, index in workspace.propagate():
                self._workspace(request)  # waiting for a long run is no idleness
                progress(done, desc=f"{'Frame' if self.kind == 'video' else 'Slice'} {index}")
                yield [gr.skip(), f"Propagating: {done:.0%}", gr.skip()]
            yield [*self._show(workspace), gr.skip() if workspace.is_closed else workspace.index]

    def on_save(self, request: gr.Request) -> list[str]:
        """The label map in every form that suits the source."""
        with told():
            workspace = self._workspace(request)
            folder = self.workspaces.folder(str(request.session_hash), self.kind)
            return [str(path) for path in _write_downloads(workspace, folder, kind=self.kind)]


def _read_volume(paths: list[Path]) -> Volume:
    """One NIfTI, NRRD or MetaImage file, or the files of one DICOM series, brought together in a folder of their own.

    Bytes say what is DICOM, as file names of series often say nothing; DICOM files that are no images are passed over.
    """
    foreign = [path for path in paths if not is_dicom_file(path)]
    if len(paths) > 1 and foreign:
        raise UserError(
            f"{foreign[0].name} is not DICOM; open one volume, or all files of one DICOM series, at a time."
        )
    if foreign and not foreign[0].name.lower().endswith(VOLUME_SUFFIXES):
        raise UserError(f"{foreign[0].name} is no volume; open NIfTI, NRRD, MetaImage or the files of a DICOM series.")
    if foreign:
        return read_volume(foreign[0])
    slices = [path for path in paths if _is_slice(path)]
    if not slices:
        raise UserError(f"{paths[0].name} is DICOM, but no image; open the files of an image series.")
    with tempfile.TemporaryDirectory(prefix="medsam2_ft-upload-") as parent:
        folder = Path(parent, slices[0].stem)
        folder.mkdir()
        for number, path in enumerate(slices):
            shutil.copyfile(path, folder / f"{number:06d}-{path.name}")
        return read_volume(folder)


def _is_slice(path: Path) -> bool:
    with reading(path):
        return is_series_file(path)


def _write_downloads(workspace: Workspace, folder: Path, *, kind: str) -> list[Path]:
    name = Path(workspace.volume.source).name.split(".")[0] or kind
    ids = {label: object_id for object_id, label in enumerate(workspace.names, start=1)}
    names_file = folder / f"{name}_labels.json"
    names_file.write_text(json.dumps(ids, indent=2))
    if kind == "image":
        return [downloads.write_png(folder / f"{name}_mask.png", workspace.labels[0]), names_file]
    files = [downloads.write_png_zip(folder / f"{name}_masks.zip", workspace.labels, names=ids), names_file]
    if kind == "volume":
        files.insert(0, write_mask(folder / f"{name}_mask.nii.gz", workspace.labels, like=workspace.volume))
    video = folder / f"{name}_overlay.mp4"
    return [
        *files,
        downloads.write_overlay_video(video, workspace.view.imgs, workspace.labels, fps=workspace.volume.fps),
    ]
