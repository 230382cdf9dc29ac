"""Tables from rows: summaries with bootstrap intervals by patient, paired tests between models, strata of size.

The unit of a mean is the object (a row). The unit of chance is the patient: intervals resample patients, and tests
compare patients' means, because objects of one patient are not independent.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from medsam2_ft.benchmark.rows import OBJECT, OK

SIZES = ("small", "medium", "large")
"""Thirds of a modality's objects, by pixels of those on slices and by voxels of those in volumes, each ranked apart."""

NUM_RESAMPLES = 2000


def scored(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with a score, robustness passes left out."""
    return rows[(rows["status"] == OK) & ~rows["protocol"].str.contains("/", regex=False)]


def summarise(rows: pd.DataFrame, *, by: Sequence[str] = ("model", "modality"), seed: int = 0) -> pd.DataFrame:
    """Mean, median, quartiles and 95 % interval of DSC and NSD for each group.

    Args:
        rows: of rows.csv; those without a score are left out.
        by: columns that make the groups.
        seed: of the bootstrap.

    Returns:
        One line a group: `num` objects, `cases`, `patients`, and `dsc_mean`, `dsc_low`, `dsc_high`, `dsc_median`,
        `dsc_q1`, `dsc_q3`, the same for `nsd` and `nsd_legacy`, and seconds a case. Both ends of an interval are NaN
        with one patient. With HD95, `hd95_mean` over the finite ones and `hd95_infinite`, the number of the others.
    """
    lines = []
    for group, part in scored(rows).groupby(list(by), sort=False):
        line: dict[str, object] = dict(zip(by, group if isinstance(group, tuple) else (group,), strict=True))
        patients = part["dataset"] + "/" + part["patient"]
        cases = part["dataset"] + "/" + part["case"]
        line |= {"num": len(part), "cases": cases.nunique(), "patients": patients.nunique()}
        for metric in ("dsc", "nsd", "nsd_legacy"):
            values = part[metric].to_numpy(float)
            low, high = bootstrap_interval(values, patients.to_numpy(), seed=seed)
            q1, median, q3 = np.percentile(values, [25, 50, 75])
            line |= {
                f"{metric}_mean": values.mean(), f"{metric}_low": low, f"{metric}_high": high,
                f"{metric}_median": median, f"{metric}_q1": q1, f"{metric}_q3": q3,
            }  # fmt: skip
        lines.append(line | _hd95(part) | _seconds(part))
    return pd.DataFrame(lines)


def summarise_sweep(rows: pd.DataFrame) -> pd.DataFrame:
    """One line a model and robustness pass: `model`, `name` (looseness=0.1), `num` objects, mean `dsc` and `nsd`."""
    passes = rows[(rows["status"] == OK) & rows["protocol"].str.contains("/", regex=False)]
    passes = passes.assign(name=passes["protocol"].str.split("/", n=1).str[1])
    groups = passes.groupby(["model", "name"], sort=False)
    return groups.agg(num=("dsc", "size"), dsc=("dsc", "mean"), nsd=("nsd", "mean")).reset_index()


def bootstrap_interval(
    values: NDArray[np.float64], patients: NDArray[np.object_], *, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean over rows, by resampling whole patients; NaN for fewer than two."""
    _, index = np.unique(patients.astype(str), return_inverse=True)
    sums, counts = np.bincount(index, weights=values), np.bincount(index)
    if len(sums) < 2:
        return float("nan"), float("nan")
    drawn = np.random.default_rng(seed).integers(len(sums), size=(NUM_RESAMPLES, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def compare_models(rows: pd.DataFrame, *, metric: str = "dsc") -> pd.DataFrame:
    """Wilcoxon signed-rank test of every pair of models on patients' means, Holm-corrected over all tests.

    Only objects that both models answered count, so that a case that failed for one is left out for both.

    Returns:
        One line a modality ("all" for all together) and pair: `modality`, `model_a`, `model_b`, `patients`,
        `difference` (mean of a - b over patients), `p`, `p_holm`. Pairs with fewer than 6 patients cannot reach 5 %
        and have p = NaN.
    """
    table = scored(rows)
    lines: list[dict[str, object]] = []
    groups: list[tuple[str, pd.DataFrame]] = [("all", table)]
    if table["modality"].nunique() > 1:
        groups += [(str(name), part) for name, part in table.groupby("modality", sort=True)]
    for modality, part in groups:
        objects = part.pivot_table(index=[*OBJECT, "patient"], columns="model", values=metric)
        for a, b in combinations(part["model"].unique(), 2):
            pairs = objects[[a, b]].dropna().groupby(level=["dataset", "patient"]).mean()
            difference = (pairs[a] - pairs[b]).to_numpy(float)
            is_testable = len(difference) >= 6 and bool(np.any(difference))
            lines.append({
                "modality": modality, "model_a": a, "model_b": b, "patients": len(difference),
                "difference": difference.mean() if len(difference) else float("nan"),
                "p": float(wilcoxon(difference).pvalue) if is_testable else float("nan"),
            })  # fmt: skip
    found = pd.DataFrame(lines, columns=["modality", "model_a", "model_b", "patients", "difference", "p"])
    found["p_holm"] = holm(found["p"].to_numpy(float))
    return found


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Holm's step-down correction; NaN stays NaN and counts for nothing."""
    corrected = np.full(len(p_values), np.nan)
    order = [i for i in np.argsort(p_values) if not np.isnan(p_values[i])]
    reached = 0.0
    for rank, i in enumerate(order):
        reached = max(reached, min(1.0, (len(order) - rank) * p_values[i]))
        corrected[i] = reached
    return corrected


def size_strata(rows: pd.DataFrame) -> pd.DataFrame:
    """Scored rows with a column `size`: small, medium or large third of the modality's objects, by pixels or voxels.

    What was propagated counts as a volume; masks made elsewhere have no seconds that tell, and are ranked together.
    """
    table = scored(rows).copy()
    is_volume = table["propagate_s"].fillna(0) > 0
    rank = table.groupby(["modality", is_volume.rename("is_volume")])["voxels"].rank(method="average", pct=True)
    table["size"] = pd.cut(rank, [0, 1 / 3, 2 / 3, 1], labels=SIZES).astype(str)
    return table


def robustness(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean DSC against each knob of a sweep: `model`, `knob`, `value`, `dsc`, `low`, `high`, `num`."""
    swept = rows[(rows["status"] == OK) & rows["protocol"].str.contains("/", regex=False)]
    lines = []
    for (model, protocol), part in swept.groupby(["model", "protocol"], sort=False):
        knob, _, value = str(protocol).rpartition("/")[2].partition("=")
        patients = (part["dataset"] + "/" + part["patient"]).to_numpy()
        low, high = bootstrap_interval(part["dsc"].to_numpy(float), patients)
        lines.append({
            "model": model, "knob": knob, "value": float(value), "dsc": part["dsc"].mean(), "low": low, "high": high,
            "num": len(part),
        })  # fmt: skip
    return pd.DataFrame(lines, columns=["model", "knob", "value", "dsc", "low", "high", "num"])


def _hd95(part: pd.DataFrame) -> dict[str, float]:
    if "hd95" not in part:
        return {}
    finite = part.loc[np.isfinite(part["hd95"]), "hd95"]
    return {"hd95_mean": float(finite.mean()), "hd95_infinite": int(np.isinf(part["hd95"]).sum())}


def _seconds(part: pd.DataFrame) -> dict[str, float]:
    """Mean seconds a case and pass: each row repeats its case's seconds, so one row a case is taken."""
    once = part.drop_duplicates(["model", "dataset", "case", "seed", "protocol"])
    means = {name: float(once[name].mean()) for name in ("encode_s", "prompt_s", "propagate_s")}
    return {**means, "case_s": sum(value for value in means.values() if not np.isnan(value))}
