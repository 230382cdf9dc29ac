"""The plots of the report, each drawn once as SVG text that stands inside the page.

One model has one colour throughout; `palette` decides it.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from medsam2_ft.benchmark.statistics import SIZES, bootstrap_interval

COLOURS = ("#0d9488", "#f97316", "#6366f1", "#e11d48", "#84cc16", "#0ea5e9", "#a855f7", "#78716c", "#eab308", "#14532d")
INK, FAINT = "#1f2937", "#e5e7eb"
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif", "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 9.5, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": "#9ca3af", "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y", "grid.color": FAINT,
    "axes.axisbelow": True, "xtick.color": "#4b5563", "ytick.color": "#4b5563", "axes.titlesize": 10.5,
    "axes.titleweight": "bold", "axes.titlelocation": "left", "svg.fonttype": "none", "legend.frameon": False,
    "svg.hashsalt": "medsam2_ft",
}  # fmt: skip
MAX_DOTS = 150
KNOBS = {
    "looseness": "box looseness (share of side added on each side)",
    "shift": "box shift (share of side)",
    "slice_offset": "prompt slice offset (share of half range)",
}


def palette(models: Sequence[str]) -> dict[str, str]:
    """model -> colour, in the order given."""
    return {model: COLOURS[i % len(COLOURS)] for i, model in enumerate(models)}


def dot_and_box(rows: pd.DataFrame, colours: Mapping[str, str], *, metric: str = "dsc", columns: int = 4) -> str:
    """One panel a modality, one box a model, every object a dot: the manner of the paper's figures 2 and 3."""
    groups = [(str(name), part) for name, part in rows.groupby("modality", sort=True)]
    columns = min(columns, max(1, len(groups)))
    lines = -(-len(groups) // columns)
    rng = np.random.default_rng(0)
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 2.75 * lines + 0.5), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False, sharey=True)
        for panel in panels.flat[len(groups) :]:
            panel.set_visible(False)
        for panel, (name, part) in zip(panels.flat, groups, strict=False):
            for place, (model, colour) in enumerate(colours.items()):
                values = part.loc[part["model"] == model, metric].to_numpy(float)
                if len(values):
                    _box(panel, values, place, colour, rng)
            panel.set_title(name or "modality unknown")
            most = part.groupby("model").size().max()
            panel.text(1, 1.02, f"n = {most}", transform=panel.transAxes, ha="right", va="bottom", color="#6b7280")
            panel.set(xticks=[], xlim=(-0.6, len(colours) - 0.4), ylim=(-0.03, 1.03))
        for line in panels:
            line[0].set_ylabel(metric.upper())
        _legend(figure, colours)
        return _svg(figure)


def speed_plot(summary: pd.DataFrame, colours: Mapping[str, str]) -> str:
    """Mean DSC against seconds a case, one point a model, with the bootstrap interval."""
    with rc_context(STYLE):
        figure = Figure(figsize=(5.4, 3.5), layout="constrained")
        panel = figure.subplots()
        panel.grid(axis="both")
        for number, line in enumerate(summary.sort_values("case_s").itertuples()):
            colour = colours[line.model]
            if not np.isnan(line.dsc_low):
                panel.plot([line.case_s] * 2, [line.dsc_low, line.dsc_high], color=colour, lw=2, alpha=0.5)
            panel.scatter(line.case_s, line.dsc_mean, s=90, color=colour, edgecolor="white", lw=1.2, zorder=3)
            panel.annotate(
                line.model, (line.case_s, line.dsc_mean), xytext=(8, (5, -14)[number % 2]), textcoords="offset points",
                color=colour, fontweight="bold",
            )  # fmt: skip
        low, high = summary["case_s"].min(), summary["case_s"].max()
        panel.set(xscale="log", xlim=(low / 2, high * 3.2), xlabel="seconds a case (log scale)", ylabel="mean DSC")
        from matplotlib.ticker import FuncFormatter, LogLocator

        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.minorticks_off()
        return _svg(figure)


def size_plot(strata: pd.DataFrame, colours: Mapping[str, str]) -> str:
    """Mean DSC and interval of small, medium and large objects."""
    with rc_context(STYLE):
        figure = Figure(figsize=(5.4, 3.5), layout="constrained")
        panel = figure.subplots()
        width = 0.7 / len(colours)
        for i, (model, colour) in enumerate(colours.items()):
            for place, size in enumerate(SIZES):
                part = strata[(strata["model"] == model) & (strata["size"] == size)]
                if part.empty:
                    continue
                x = place + (i - (len(colours) - 1) / 2) * width
                mean = part["dsc"].mean()
                low, high = bootstrap_interval(
                    part["dsc"].to_numpy(float), (part["dataset"] + "/" + part["patient"]).to_numpy()
                )
                panel.bar(x, mean, width * 0.86, color=colour, alpha=0.85)
                if not np.isnan(low):
                    panel.plot([x, x], [low, high], color=INK, lw=1.1)
        panel.set(xticks=range(len(SIZES)), ylim=(0, 1), ylabel="mean DSC")
        panel.set_xticklabels([f"{size} third" for size in SIZES])
        _legend(figure, colours, columns=3)
        return _svg(figure)


def robustness_plot(curves: pd.DataFrame, colours: Mapping[str, str]) -> str:
    """Mean DSC against each knob of a sweep, with the bootstrap interval as a band."""
    knobs = [knob for knob in KNOBS if knob in set(curves["knob"])]
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 3.5), layout="constrained")
        panels = figure.subplots(1, len(knobs), squeeze=False, sharey=True)[0]
        for panel, knob in zip(panels, knobs, strict=True):
            for model, colour in colours.items():
                part = curves[(curves["knob"] == knob) & (curves["model"] == model)].sort_values("value")
                panel.plot(part["value"], part["dsc"], "-o", color=colour, ms=5, mec="white", lw=2)
                panel.fill_between(part["value"], part["low"], part["high"], color=colour, alpha=0.14, lw=0)
            panel.set(xlabel=KNOBS[knob], title=knob.replace("_", " "), ylim=(0, 1.02))
        panels[0].set_ylabel("mean DSC")
        _legend(figure, colours)
        return _svg(figure)


def _box(panel: Axes, values: NDArray[np.float64], place: int, colour: str, rng: np.random.Generator) -> None:
    shown = values if len(values) <= MAX_DOTS else rng.choice(values, MAX_DOTS, replace=False)
    jitter = rng.uniform(-0.17, 0.17, len(shown))
    panel.scatter(place + jitter, shown, s=14, color=colour, alpha=0.45, lw=0, zorder=2)
    line = {"color": colour, "linewidth": 1.4}
    panel.boxplot(
        values, positions=[place], widths=0.52, showfliers=False, zorder=3, boxprops=line, whiskerprops=line,
        capprops=line, medianprops={"color": INK, "linewidth": 1.8},
    )  # fmt: skip


def _legend(figure: Figure, colours: Mapping[str, str], *, columns: int = 6) -> None:
    handles = [Line2D([], [], marker="o", ls="", color=colour, ms=7, label=model) for model, colour in colours.items()]
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=min(columns, len(handles)),
        handletextpad=0.2,
        columnspacing=1.4,
    )


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
