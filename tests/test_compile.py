"""Compiled models, steps and pipelines are whole graphs, and give what the plain ones give."""

import pytest
import torch

from transformers_mage import MageConfig, MageForMaskedImageModeling, MagePipeline, MageScheduler, sample_masks

# The graphs as the compiler sees them, run as they are: making C++ of each takes minutes.
BACKEND = "eager"
# And once for all, what users get.
INDUCTOR = pytest.param("inductor", marks=pytest.mark.slow)


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shallow(config: MageConfig, **kwargs) -> MageForMaskedImageModeling:
    values = {**config.to_dict(), "num_hidden_layers": 1, "decoder_num_hidden_layers": 1, **kwargs}
    return MageForMaskedImageModeling(MageConfig(**values))


@pytest.mark.parametrize("backend", [pytest.param("aot_eager", marks=pytest.mark.slow), INDUCTOR])
def test_training_step_of_any_number_of_masked_tokens(small_config, backend):
    without_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = shallow(small_config, **without_dropout).train()
    tokens = torch.randint(16, (3, 64))
    compiled = torch.compile(lambda **kwargs: model(**kwargs).loss, fullgraph=True, backend=backend)

    def gradients_of(forward, masks) -> tuple[torch.Tensor, list[torch.Tensor]]:
        loss = forward(input_ids=tokens, **masks.as_kwargs())
        return loss, torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)

    for seed in range(3):
        masks = sample_masks(model.config, 3, generator=seeded(seed))
        loss, gradients = gradients_of(compiled, masks)
        expected_loss, expected = gradients_of(lambda **kwargs: model(**kwargs).loss, masks)
        torch.testing.assert_close(loss, expected_loss)
        for gradient, other in zip(gradients, expected, strict=True):
            assert (gradient is None) == (other is None)
            if gradient is not None:
                torch.testing.assert_close(gradient, other)


@pytest.mark.slow
def test_features(small_config, pixel_values):
    encoder = shallow(small_config).mage.eval()
    compiled = torch.compile(encoder, fullgraph=True, backend=BACKEND)

    with torch.no_grad():
        torch.testing.assert_close(compiled(pixel_values).pooler_output, encoder(pixel_values).pooler_output)


@pytest.mark.slow
@pytest.mark.parametrize("backend", [BACKEND, INDUCTOR])
def test_pipeline(small_config, backend):
    model = shallow(small_config, num_classes=3).eval()
    pipe = MagePipeline(model, MageScheduler(model.config.mask_token_id, num_inference_steps=4))
    pipe.set_progress_bar_config(disable=True)
    calls = [{"class_labels": [0, 2], "guidance_scale": 2.0}]
    if backend == BACKEND:
        calls.append({"num_images": 2})
    expected = [pipe(generator=seeded(), output_type="pt", **call).images for call in calls]

    pipe.compile(backend=backend)

    for call, images in zip(calls, expected, strict=True):
        made = pipe(generator=seeded(), output_type="pt", **call).images
        torch.testing.assert_close(made, images, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_pipeline_that_computes_less(small_config):
    model = shallow(small_config).eval()
    scheduler = MageScheduler(model.config.mask_token_id, num_inference_steps=5)
    pipe = MagePipeline(model, scheduler, encoder_keep_share=0.5, full_steps=2)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(2, generator=seeded(), output_type="latent").images

    pipe.compile(backend=BACKEND)

    assert torch.equal(pipe(2, generator=seeded(), output_type="latent").images, expected)


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"unmasking_order": "random"},
        {"unmasking_order": "halton"},
        {"token_temperature": 0.9, "top_k": 8, "top_p": 0.9},
        {"token_temperature": 0.0},
        {"temperature_schedule": "square", "masking_schedule": "exponential"},
    ],
)
def test_every_step_is_the_same_compiled_step(choice):
    """The step's number, its noise and its schedule are not constants of the graph."""
    scheduler, logits = MageScheduler(mask_token_id=99, **choice), torch.randn(2, 64, 16)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    scheduler.compile(backend=backend)
    for steps in (4, 6):
        scheduler.set_timesteps(steps)
        tokens = torch.full((2, 64), 99)
        for timestep in scheduler.timesteps:
            tokens = scheduler.step(logits, timestep, tokens, seeded(steps)).prev_sample
        assert (tokens < 16).all()

    assert len(graphs) == 1
