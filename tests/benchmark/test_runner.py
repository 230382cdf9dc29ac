"""Whole runs with a stand-in model: resumed, interrupted, missing weights, failing cases, several datasets, reports."""

import json
import re

import numpy as np
import pytest

from benchmark.cases import EllipseModel, image_case, volume_case, write_dataset
from medsam2_ft.benchmark import runner
from medsam2_ft.benchmark.protocol import Protocol
from medsam2_ft.benchmark.provenance import Run
from medsam2_ft.benchmark.report import write_report
from medsam2_ft.benchmark.rows import COLUMNS, read_rows
from medsam2_ft.benchmark.runner import run_benchmark
from medsam2_ft.benchmark.statistics import summarise_sweep
from medsam2_ft.errors import CheckpointError, ConfigError, DataError
from medsam2_ft.metrics import dsc


@pytest.fixture
def models(monkeypatch):
    """lite_medsam is the ellipse, sam2_tiny a smaller ellipse, sam_vit_b has no weights."""
    opened = {"lite_medsam": EllipseModel("lite_medsam"), "sam2_tiny": EllipseModel("sam2_tiny", "beef", shrink=0.3)}

    def open_model(spec, *, device="auto"):
        if spec not in opened:
            raise CheckpointError(f"there are no weights of {spec}")
        return opened[spec]

    monkeypatch.setattr(runner, "open_model", open_model)
    runner._opened.cache_clear()
    yield opened
    runner._opened.cache_clear()


PROTOCOL = Protocol("p", task="auto", targets="region", min_px=20)


def run(dataset, out, names=("lite_medsam",), protocol=PROTOCOL, **keywords):
    return run_benchmark(protocol, roots=[dataset], models=list(names), out=out, **keywords)


def test_rows_have_the_promised_columns_and_every_dice_can_be_recomputed(dataset, tmp_path, models):
    table = run(dataset, tmp_path / "out", ["lite_medsam", "sam2_tiny"])
    assert list(table.columns) == COLUMNS
    assert (table["status"] == "ok").all()
    assert len(table) == 2 * (3 * 2 + 2)
    for row in table.itertuples():
        with np.load(tmp_path / "out" / "masks" / row.model / row.dataset / f"{row.case}.npz") as masks:
            mask = masks[f"{row.label}|{row.instance}|{row.prompt_slice}|{row.seed}"]
        case = volume_case() if row.case.startswith("volume") else image_case()
        truth = case.region_mask(row.label)
        assert row.dsc == pytest.approx(dsc(mask, truth if mask.ndim == 3 else truth[0]), abs=1e-5)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["models"][0]["checkpoint_sha256"] == "cafe"
    assert record["finished"]


def test_what_is_done_is_not_done_again_unless_the_weights_change(dataset, tmp_path, models):
    run(dataset, tmp_path / "out")
    encoded = models["lite_medsam"].num_encoded
    run(dataset, tmp_path / "out")
    assert models["lite_medsam"].num_encoded == encoded
    models["lite_medsam"].checkpoint_sha256 = "new"
    table = run(dataset, tmp_path / "out")
    assert models["lite_medsam"].num_encoded == 2 * encoded
    assert set(table["checkpoint_sha256"]) == {"new"}


def test_an_interrupted_run_keeps_what_it_has(dataset, tmp_path, models, monkeypatch):
    done = []

    def interrupt(case, *arguments, **keywords):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(case.name)
        return evaluate(case, *arguments, **keywords)

    evaluate = runner.evaluate
    monkeypatch.setattr(runner, "evaluate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(dataset, tmp_path / "out")
    assert set(read_rows(tmp_path / "out" / "rows.csv")["case"]) == set(done)
    monkeypatch.setattr(runner, "evaluate", evaluate)
    assert run(dataset, tmp_path / "out")["case"].nunique() == 5


def test_a_missing_model_and_a_failing_case_stop_nobody(dataset, tmp_path, models):
    (dataset / "cases" / "volume1.npz").write_bytes(b"junk")
    table = run(dataset, tmp_path / "out", ["sam_vit_b", "lite_medsam"])
    failed = table[table["status"] == "failed"].set_index("model")["reason"]
    assert "no weights" in failed["sam_vit_b"]
    assert "volume1.npz" in failed["lite_medsam"]
    assert (table["status"] == "ok").sum() == 2 * 2 + 2


@pytest.mark.parametrize("opens", [0, 1], ids=["at first", "when its turn comes"])
def test_a_model_that_does_not_fit_into_memory_stops_nobody(dataset, tmp_path, models, monkeypatch, opens):
    found = {name: EllipseModel(name) for name in ("sam2_tiny", "sam2_small", "lite_medsam")}
    opened = []

    def open_model(spec, *, device="auto"):
        opened.append(spec)
        if spec == "sam2_tiny" and opened.count(spec) > opens:
            raise RuntimeError("CUDA out of memory")
        return found[spec]

    monkeypatch.setattr(runner, "open_model", open_model)
    table = run(dataset, tmp_path / "out", list(found))  # three, of which only two stay open
    failed = table[table["status"] == "failed"]
    assert set(failed["model"]) == {"sam2_tiny"}
    assert failed["reason"].str.startswith("RuntimeError: CUDA out of memory").all()
    assert (table["status"] == "ok").sum() == 2 * (3 * 2 + 2)


def test_a_device_that_is_not_there_is_told_at_once(dataset, tmp_path, models, monkeypatch):
    def open_model(spec, *, device="auto"):
        raise ConfigError("torch sees no CUDA device here")

    monkeypatch.setattr(runner, "open_model", open_model)
    with pytest.raises(ConfigError, match="no CUDA"):
        run(dataset, tmp_path / "out")


def test_a_run_without_any_model_is_an_error(dataset, tmp_path, models):
    with pytest.raises(CheckpointError, match="none of the models"):
        run(dataset, tmp_path / "out", ["sam_vit_b"])


def test_two_processes_give_the_rows_of_one(tmp_path):
    root = write_dataset(tmp_path / "data", [image_case(f"image{i}") for i in range(3)])
    tables = [run(root, tmp_path / f"{n}", ["sam2.1_nano"], workers=n).sort_values(["case", "label"]) for n in (1, 2)]
    assert len(tables[0]) == 3
    assert (tables[0]["status"] == "ok").all()
    for column in ("case", "label", "dsc", "nsd", "checkpoint_sha256"):
        assert list(tables[0][column]) == list(tables[1][column])


def test_kinds_splits_and_protocols_are_kept_apart(dataset, tmp_path, models):
    table = run(dataset, tmp_path / "out", protocol=Protocol("p", kinds=("volume",), targets="region"))
    assert set(table.loc[table["status"] == "skipped", "case"]) == {"image0", "image1"}
    with pytest.raises(ConfigError, match="another --out"):
        run(dataset, tmp_path / "out", protocol=Protocol("q"))
    with pytest.raises(ConfigError, match="split 'test', not 'all'"):
        run(dataset, tmp_path / "out", protocol=Protocol("p", kinds=("volume",), targets="region"), split="all")
    with pytest.raises(DataError, match="--split all"):
        run(dataset, tmp_path / "other", split="train")


@pytest.mark.parametrize("calls", [["one two"], ["one", "two"], ["one", "one two"]])
def test_datasets_with_cases_of_one_name_are_kept_apart_however_they_are_added(tmp_path, models, calls):
    cases = {"one": image_case("same"), "two": volume_case("same")}
    roots = {name: write_dataset(tmp_path / name, [case]) for name, case in cases.items()}
    for call in calls:
        chosen = [roots[name] for name in call.split()]
        table = run_benchmark(PROTOCOL, roots=chosen, models=["lite_medsam"], out=tmp_path / "out")
    assert sorted(zip(table["dataset"], table["label"], strict=True)) == [
        ("one", "polyp"), ("two", "kidney"), ("two", "liver"),
    ]  # fmt: skip
    masks = tmp_path / "out" / "masks" / "lite_medsam"
    assert {path.relative_to(masks).as_posix() for path in masks.rglob("*.npz")} == {"one/same.npz", "two/same.npz"}
    assert [data["name"] for data in Run.read(tmp_path / "out").data] == ["one", "two"]


def test_two_datasets_of_one_name_are_refused_but_a_moved_one_goes_on(tmp_path, models):
    roots = [write_dataset(tmp_path / folder / "npz", [image_case(folder)]) for folder in "ab"]
    with pytest.raises(ConfigError, match="two datasets are called 'npz'"):
        run_benchmark(PROTOCOL, roots=roots, models=["lite_medsam"], out=tmp_path / "out")
    run(roots[0], tmp_path / "out")
    with pytest.raises(ConfigError, match="holds another dataset 'npz'"):
        run(roots[1], tmp_path / "out")
    moved = roots[0].rename(tmp_path / "npz")
    run(moved, tmp_path / "out")
    assert models["lite_medsam"].num_encoded == 1


def test_the_report_stands_alone(dataset, tmp_path, models):
    run(dataset, tmp_path / "out", ["lite_medsam", "sam2_tiny", "sam_vit_b"])
    html, markdown = write_report(tmp_path / "out")
    page = html.read_text()
    assert not re.search(r"(?:src|href)=.?https?:", page)
    assert page.count("<svg") == 4
    assert page.count("data:image/jpeg") > 10
    for word in ("lite_medsam", "sam_vit_b</b> was left out", "Wilcoxon", "cafe", "Through the volume"):
        assert word in page
    assert "| CT | lite_medsam | 6 | 3 |" in markdown.read_text()


def test_a_sweep_has_its_curves(tmp_path, models):
    root = write_dataset(tmp_path / "data", [image_case()])
    protocol = Protocol("r", min_px=20, sweep={"looseness": (0.0, 0.5)}, keep_masks=False)
    table = summarise_sweep(run(root, tmp_path / "out", protocol=protocol))
    assert list(table["name"]) == ["looseness=0", "looseness=0.5"]
    assert table["dsc"].iloc[0] > table["dsc"].iloc[1]
    html, _ = write_report(tmp_path / "out")
    assert "Robustness to the prompt" in html.read_text()
    assert not (tmp_path / "out" / "masks").exists()
