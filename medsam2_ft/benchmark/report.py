"""`report.html`, one self-contained page, and `report.md`, its tables: everything from rows.csv, run.json and kept masks."""

from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from medsam2_ft.benchmark.figures import dot_and_box, palette, robustness_plot, size_plot, speed_plot
from medsam2_ft.benchmark.gallery import Gallery
from medsam2_ft.benchmark.protocol import protocol_from
from medsam2_ft.benchmark.provenance import Run
from medsam2_ft.benchmark.rows import FAILED, OK, SKIPPED, read_rows
from medsam2_ft.benchmark.statistics import compare_models, robustness, scored, size_strata, summarise

TEMPLATES = Path(__file__).with_name("templates")


def write_report(folder: Path) -> list[Path]:
    """Write the report of a run, finished or not.

    Args:
        folder: holds `rows.csv` and `run.json`.

    Returns:
        The paths of the HTML page and the Markdown tables.

    Raises:
        DataError: if the folder holds no run.
    """
    run, rows = Run.read(folder), read_rows(folder / "rows.csv")
    content = gather(run, rows, folder)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"score": _score, "hd95": _hd95, "seconds": _seconds, "p": _p_value}
    written = []
    for name in ("report.html", "report.md"):
        path = folder / name
        path.write_text(environment.get_template(f"{name}.j2").render(content), encoding="utf-8")
        written.append(path)
    return written


def gather(run: Run, rows: pd.DataFrame, folder: Path) -> dict[str, Any]:
    """Everything that the templates show."""
    models = [model.name for model in run.models if model.name in set(rows.loc[rows["status"] == OK, "model"])]
    colours = palette(models)
    table, curves = scored(rows), robustness(rows)
    protocol = protocol_from(run.protocol)
    roots = {data["name"]: Path(data["folder"]) for data in run.data}
    gallery = Gallery(folder, roots, protocol, colours)
    content: dict[str, Any] = {
        "run": run,
        "protocol": protocol,
        "colours": colours,
        "counts": {status: int((rows["status"] == status).sum()) for status in (OK, SKIPPED, FAILED)},
        "num_cases": int(rows[["dataset", "case"]].replace("", pd.NA).dropna().drop_duplicates().shape[0]),
        "problems": rows[rows["status"] == FAILED][["model", "dataset", "case", "reason"]].to_dict("records"),
        "modalities": sorted(rows.loc[rows["status"] == OK, "modality"].unique()),
        "curves": curves.to_dict("records"),
        "robustness_svg": robustness_plot(curves, colours) if len(curves) else "",
        "legacy_differs": bool(len(table)) and bool((table["nsd"] - table["nsd_legacy"]).abs().max() > 0.005),
        "has_hd95": "hd95" in table,
        "overall": [],
    }
    if not len(table):
        return content
    overall = summarise(table, by=("model",))
    return content | {
        "overall": overall.to_dict("records"),
        "by_modality": summarise(table, by=("modality", "model"))
        .sort_values("modality", kind="stable")
        .to_dict("records"),
        "by_label": summarise(table, by=("modality", "dataset", "label", "model"))
        .sort_values(["modality", "dataset", "label"], kind="stable")
        .to_dict("records"),
        "tests": compare_models(table).to_dict("records"),
        "dsc_svg": dot_and_box(table, colours, metric="dsc"),
        "nsd_svg": dot_and_box(table, colours, metric="nsd"),
        "speed_svg": speed_plot(overall, colours) if overall["case_s"].gt(0).any() else "",
        "size_svg": size_plot(size_strata(table), colours),
        "strips": gallery.best_median_worst(table),
        "worst": gallery.worst(table),
        "sheets": gallery.contact_sheets(table),
    }


def _score(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.3f}"


def _hd95(line: dict[str, Any]) -> str:
    mean = "–" if pd.isna(line["hd95_mean"]) else f"{line['hd95_mean']:.2f}"
    return f"{mean} ({line['hd95_infinite']} infinite)" if line["hd95_infinite"] else mean


def _seconds(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.2f} s" if value < 100 else f"{value:.0f} s"


def _p_value(value: float) -> str:
    return "–" if pd.isna(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
