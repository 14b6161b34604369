"""RCG's diffusion of representations, held against numbers recorded from the original implementation."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from tests.reference import RCG, relative_error
from transformers_mage.conversion.representation_diffusion import (
    CLASS_EMBEDDING,
    NETWORK_PREFIX,
    convert_representation_diffusion,
    representation_diffusion_config,
)
from transformers_mage.representation_diffusion import (
    DDIM_SETTINGS,
    RepresentationDiffusionModel,
    draw_representations,
)


@pytest.fixture(scope="module")
def original() -> RepresentationDiffusionModel:
    weights = RCG.weights("diffusion")
    model = RepresentationDiffusionModel(**representation_diffusion_config(weights))
    model.load_state_dict(convert_representation_diffusion(weights))
    return model.eval()


@pytest.fixture
def small_model() -> RepresentationDiffusionModel:
    """Untrained, but not the constant 0 that it starts as."""
    torch.manual_seed(0)
    model = RepresentationDiffusionModel(
        representation_size=6, hidden_size=16, bottleneck_size=8, time_embedding_size=4, num_blocks=2
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@torch.no_grad()
def test_a_stock_scheduler_repeats_the_recorded_trace(original: RepresentationDiffusionModel):
    recorded = {name.removeprefix("diffusion."): value for name, value in RCG.recorded.items()}
    scheduler = DDIMScheduler(**DDIM_SETTINGS)
    scheduler.set_timesteps(len(recorded["timesteps"]))
    assert scheduler.timesteps.tolist() == recorded["timesteps"].tolist()

    sample = recorded["noise"]
    for i, timestep in enumerate(scheduler.timesteps):
        prediction = original(sample, timestep).sample
        noise = recorded["step_noise"][i]
        sample = scheduler.step(prediction, timestep, sample, eta=1.0, variance_noise=noise).prev_sample

        assert relative_error(prediction, recorded["predicted_start"][i]) < 1e-5
        assert relative_error(sample, recorded["trace"][i]) < 1e-5


def test_a_training_checkpoint_holds_the_network_and_its_classes(original: RepresentationDiffusionModel):
    weights = {NETWORK_PREFIX + name: weight for name, weight in RCG.weights("diffusion").items()}
    weights |= {f"{NETWORK_PREFIX}res_blocks.{i}.context_layers.1.weight": torch.rand(36, 5) for i in range(3)}
    weights |= {f"{NETWORK_PREFIX}res_blocks.{i}.context_layers.1.bias": torch.rand(36) for i in range(3)}
    weights |= {CLASS_EMBEDDING: torch.rand(10, 5), "pretrained_encoder.cls_token": torch.rand(1)}

    model = RepresentationDiffusionModel(**representation_diffusion_config(weights))
    model.load_state_dict(convert_representation_diffusion(weights))

    assert (model.config.num_classes, model.config.class_embedding_size) == (10, 5)
    assert torch.equal(model.linear_out.weight, original.linear_out.weight)
    sample = torch.rand(2, 24)
    one, other = (model(sample, 5, torch.tensor(labels)).sample for labels in ([0, 0], [0, 1]))
    assert torch.equal(one[0], other[0])
    assert not torch.equal(one[1], other[1])


def test_a_saved_model_is_the_same(original: RepresentationDiffusionModel, tmp_path):
    original.save_pretrained(tmp_path)
    loaded = RepresentationDiffusionModel.from_pretrained(tmp_path)

    sample = torch.rand(3, 24)
    assert torch.equal(loaded(sample, 500).sample, original(sample, 500).sample)


def test_a_new_model_predicts_nothing():
    model = RepresentationDiffusionModel(representation_size=6, hidden_size=16, bottleneck_size=8, num_blocks=2)

    assert model(torch.rand(3, 6), torch.tensor([1, 500, 999])).sample.count_nonzero() == 0


def test_a_generator_each_makes_draws_independent_of_the_batch(small_model: RepresentationDiffusionModel):
    def seeded(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = draw_representations(small_model, 3, num_inference_steps=10, generator=seeded(0, 1, 2))
    alone = draw_representations(small_model, 1, num_inference_steps=10, generator=seeded(1))

    torch.testing.assert_close(together[1:2], alone)
    assert not torch.allclose(together[0], together[1])


def test_without_noise_in_its_steps_the_start_decides(small_model: RepresentationDiffusionModel):
    torch.manual_seed(1)
    first, second = (
        draw_representations(small_model, 2, num_inference_steps=5, eta=0, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )

    assert torch.equal(first, second)


def test_other_schedulers_draw_too(small_model: RepresentationDiffusionModel):
    settings = {name: value for name, value in DDIM_SETTINGS.items() if name in ("beta_start", "beta_end")}
    scheduler = DPMSolverMultistepScheduler(beta_schedule="scaled_linear", prediction_type="sample", **settings)

    drawn = draw_representations(small_model, 2, scheduler, num_inference_steps=5)

    assert drawn.shape == (2, 6)
    assert drawn.isfinite().all()


@pytest.mark.parametrize(
    ("sample", "class_labels", "message"),
    [
        (torch.rand(2, 5), None, r"`sample` must have shape \(batch_size, 6\), got \(2, 5\)"),
        (torch.rand(2, 6), torch.tensor([0, 1]), "The model has no classes, but `class_labels` is"),
    ],
)
def test_what_does_not_fit_is_refused(small_model, sample, class_labels, message):
    with pytest.raises(ValueError, match=message):
        small_model(sample, 1, class_labels)
