"""What the diffusion of representations learns."""

import pytest
import torch

from transformers_mage.representation_diffusion import RepresentationDiffusionModel, draw_representations
from transformers_mage.representations import standardize
from transformers_mage.training.representations.diffusion import (
    RepresentationDiffusionForTraining,
    build_diffusion,
    diffusion_values,
)

SMALL = {"hidden_size": 64, "bottleneck_size": 64, "time_embedding_size": 16, "num_blocks": 2}


def test_it_learns_to_draw_what_it_was_shown():
    """Two representations: after some updates, what is drawn is near one of them."""
    torch.manual_seed(0)
    known = standardize(torch.randn(2, 8))
    model = RepresentationDiffusionForTraining(build_diffusion(SMALL, 8, None))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(300):
        clean = known[torch.randint(2, (64,))]
        loss, metrics = model(clean, torch.randn_like(clean), torch.randint(model.num_train_timesteps, (64,)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(metrics["loss"].item())

    drawn = draw_representations(model.diffusion.eval(), 20, num_inference_steps=50)

    assert losses[0] > 0.5
    assert sum(losses[-20:]) / 20 < 0.5 * losses[0]
    distances = torch.cdist(drawn, known)
    assert distances.min(dim=1).values.median() < 0.5
    assert len(distances.argmin(dim=1).unique()) == 2


def test_the_loss_is_the_error_of_the_clean_representation():
    """At the start 0 is predicted, whatever the noise is."""
    model = RepresentationDiffusionForTraining(build_diffusion(SMALL, 8, num_classes=3))
    clean = torch.randn(4, 8)

    loss, _ = model(clean, torch.randn(4, 8), torch.tensor([0, 1, 500, 999]), class_labels=torch.tensor([0, 1, 2, 0]))

    torch.testing.assert_close(loss, clean.square().mean())


def test_a_recipe_can_set_all_sizes_but_those_that_the_data_decide():
    assert diffusion_values() == {
        "hidden_size": 1536,
        "bottleneck_size": 1536,
        "time_embedding_size": 256,
        "num_blocks": 12,
        "dropout": 0.0,
        "class_embedding_size": 512,
    }
    assert isinstance(build_diffusion(SMALL, 8, None), RepresentationDiffusionModel)
    with pytest.raises(ValueError, match="`representation_model` makes no model"):
        build_diffusion({"num_blocks": "many"}, 8, None)
