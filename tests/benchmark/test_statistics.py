"""Intervals by patient, Holm's correction, paired tests."""

import numpy as np
import pandas as pd
import pytest

from medsam2_ft.benchmark.statistics import bootstrap_interval, compare_models, holm, size_strata, summarise


def table(scores_by_model, *, objects=1):
    lines = []
    for model, scores in scores_by_model.items():
        for number, score in enumerate(scores):
            lines += [
                {
                    "model": model, "protocol": "p", "modality": "CT", "dataset": "d", "case": f"c{number}",
                    "patient": f"p{number}", "status": "ok", "voxels": 10 * number + i, "label": "liver",
                    "instance": i, "prompt_slice": 0, "seed": 0, "dsc": score, "nsd": score, "nsd_legacy": score,
                    "encode_s": 1.0, "prompt_s": 0.5, "propagate_s": 0.0,
                }
                for i in range(objects)
            ]  # fmt: skip
    return pd.DataFrame(lines)


def test_repeating_an_object_narrows_no_interval():
    values = np.random.default_rng(0).random(12)
    patients = np.arange(12).astype(str)
    once = bootstrap_interval(values, patients)
    often = bootstrap_interval(np.repeat(values, 9), np.repeat(patients, 9))
    assert once == pytest.approx(often)
    assert once[0] < values.mean() < once[1]
    assert all(np.isnan(bootstrap_interval(values, np.full(12, "same"))))


def test_holm_against_a_worked_example():
    corrected = holm(np.array([0.01, np.nan, 0.04, 0.03, 0.005]))
    assert corrected[[0, 2, 3, 4]] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert np.isnan(corrected[1])


def test_paired_tests_need_six_patients_and_see_a_constant_gain():
    scores = np.linspace(0.3, 0.8, 10)
    (few,) = compare_models(table({"a": scores[:5], "b": scores[:5] + 0.1})).to_dict("records")
    assert np.isnan(few["p"])
    assert few["difference"] == pytest.approx(-0.1)
    (many,) = compare_models(table({"a": scores, "b": scores + np.linspace(0.05, 0.1, 10)})).to_dict("records")
    assert many["p_holm"] < 0.01


def test_a_case_that_failed_for_one_model_is_left_out_for_both():
    easy, hard = np.linspace(0.8, 0.95, 8), np.linspace(0.1, 0.3, 8)
    both = table({"a": easy, "b": easy + 0.01})
    rows = pd.concat([both, table({"a": hard, "b": hard + 0.01}).assign(case="hard")])
    rows.loc[(rows["case"] == "hard") & (rows["model"] == "a"), ["status", "dsc"]] = "failed", np.nan
    (line,) = compare_models(rows).to_dict("records")
    assert line["difference"] == pytest.approx(-0.01)
    assert line["p"] == compare_models(both)["p"].item()


def test_summaries_count_seconds_once_a_case():
    (line,) = summarise(table({"a": [0.5, 0.7]}, objects=3)).to_dict("records")
    assert (line["num"], line["cases"], line["patients"], line["case_s"]) == (6, 2, 2, 1.5)
    assert line["dsc_mean"] == pytest.approx(0.6)
    assert set(size_strata(table({"a": np.ones(9)}))["size"]) == {"small", "medium", "large"}


def test_objects_on_slices_and_in_volumes_are_ranked_apart():
    volumes = table({"a": np.ones(9)}).assign(propagate_s=1.0, voxels=lambda rows: rows["voxels"] * 1000)
    strata = size_strata(pd.concat([table({"a": np.ones(9)}), volumes]))
    assert strata.groupby([strata["propagate_s"] > 0, "size"]).size().tolist() == [3] * 6


def test_an_infinite_hd95_is_counted_not_averaged():
    (line,) = summarise(table({"a": np.ones(3)}).assign(hd95=[1.0, 3.0, np.inf])).to_dict("records")
    assert (line["hd95_mean"], line["hd95_infinite"]) == (2.0, 1)
