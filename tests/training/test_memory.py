"""The fit check measures what a step holds; activation checkpointing lowers it and changes no gradient."""

import copy
from contextlib import nullcontext

import lightning as L
import pytest
import torch
from blobs import write_blobs

from medsam2_ft.data.batch import collate
from medsam2_ft.data.datamodule import PromptedDataModule
from medsam2_ft.errors import ConfigError
from medsam2_ft.losses import LossWeights
from medsam2_ft.modeling.adapt import trainable_parts
from medsam2_ft.modeling.recompute import checkpoint_trunk
from medsam2_ft.training import memory
from medsam2_ft.training.memory import FitCheck, PeakMemory, StepMemory, measure_step
from medsam2_ft.training.module import FineTuner
from medsam2_ft.training.optim import OptimiserSettings

ALL = ["encoder", "decoder", "no_memory"]


@pytest.fixture
def data(tmp_path):
    root = write_blobs(tmp_path / "data", splits="train val", num_slices=4)
    data = PromptedDataModule(root, batch_size=4, num_workers=0)
    data.prepare_data()
    data.setup()
    return data


def tuner(segmenter, parts=ALL):
    trainable_parts(segmenter.sam2, parts, losses=LossWeights())
    return FineTuner(segmenter, losses=LossWeights(), optim=OptimiserSettings())


def test_peak_counts_what_lives_at_once():
    given = torch.zeros(1000)
    with PeakMemory(torch.device("cpu")) as counted:
        a = given + 1  # 4000 bytes
        b = a.view(10, 100)[0]  # shares them
        c = torch.cat([a, a])  # 8000 more
        assert (counted.live, counted.peak) == (12000, 12000)
        del a, c
        assert (counted.live, counted.peak) == (4000, 12000), "the view still holds the first"
        del b
        given * 2
        assert (counted.live, counted.peak) == (0, 12000)


def test_a_measured_step_leaves_no_trace(tiny_segmenter, data):
    module = tuner(tiny_segmenter)
    state, before = torch.get_rng_state(), copy.deepcopy(tiny_segmenter.state_dict())
    one = measure_step(module, collate([data.train_set[0]]), nullcontext())
    two = measure_step(module, collate([data.train_set[0]] * 2), nullcontext())
    assert 1.8 < two.per_image / one.per_image < 2.2
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_segmenter.state_dict().items())
    decoder = measure_step(tuner(tiny_segmenter, ["decoder"]), collate([data.train_set[0]]), nullcontext())
    assert decoder.per_image < one.per_image
    assert decoder.trained < one.trained


def test_checkpointing_gives_the_same_gradients_for_less(tiny_segmenter, data):
    module, batch = tuner(tiny_segmenter), collate([data.train_set[0], data.train_set[1]])

    def gradients(module):
        module.zero_grad()
        module.losses_of(batch, kind="box")[0]["loss"].backward()
        return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}

    plain, kept = gradients(module), measure_step(module, batch, nullcontext()).per_image
    names = list(tiny_segmenter.state_dict())
    checkpoint_trunk(tiny_segmenter.sam2)
    lean = gradients(module)
    assert plain.keys() == lean.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(lean[name], gradient, atol=1e-7, rtol=1e-5)
    assert measure_step(module, batch, nullcontext()).per_image < kept
    assert list(tiny_segmenter.state_dict()) == names

    twin = copy.deepcopy(module)  # as EMA makes one
    module.zero_grad()
    gradients(twin)
    assert all(p.grad is None for p in module.parameters())


def test_checkpointing_a_frozen_encoder_is_refused(tiny_segmenter):
    trainable_parts(tiny_segmenter.sam2, ["decoder"], losses=LossWeights())
    with pytest.raises(ConfigError, match="saves nothing"):
        checkpoint_trunk(tiny_segmenter.sam2)


def test_largest_batch():
    step = StepMemory(weights=100, trained=100, per_image=50)
    assert step.beside_weights(4) == 500
    assert [step.largest_batch(free) for free in (0, 349, 350, 500)] == [0, 0, 1, 4]


@pytest.mark.parametrize(
    ("free_images", "sentence"),
    [
        (
            3.5,
            r"what fits: data.batch_size=3 trainer.accumulate_grad_batches=2 \(\d+\.\d GB\), or trainer.activation_ch",
        ),
        (0.1, r"not one image fits: try .*, or finetune=decoder; trainer.check_memory=false starts regardless"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(
    tiny_segmenter, data, monkeypatch, tmp_path, free_images, sentence
):
    module = tuner(tiny_segmenter)
    step = measure_step(module, collate([data.train_set[0]]), nullcontext())
    free = 3 * step.trained + int(free_images * step.per_image)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=1, default_root_dir=tmp_path, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, callbacks=[FitCheck()],
        num_sanity_val_steps=0,
    )  # fmt: skip
    monkeypatch.setattr(memory, "free_memory", lambda device: int(free / 0.9))
    with pytest.raises(ConfigError, match=sentence):
        trainer.fit(module, datamodule=data)
    monkeypatch.setattr(memory, "free_memory", lambda device: None)
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == 1
