"""The data card: one self-contained HTML page that shows what a dataset holds and what is wrong with it."""

import base64
import io
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from medsam2_ft.data.audit import PALETTE, Audit, Measured

CARD = "data_card.html"
_SHOWN = 60
_TEMPLATE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Data card: {{ name }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .5rem 0 1.5rem }
td, th { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child { text-align: left }
.error { color: #b00020 } .warning { color: #9a6200 }
.sheet { display: flex; flex-wrap: wrap; gap: .6rem } figure { margin: 0; width: 160px; font-size: 12px }
figure img { display: block; background: #000; max-width: 160px } figcaption { overflow-wrap: anywhere }
</style>
<h1>Data card: {{ name }}</h1>
<p>{{ audit.cases|length }} cases, {{ num_patients }} patients, {{ num_slices }} slices;
<b class="error">{{ num_errors }} errors</b>, <b class="warning">{{ num_warnings }} warnings</b>.</p>
<h2>Findings</h2>
{% if audit.findings %}<table><tr><th>case</th><th>level</th><th style="text-align:left">finding</th></tr>
{% for finding in audit.findings[:300] %}<tr><td>{{ finding.case or "dataset" }}</td>
<td class="{{ finding.level }}">{{ finding.level }}</td><td style="text-align:left">{{ finding.message }}</td></tr>
{% endfor %}</table>{% else %}<p>None.</p>{% endif %}
<h2>Cases</h2>
<table><tr><th>modality</th><th>train</th><th>val</th><th>test</th><th>slices</th></tr>
{% for row in by_modality %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table>
<h2>Labels</h2>
<table><tr><th>region</th><th>cases</th><th>median area of largest slice, px</th><th>smallest</th>
<th>median size</th></tr>
{% for row in by_region %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table>
<h2>Distributions</h2>
{% for plot in plots %}<img src="data:image/png;base64,{{ plot }}" alt="histogram"> {% endfor %}
<h2>Contact sheet, worst cases first</h2>
<p>{% for region, colour in legend %}<span style="color: rgb{{ colour }}">&#9632;</span> {{ region }} {% endfor %}</p>
<div class="sheet">{% for figure in figures %}<figure><img src="data:image/png;base64,{{ figure.picture }}"
alt="{{ figure.case }}"><figcaption>{{ figure.case }} ({{ figure.split }})
{% for message in figure.messages %}<br><span class="{{ message.level }}">{{ message.message }}</span>{% endfor %}
</figcaption></figure>{% endfor %}</div>
{% if num_hidden %}<p>{{ num_hidden }} more cases are not shown.</p>{% endif %}
</html>
"""


def write_card(audit: Audit, path: Path | None = None) -> Path:
    """Write the page.

    Args:
        audit: the result of `audit_dataset`.
        path: where to; `data_card.html` in the dataset folder by default.
    """
    path = path or audit.root / CARD
    by_case = defaultdict(list)
    for finding in audit.findings:
        by_case[finding.case].append(finding)
    ranked = sorted(audit.cases, key=lambda case: _severity(by_case[case.record.case]))
    shown = [case for case in ranked if case.thumbnail][:_SHOWN]
    figures = [
        {
            "picture": base64.b64encode(case.thumbnail).decode(),
            "case": case.record.case,
            "split": case.record.split,
            "messages": by_case[case.record.case][:3],
        }
        for case in shown
    ]
    regions = list(dict.fromkeys(name for case in audit.cases for name in case.regions))
    page = jinja2.Environment(autoescape=True).from_string(_TEMPLATE)
    html = page.render(
        audit=audit,
        name=audit.root.resolve().name,
        num_patients=len({case.record.patient for case in audit.cases}),
        num_slices=sum(case.record.shape[0] for case in audit.cases if case.record.shape),
        num_errors=len(audit.errors),
        num_warnings=len(audit.findings) - len(audit.errors),
        by_modality=_by_modality(audit.cases),
        by_region=[_region_row(name, audit.cases) for name in regions],
        plots=_plots(audit.cases),
        legend=list(zip(regions, PALETTE, strict=False)) if 0 < len(regions) <= len(PALETTE) else [],
        figures=figures,
        num_hidden=max(0, len(audit.cases) - len(shown)),
    )
    draft = path.with_name(f".{path.name}")
    draft.write_text(html, encoding="utf-8")
    draft.replace(path)
    return path


def _severity(findings: list[Any]) -> tuple[int, int]:
    errors = sum(finding.level == "error" for finding in findings)
    return -errors, -len(findings)


def _by_modality(cases: list[Measured]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for modality in sorted({case.record.modality for case in cases}):
        mine = [case.record for case in cases if case.record.modality == modality]
        splits = Counter(record.split for record in mine)
        slices = sum(record.shape[0] for record in mine if record.shape)
        rows.append((modality or "unknown", splits["train"], splits["val"], splits["test"], slices))
    return rows


def _region_row(name: str, cases: list[Measured]) -> tuple[object, ...]:
    mine = [case for case in cases if name in case.regions]
    areas = [case.regions[name].largest_area_px for case in mine]
    measures = [case.regions[name].measure for case in mine if np.isfinite(case.regions[name].measure)]
    is_volume = any(case.record.shape and case.record.shape[0] > 1 for case in mine)
    unit = "ml" if is_volume else "mm²"
    size = f"{np.median(measures):.3g} {unit}" if measures else "no spacing"
    return name, len(mine), f"{np.median(areas):.0f}", min(areas), size


def _plots(cases: list[Measured]) -> list[str]:
    measured = [case for case in cases if case.histogram]
    plots = []
    if measured:
        total = np.sum([np.divide(case.histogram, sum(case.histogram)) for case in measured], axis=0) / len(measured)
        plots.append(_figure("intensity (0..255)", lambda axes: axes.bar(np.arange(64) * 4, total, width=4)))
    sizes = [size.voxels for case in measured for size in case.regions.values()]
    if sizes:
        plots.append(_figure("region size, log10 voxels", lambda axes: axes.hist(np.log10(sizes), bins=30)))
    spacings = np.array([case.record.spacing for case in measured if case.record.spacing])
    if len(spacings):
        plots.append(
            _figure(
                "spacing, mm (T, H, W)", lambda axes: axes.hist(list(spacings.T), bins=20, label=["T", "H", "W"]), True
            )
        )
    return plots


def _figure(title: str, draw: Callable[[Any], object], has_legend: bool = False) -> str:
    # The object interface, because pyplot keeps global state and picks a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6, 2.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    draw(axes)
    axes.set_title(title, fontsize=9)
    if has_legend:
        axes.legend(fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()
