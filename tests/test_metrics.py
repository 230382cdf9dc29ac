"""DSC, NSD and HD95 against reference implementations, the empty rules, the defects measured in the reference."""

import warnings

import numpy as np
import pytest
import torch

from medsam2_ft.metrics import MeanDSC, dsc, hd95, nsd, nsd_legacy


def random_blob(rng, shape):
    """An ellipsoid with speckle whose centre may lie outside, so that many touch the border."""
    centre, radii = rng.uniform(0, shape), rng.uniform(0.2, 0.6, len(shape)) * shape
    grid = np.stack(np.indices(shape), axis=-1)
    return ((((grid - centre) / radii) ** 2).sum(-1) < 1) ^ (rng.random(shape) < 0.01)


def random_pairs(num, seed=0):
    rng = np.random.default_rng(seed)
    for index in range(num):
        shape = rng.integers(6, 24, 2 + index % 2)
        pred, truth = random_blob(rng, shape), random_blob(rng, shape)
        if pred.any() and truth.any():
            yield pred, truth, rng.uniform(0.4, 5.0, len(shape)).round(2), rng.uniform(0.5, 4.0)


def sphere():
    """The measured case of the reference's axis defect: 25 mm radius, voxels of 5 x 0.8 x 0.8 mm in (T, H, W)."""
    spacing = np.array([5.0, 0.8, 0.8])
    grid = (np.stack(np.indices((20, 100, 100)), axis=-1) - (10, 50, 50)) * spacing
    return (grid**2).sum(-1) < 25**2, spacing


@pytest.mark.filterwarnings("ignore:monai.metrics:FutureWarning")
def test_nsd_and_hd95_agree_with_deepmind_and_monai():
    surface_distance = pytest.importorskip("surface_distance")
    from monai.metrics import compute_surface_dice

    touching = 0
    for pred, truth, spacing, tolerance in random_pairs(40):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            distances = surface_distance.compute_surface_distances(truth, pred, spacing)
        ours = nsd(pred, truth, spacing_mm=spacing, tolerance_mm=tolerance)
        theirs = surface_distance.compute_surface_dice_at_tolerance(distances, tolerance)
        monai = compute_surface_dice(
            torch.from_numpy(pred)[None, None],
            torch.from_numpy(truth)[None, None],
            [tolerance],
            include_background=True,
            spacing=spacing.tolist(),
            use_subvoxels=True,
        )
        assert ours == pytest.approx(theirs, abs=1e-4)
        assert ours == pytest.approx(monai.item(), abs=1e-4)
        expected = surface_distance.compute_robust_hausdorff(distances, 95)
        assert hd95(pred, truth, spacing_mm=spacing) == pytest.approx(expected, rel=1e-5)
        touching += any(np.take(truth, side, axis).any() for axis in range(truth.ndim) for side in (0, -1))
    assert touching > 10


@pytest.mark.parametrize(
    ("shift", "axis", "right", "published"),
    [(1, 0, 0.646, 1.000), (4, 2, 0.800, 0.956)],
    ids=["one slice", "four pixels"],
)
def test_legacy_reproduces_the_published_axis_order_and_nsd_does_not(shift, axis, right, published):
    truth, spacing = sphere()
    pred = np.roll(truth, shift, axis)
    assert nsd(pred, truth, spacing_mm=spacing, tolerance_mm=2) == pytest.approx(right, abs=5e-4)
    assert nsd_legacy(pred, truth, spacing_mm=spacing) == pytest.approx(published, abs=5e-4)


@pytest.mark.parametrize("shape", [(16, 16), (4, 16, 16)])
def test_empty_rules(shape):
    empty, some = np.zeros(shape, bool), np.zeros(shape, bool)
    some[..., 3:7, 3:7] = True
    spacing = (3.0, 1.0, 1.0)[-len(shape) :]
    for metric in (dsc, nsd, nsd_legacy):
        keywords = {} if metric is dsc else {"spacing_mm": spacing}
        assert metric(empty, empty, **keywords) == 1.0
        assert metric(empty, some, **keywords) == 0.0
        assert metric(some, empty, **keywords) == 0.0
        assert metric(some, some, **keywords) == 1.0
    assert hd95(empty, empty) == 0.0
    assert hd95(empty, some) == hd95(some, empty) == float("inf")


def test_without_spacing_lengths_are_pixels():
    truth = np.zeros((64, 64), bool)
    truth[20:40, 20:40] = True
    pred = np.roll(truth, 3, axis=1)
    assert hd95(pred, truth) == pytest.approx(3.0)
    assert nsd(pred, truth, tolerance_mm=3) == 1.0
    assert nsd(pred, truth, tolerance_mm=2) == nsd_legacy(pred, truth) < 1.0


def test_a_touching_border_is_surface():
    whole, half = np.ones((8, 8), bool), np.zeros((8, 8), bool)
    half[:, :4] = True
    assert nsd(whole, whole, tolerance_mm=0) == 1.0
    assert 0.0 < nsd(half, whole, tolerance_mm=1) < 1.0


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="shape"):
        dsc(np.ones((2, 2)), np.ones((2, 3)))
    with pytest.raises(ValueError, match="2 and 2, or 3 and 3"):
        nsd(np.ones((4, 4, 4)), np.ones((4, 4, 4)), spacing_mm=(1, 1))


def test_mean_dsc_does_not_depend_on_the_split_over_ranks():
    rng = np.random.default_rng(0)
    objects = [(rng.random((16, 16)) > 0.5, rng.random((16, 16)) > 0.5, f"region{i % 3}") for i in range(7)]
    whole, ranks = MeanDSC(["region0", "region1", "region2", "absent"]), []
    for pred, truth, region in objects:
        whole.update(pred, truth, region=region)
    for rank in range(2):
        part = MeanDSC(whole.regions)
        for pred, truth, region in objects[rank::2]:
            part.update(pred, truth, region=region)
        ranks.append(part)
    merged = MeanDSC(whole.regions)
    merged.sums, merged.counts = (sum(getattr(part, state) for part in ranks) for state in ("sums", "counts"))
    merged._update_count = 1
    assert merged.compute() == whole.compute()
    assert "absent" not in whole.compute()
    assert whole.compute()["mean"].item() == pytest.approx(np.mean([dsc(p, t) for p, t, _ in objects]), abs=1e-6)


def _rank_mean(rank, world, port, results):
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    metric = MeanDSC(["a"])
    masks = np.random.default_rng(1).random((5, 2, 8, 8)) > 0.5
    for pred, truth in masks[rank::world]:
        metric.update(pred, truth, region="a")
    results.put(metric.compute()["mean"].item())
    torch.distributed.destroy_process_group()


def test_mean_dsc_over_two_gloo_ranks_equals_one():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    workers = [context.Process(target=_rank_mean, args=(rank, 2, port, results)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    masks = np.random.default_rng(1).random((5, 2, 8, 8)) > 0.5
    expected = np.mean([dsc(pred, truth) for pred, truth in masks])
    assert results.get() == results.get() == pytest.approx(expected, abs=1e-6)


def test_surfaces_found_slab_by_slab_are_the_whole_ones(monkeypatch):
    def scores():
        return [
            (nsd(pred, truth, spacing_mm=spacing, tolerance_mm=tolerance), hd95(pred, truth, spacing_mm=spacing))
            for pred, truth, spacing, tolerance in random_pairs(12)
        ]

    whole = scores()
    monkeypatch.setattr("medsam2_ft.metrics._SLAB_VOXELS", 700)
    assert scores() == whole
