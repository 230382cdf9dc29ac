"""Intensity windows to choose from, as (level, width) in HU; None leaves it to the checkpoint's own recipe."""

from __future__ import annotations

PRESETS: dict[str, tuple[float, float] | None] = {
    "As the checkpoint was trained": None,
    "CT abdomen, soft tissue (40 / 400)": (40.0, 400.0),
    "CT lung (-600 / 1500)": (-600.0, 1500.0),
    "CT brain (40 / 80)": (40.0, 80.0),
    "CT mediastinum (50 / 350)": (50.0, 350.0),
    "CT bone (400 / 1800)": (400.0, 1800.0),
}
AS_DISPLAYED = "As displayed in the slice views"
