"""The picture that users draw on: a slice with its masks, boxes by dragging, clicks by clicking, slices by the wheel.

Coordinates in its events are pixels of the slice, 0 at the left and top edge, whatever the size on screen.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medsam2_ft.deploy.workspace import Workspace
from medsam2_ft.overlay import COLOURS, draw_masks

TEMPLATE = """
<div class="stage" role="img" aria-label="${value.label}"
  style="aspect-ratio: ${value.aspect}; max-width: calc(62vh * ${value.aspect})">
  <img draggable="false" alt="" src="${value.source}">
  <svg viewBox="0 0 ${value.width} ${value.height}" preserveAspectRatio="none">${value.marks}</svg>
  <div class="rubber"></div>
</div>
"""

STYLE = """
.stage { position: relative; width: 100%; margin: auto; background: #000;
  cursor: crosshair; touch-action: none; user-select: none; overflow: hidden; }
.stage img, .stage svg { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; pointer-events: none; }
.stage img { object-fit: fill; image-rendering: pixelated; }
.rubber { position: absolute; border: 1px dashed #fff; outline: 1px dashed #000; display: none; pointer-events: none; }
"""

SCRIPT = """
let start = null;
const stage = () => element.querySelector('.stage');
const place = (event) => {
  const frame = stage().getBoundingClientRect();
  const x = Math.min(Math.max(event.clientX - frame.left, 0), frame.width);
  const y = Math.min(Math.max(event.clientY - frame.top, 0), frame.height);
  return { x, y, column: x / frame.width * props.value.width, row: y / frame.height * props.value.height };
};
element.addEventListener('pointerdown', (event) => {
  if (event.button !== 0 || !props.value.source || !stage().contains(event.target)) return;
  event.preventDefault();
  start = place(event);
});
window.addEventListener('pointermove', (event) => {
  if (!start) return;
  const end = place(event), rubber = element.querySelector('.rubber');
  Object.assign(rubber.style, { display: 'block',
    left: Math.min(start.x, end.x) + 'px', top: Math.min(start.y, end.y) + 'px',
    width: Math.abs(end.x - start.x) + 'px', height: Math.abs(end.y - start.y) + 'px' });
});
window.addEventListener('pointerup', (event) => {
  if (!start) return;
  const end = place(event), begin = start;
  start = null;
  element.querySelector('.rubber').style.display = 'none';
  const isDrag = Math.abs(end.x - begin.x) > 4 && Math.abs(end.y - begin.y) > 4;
  if (isDrag) trigger('drag', { corners: [begin.column, begin.row, end.column, end.row] });
  else trigger('tap', { x: end.column, y: end.row });
});
let wheeled = 0, timer = null;
element.addEventListener('wheel', (event) => {
  if (!props.value.source || props.value.slices < 2) return;
  event.preventDefault();
  wheeled += Math.sign(event.deltaY);
  clearTimeout(timer);
  timer = setTimeout(() => { trigger('roll', { by: wheeled }); wheeled = 0; }, 60);
}, { passive: false });
"""

LOSSLESS_PX = 1 << 20

EMPTY: dict[str, Any] = {
    "source": "", "marks": "", "width": 4, "height": 3, "aspect": 1.5, "slices": 0, "label": "No file is open",
}  # fmt: skip


def make_canvas(*, elem_id: str) -> gr.HTML:
    """The component; its events are `drag` (corners), `tap` (x, y) and `roll` (by)."""
    return gr.HTML(
        value=EMPTY,
        html_template=TEMPLATE,
        css_template=STYLE,
        js_on_load=SCRIPT,
        elem_id=elem_id,
        apply_default_css=False,
    )


def render(workspace: Workspace) -> dict[str, Any]:
    """The current slice as the component's value."""
    index = workspace.index
    image = np.ascontiguousarray(workspace.view.imgs[index])
    height, width = image.shape[:2]
    plane = workspace.labels[index]
    masks = [plane == object_id for object_id in range(1, len(workspace.names) + 1)]
    spacing_mm = workspace.volume.spacing_mm or (1.0, 1.0, 1.0)
    return {
        "source": _data_url(draw_masks(image, masks)),
        "marks": _marks(workspace),
        "width": width,
        "height": height,
        "aspect": round(width * spacing_mm[2] / (height * spacing_mm[1]), 4),
        "slices": workspace.num_slices,
        "label": f"Slice {index} of {workspace.num_slices}",
    }


def _marks(workspace: Workspace) -> str:
    """Boxes and clicks of the current slice as SVG, in pixels of the slice."""
    radius = max(workspace.labels.shape[1:]) / 100
    shapes = []
    for (object_id, index), marks in workspace.marks.items():
        if index != workspace.index:
            continue
        colour = "rgb({},{},{})".format(*COLOURS[(object_id - 1) % len(COLOURS)])
        stroke = f'stroke="{colour}" stroke-width="2" vector-effect="non-scaling-stroke"'
        if marks.box is not None:
            x0, y0, x1, y1 = marks.box
            shapes.append(f'<rect x="{x0}" y="{y0}" width="{x1 - x0}" height="{y1 - y0}" fill="none" {stroke}/>')
        for x, y, positive in marks.clicks:
            fill = "#2ecc40" if positive else "#ff4136"
            shapes.append(f'<ellipse cx="{x}" cy="{y}" rx="{radius}" ry="{radius}" fill="{fill}" {stroke}/>')
    return "".join(shapes)


def _data_url(image: NDArray[np.uint8]) -> str:
    """Without loss, but for photographs so large that the wait would be felt."""
    stream = io.BytesIO()
    is_large = image.shape[0] * image.shape[1] > LOSSLESS_PX
    Image.fromarray(image).save(stream, "WEBP", lossless=not is_large, quality=90 if is_large else 0, method=0)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
